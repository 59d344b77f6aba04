#!/bin/sh
# `make install` and `make uninstall`: the program in a virtual environment of its own, the units, a first configuration.
#
#   PREFIX=/opt/tlsproxy   where the program goes: a directory of its own
#   DESTDIR=               stands before every path: nothing is done to the running system then (for a package)
#   UNITDIR=/etc/systemd/system
#   PYTHON=python3
#
# What an operator has written is never touched: configuration, certificates, logs, and units that `systemctl edit` made.
set -eu
umask 022 # the service's account reads all of this
PREFIX=${PREFIX:-/opt/tlsproxy}
DESTDIR=${DESTDIR:-}
UNITDIR=${UNITDIR:-/etc/systemd/system}
PYTHON=${PYTHON:-python3}
CONFIG=/etc/tlsproxy
SOURCE=$(cd "$(dirname "$0")/.." && pwd)
program=$DESTDIR$PREFIX

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
    "$program/bin/python" -m pip install --quiet --disable-pip-version-check --upgrade \
        --constraint "$SOURCE/constraints.txt" "$SOURCE"
    if [ -n "$DESTDIR" ]; then # what the environment knows of its own place
        grep -rIlF "$program" "$program/bin" "$program/pyvenv.cfg" | xargs sed -i "s|$program|$PREFIX|g"
    fi
    for folder in docs config observability systemd; do
        install -d "$program/share/doc/tlsproxy/$folder"
    done
    install -m 0644 "$SOURCE"/*.md "$SOURCE/LICENSE" "$program/share/doc/tlsproxy/"
    install -m 0644 "$SOURCE"/docs/* "$program/share/doc/tlsproxy/docs/"
    install -m 0644 "$SOURCE"/observability/* "$program/share/doc/tlsproxy/observability/"
    install -m 0644 "$SOURCE/config/tlsproxy.yaml" "$program/share/doc/tlsproxy/config/"
    install -m 0644 "$SOURCE/systemd/README.md" "$program/share/doc/tlsproxy/systemd/"
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
    [ -d "$DESTDIR$CONFIG/certs" ] || install -d -m 0750 "$DESTDIR$CONFIG/certs"
}

install_all() {
    checked
    install_program
    install_units
    install_configuration
    if [ -n "$DESTDIR" ]; then
        echo "installed below $DESTDIR"
        return
    fi
    systemd-sysusers "/etc/sysusers.d/tlsproxy.conf"
    [ "$(stat -c %G "$CONFIG/certs")" != root ] || chgrp tlsproxy-tls "$CONFIG/certs"
    # There is no systemd to tell in a chroot or a container: it reads the units when it starts.
    [ ! -d /run/systemd/system ] || systemctl daemon-reload
    set -- # the service's account is systemd's to tell
    [ ! -d /run/systemd/system ] || set -- --as-user tlsproxy.service
    if "$PREFIX/bin/tlsproxy" check --config "$CONFIG/tlsproxy.yaml" "$@"; then
        echo "installed; start it:   systemctl enable --now tlsproxy.socket tlsproxy-grpc.socket tlsproxy.service"
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
        # shellcheck disable=SC2086 # one word for each unit
        systemctl disable --now --quiet $units 2>/dev/null || echo "some units were not there to be stopped"
    fi
    for unit in $units; do
        rm -f "$DESTDIR$UNITDIR/$unit"
    done
    rm -f "$DESTDIR/etc/sysusers.d/tlsproxy.conf"
    rm -rf "$program"
    [ -n "$DESTDIR" ] || [ ! -d /run/systemd/system ] || systemctl daemon-reload
    echo "removed: $program and the units. Kept: $DESTDIR$CONFIG (configuration, certificates, keys),"
    echo "$DESTDIR/var/log/private/tlsproxy (audit log), units made by systemctl edit, and the group tlsproxy-tls."
}

case ${1:-} in
    install) install_all ;;
    uninstall) uninstall_all ;;
    *) fail "usage: $0 install|uninstall" ;;
esac
