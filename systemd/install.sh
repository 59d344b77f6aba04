#!/bin/sh
# `make install` and `make uninstall`: the program in a virtual environment of its own, the units, a first configuration.
#
#   PREFIX=/opt/tlsproxy   where the program goes: a directory of its own
#   DESTDIR=               stands before every path: nothing is done to the running system then (for a package)
#   LINKS=/usr/local       has links to the command, its manual page and completions: bin/, share/
#   UNITDIR=/etc/systemd/system
#   PYTHON=python3
#   COMPILED=auto          compile the modules that run for requests where there is a C compiler; yes: or fail; no: plain
#
# What an operator has written is never touched: configuration, certificates, logs, and units that `systemctl edit` made.
set -eu
umask 022 # the service's account reads all of this
PREFIX=${PREFIX:-/opt/tlsproxy}
DESTDIR=${DESTDIR:-}
LINKS=${LINKS:-/usr/local}
UNITDIR=${UNITDIR:-/etc/systemd/system}
PYTHON=${PYTHON:-python3}
COMPILED=${COMPILED:-auto}
CONFIG=/etc/tlsproxy
SOURCE=$(cd "$(dirname "$0")/.." && pwd)
program=$DESTDIR$PREFIX
# The same path below PREFIX, which has the file, and below LINKS, which has the link.
linked='bin/tlsproxy share/man/man1/tlsproxy.1 share/bash-completion/completions/tlsproxy
    share/zsh/site-functions/_tlsproxy share/fish/vendor_completions.d/tlsproxy.fish'

fail() {
    echo "error: $*" >&2
    exit 1
}

checked() {
    case $PREFIX in
        /*) ;;
        *) fail "PREFIX=$PREFIX must be an absolute path" ;;
    esac
    case $PREFIX in
        /home | /home/* | /root | /root/* | /run/user | /run/user/*)
            fail "PREFIX=$PREFIX is hidden from the service (ProtectHome=yes): take one outside of home directories" ;;
    esac
    case $LINKS in
        /*) ;;
        *) fail "LINKS=$LINKS must be an absolute path" ;;
    esac
    [ "$LINKS" != "$PREFIX" ] || fail "LINKS=$LINKS is PREFIX: links would replace the files"
    case $DESTDIR in
        '' | /*) ;;
        *) fail "DESTDIR=$DESTDIR must be an absolute path" ;;
    esac
    if [ -d "$program" ] && [ -n "$(ls -A "$program")" ] && [ ! -e "$program/bin/tlsproxy" ]; then
        fail "$program has something else in it: PREFIX is a directory of tlsproxy's own, such as /opt/tlsproxy"
    fi
    [ -n "$DESTDIR" ] || [ "$(id -u)" = 0 ] || fail "must be root (or set DESTDIR to make a tree for a package)"
}

install_program() {
    base=$("$PYTHON" -c 'import os, sys; print(os.path.realpath(getattr(sys, "_base_executable", sys.executable)))') ||
        fail "there is no $PYTHON: set PYTHON to a Python >= 3.11"
    "$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || fail "tlsproxy needs Python >= 3.11: set PYTHON"
    case $base in
        /home/* | /root/*)
            fail "$base is hidden from the service (ProtectHome=yes): set PYTHON to another, such as /usr/bin/python3" ;;
    esac
    "$PYTHON" -m venv "$program" || fail "no virtual environment (Debian: apt install python3-venv)"
    [ "$COMPILED" = no ] || echo "compiling, where there is a C compiler: some minutes (COMPILED=no: plain Python, slower)" >&2
    TLSPROXY_COMPILED=$COMPILED "$program/bin/python" -m pip install --quiet --disable-pip-version-check --upgrade \
        --constraint "$SOURCE/constraints.txt" "$SOURCE"
    for path in $linked; do
        install -d "$program/${path%/*}"
    done
    "$program/bin/python" -P -m tlsproxy.cli.man >"$program/share/man/man1/tlsproxy.1"
    completion bash >"$program/share/bash-completion/completions/tlsproxy"
    completion zsh >"$program/share/zsh/site-functions/_tlsproxy"
    completion fish >"$program/share/fish/vendor_completions.d/tlsproxy.fish"
    if [ -n "$DESTDIR" ]; then # what the environment knows of its own place
        grep -rIlF "$program" "$program/bin" "$program/pyvenv.cfg" | xargs sed -i "s|$program|$PREFIX|g"
    fi
    for folder in docs config observability systemd; do
        install -d "$program/share/doc/tlsproxy/$folder"
    done
    install -m 0644 "$SOURCE"/*.md "$SOURCE/LICENSE" "$program/share/doc/tlsproxy/"
    install -m 0644 "$SOURCE"/docs/* "$program/share/doc/tlsproxy/docs/"
    install -m 0644 "$SOURCE"/observability/* "$program/share/doc/tlsproxy/observability/"
    install -m 0644 "$SOURCE/config/tlsproxy.yaml" "$SOURCE/config/client.yaml" "$program/share/doc/tlsproxy/config/"
    install -m 0644 "$SOURCE/systemd/README.md" "$program/share/doc/tlsproxy/systemd/"
}

completion() {
    env "_TLSPROXY_COMPLETE=$1_source" "$program/bin/tlsproxy"
}

# Whether there is nothing, or a link of ours.
is_ours() {
    if [ -L "$1" ]; then
        [ "$(readlink "$1")" = "$2" ]
    else
        [ ! -e "$1" ]
    fi
}

install_links() {
    for path in $linked; do
        if is_ours "$DESTDIR$LINKS/$path" "$PREFIX/$path"; then
            install -d "$DESTDIR$LINKS/${path%/*}"
            ln -sfn "$PREFIX/$path" "$DESTDIR$LINKS/$path"
        else
            echo "$DESTDIR$LINKS/$path is somebody else's and is kept; ours is $PREFIX/$path" >&2
        fi
    done
}

remove_links() {
    for path in $linked; do
        if is_ours "$DESTDIR$LINKS/$path" "$PREFIX/$path"; then
            rm -f "$DESTDIR$LINKS/$path"
        fi
    done
}

install_units() {
    install -d "$DESTDIR$UNITDIR"
    for unit in "$SOURCE"/systemd/*.service "$SOURCE"/systemd/*.socket; do
        sed "s|/opt/tlsproxy|$PREFIX|g" "$unit" >"$DESTDIR$UNITDIR/${unit##*/}"
        chmod 0644 "$DESTDIR$UNITDIR/${unit##*/}"
    done
    install -d "$DESTDIR/etc/sysusers.d"
    install -m 0644 "$SOURCE/systemd/tlsproxy.sysusers" "$DESTDIR/etc/sysusers.d/tlsproxy.conf"
}

install_configuration() {
    install -d -m 0755 "$DESTDIR$CONFIG"
    if [ ! -e "$DESTDIR$CONFIG/tlsproxy.yaml" ]; then
        install -m 0644 "$SOURCE/systemd/tlsproxy.yaml" "$DESTDIR$CONFIG/tlsproxy.yaml"
    else
        echo "$DESTDIR$CONFIG/tlsproxy.yaml is kept as it is"
    fi
    install -d -m 0755 "$DESTDIR$CONFIG/connect"
    [ -d "$DESTDIR$CONFIG/certs" ] || install -d -m 0750 "$DESTDIR$CONFIG/certs"
}

install_all() {
    checked
    install_program
    install_links
    install_units
    install_configuration
    if [ -n "$DESTDIR" ]; then
        echo "installed below $DESTDIR: $("$program/bin/python" -P -m tlsproxy --version)"
        return
    fi
    systemd-sysusers "/etc/sysusers.d/tlsproxy.conf"
    [ "$(stat -c %G "$CONFIG/certs")" != root ] || chgrp tlsproxy-tls "$CONFIG/certs"
    # There is no systemd to tell in a chroot or a container: it reads the units when it starts.
    [ ! -d /run/systemd/system ] || systemctl daemon-reload
    set -- # the service's account is systemd's to tell
    [ ! -d /run/systemd/system ] || set -- --as-user tlsproxy.service
    if "$PREFIX/bin/tlsproxy" check --config "$CONFIG/tlsproxy.yaml" "$@"; then
        echo "installed: $("$PREFIX/bin/tlsproxy" --version)"
        echo "start it:   systemctl enable --now tlsproxy.socket tlsproxy-grpc.socket tlsproxy.service"
        echo "or after an upgrade:   systemctl restart tlsproxy"
    else
        echo "installed, and not ready to start: $CONFIG/tlsproxy.yaml is refused, as said above." >&2
        echo "See $PREFIX/share/doc/tlsproxy/systemd/README.md, then: $PREFIX/bin/tlsproxy check --config $CONFIG/tlsproxy.yaml" >&2
    fi
}

uninstall_all() {
    checked
    units=$(cd "$SOURCE/systemd" && ls ./*.service ./*.socket | sed 's|^\./||')
    if [ -z "$DESTDIR" ] && [ -d /run/systemd/system ]; then
        systemctl stop --quiet 'tlsproxy-connect@*.service' # a template's instances are known when they run
        # shellcheck disable=SC2086 # one word for each unit
        systemctl disable --quiet $units 2>/dev/null || echo "some units were not there to be disabled"
        # shellcheck disable=SC2046 # likewise
        systemctl stop --quiet $(echo "$units" | grep -v @) 2>/dev/null || echo "some units were not there to be stopped"
    fi
    for unit in $units; do
        rm -f "$DESTDIR$UNITDIR/$unit"
    done
    rm -f "$DESTDIR/etc/sysusers.d/tlsproxy.conf"
    remove_links
    rm -rf "$program"
    [ -n "$DESTDIR" ] || [ ! -d /run/systemd/system ] || systemctl daemon-reload
    echo "removed: $program, the links to it and the units. Kept: $DESTDIR$CONFIG (configuration, certificates, keys),"
    echo "$DESTDIR/var/log/private/tlsproxy (audit log), units made by systemctl edit, and the group tlsproxy-tls."
}

case ${1:-} in
    install) install_all ;;
    uninstall) uninstall_all ;;
    *) fail "usage: $0 install|uninstall" ;;
esac
