#!/bin/sh
# Debian 13 (Python 3.13, OpenSSL 3.5) in a folder of its own, and a command of make in a copy of this checkout there:
#     sh bench/debian13.sh bench-data make bench
# Root makes the folder once, by debootstrap, and it is used again; its mounts are seen by the command alone, and nothing
# else of this machine is changed. Results are in DIRECTORY/debian13. MIRROR: of packages, if not debootstrap's own.
set -eu

fail() {
    echo "bench-debian13: $*" >&2
    exit 1
}

checkout=$(cd "$(dirname "$0")/.." && pwd)
mkdir -p "$1/debian13"
directory=$(cd "$1" && pwd)
shift
root=$directory/debian13-root
packages=ca-certificates,curl,gcc,git,haproxy,hitch,libc6-dev,libnginx-mod-stream,libssl-dev,make,nghttp2-proxy,nginx-light,openssl,procps,python3-dev,python3-venv,stunnel4

[ "$(id -u)" = 0 ] || fail "root is needed: for debootstrap, mounts and chroot"
for tool in debootstrap unshare chroot; do
    command -v "$tool" >/dev/null || fail "$tool is not installed: apt-get install debootstrap util-linux"
done
unshare --mount true || fail "this machine allows no mounts of its own (unshare --mount), as in some containers"

if [ ! -d "$root" ]; then
    echo "making $root: some minutes" >&2
    rm -rf "$root.new"
    debootstrap --variant=minbase --include="$packages" trixie "$root.new" ${MIRROR:+"$MIRROR"} >"$directory/debootstrap.log" 2>&1 ||
        fail "debootstrap failed, $directory/debootstrap.log: $(tail -n 3 "$directory/debootstrap.log")"
    mv "$root.new" "$root"
fi
# What this machine has of its own to reach a package index: name servers, CAs, pip's configuration.
for file in /etc/resolv.conf /etc/pip.conf /usr/local/share/ca-certificates; do
    [ ! -e "$file" ] || cp -RL "$file" "$root$(dirname "$file")/"
done

# A copy: .venv, and what is compiled, are of the Python there.
mkdir -p "$root/src/bench-data"
find "$root/src" -mindepth 1 -maxdepth 1 ! -name .venv ! -name bench-data -exec rm -rf {} +
git -C "$checkout" ls-files -z --cached --others --exclude-standard | tar -C "$checkout" --null --files-from=- --ignore-failed-read -cf - | tar -C "$root/src" -xf -
TLSPROXY_COMMIT=$(git -C "$checkout" describe --always --dirty=+ --exclude='*')
export TLSPROXY_COMMIT
exec unshare --mount --propagation private sh -euc '
    root=$1 data=$2
    shift 2
    mount -t proc proc "$root/proc"
    mount --rbind /dev "$root/dev"
    mount --bind "$data" "$root/src/bench-data"
    exec chroot "$root" sh -euc '\''update-ca-certificates >/dev/null 2>&1; cd /src; exec "$@"'\'' sh "$@"
' sh "$root" "$directory/debian13" "$@"
