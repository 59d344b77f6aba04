"""A machine to try units on: a real systemd as the first process of its own namespaces, over a throw-away root.

The root is an overlay of this machine's, with everything that is written kept in memory. Processes, mounts, cgroups and
names are its own; the network is ours, so that tests speak with its services as with any. It needs root, and a
kernel that lets a container do this.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest

from support.gateway import DEADLINE

SYSTEMD = Path("/lib/systemd/systemd")
_CGROUPS = Path("/sys/fs/cgroup")
_NAMESPACES = ("--pid", "--mount", "--cgroup", "--uts", "--ipc")
_TARGET = "[Unit]\nDescription=What a test needs\nRequires=sysinit.target\nAfter=sysinit.target\n"

# As PID 1 of the new namespaces. $1: an empty directory; $2: a tree that is copied over the root; then SOURCE TARGET
# pairs that are bound. Devices are those of the host that cannot do harm. Mounts must be shared again before systemd
# runs: in a container it does not see to that, and LoadCredential= needs it.
_BOOT = r"""
work=$1; tree=$2; shift 2
umask 022
mount --make-rprivate /
mount -t tmpfs -o mode=755 tmpfs "$work"
mkdir "$work/upper" "$work/work" "$work/root"
root=$work/root
mount -t overlay -o lowerdir=/,upperdir="$work/upper",workdir="$work/work" overlay "$root"
cp -a "$tree"/* "$root/"
while [ $# -gt 1 ]; do mkdir -p "$root$2"; mount --bind "$1" "$root$2"; shift 2; done
mount -t proc proc "$root/proc"
mount --bind "$root/proc/sys" "$root/proc/sys"
mount -o remount,bind,ro "$root/proc/sys"
mount -t sysfs -o ro sysfs "$root/sys"
mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup"
mount -t tmpfs -o mode=755 tmpfs "$root/run"
mount -t tmpfs -o mode=1777 tmpfs "$root/tmp"
mount -t tmpfs -o mode=755 tmpfs "$root/dev"
for device in null zero full random urandom tty; do
    : >"$root/dev/$device"
    mount --bind "/dev/$device" "$root/dev/$device"
done
mkdir "$root/dev/shm" "$root/dev/pts"
mount -t tmpfs -o mode=1777 tmpfs "$root/dev/shm"
mount -t devpts -o newinstance,ptmxmode=0666 devpts "$root/dev/pts"
ln -s pts/ptmx "$root/dev/ptmx"
ln -s /proc/self/fd "$root/dev/fd"
: >"$root/etc/machine-id"
hostname tlsproxy-test
cd "$root"
mkdir -p old
pivot_root . old
umount -l /old
mount --make-rshared /
exec env -i container=unshare PATH=/usr/sbin:/usr/bin:/sbin:/bin \
    /lib/systemd/systemd --system --unit=tlsproxy-test.target --log-target=journal --show-status=no
"""

_TRIAL = r"""
mount -t tmpfs tmpfs "$0"
mkdir "$0/upper" "$0/work" "$0/root"
mount -t overlay -o lowerdir=/,upperdir="$0/upper",workdir="$0/work" overlay "$0/root"
"""


def needs_machine() -> None:
    """Skips where a machine cannot be booted, with the reason."""
    if os.geteuid() != 0:
        pytest.skip("booting systemd in namespaces needs root")
    if not SYSTEMD.exists():
        pytest.skip("systemd is not installed (Debian: systemd)")
    for program in ("unshare", "nsenter", "pivot_root"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed (Debian: util-linux)")
    command = ["unshare", "--fork", *_NAMESPACES, "--kill-child", "sh", "-euc", _TRIAL, "/mnt"]
    tried = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE, check=False)
    if tried.returncode:
        pytest.skip(f"the kernel does not allow it here: {tried.stderr.strip()}")


class Machine:
    """Boots ``tree`` over the root; ``binds`` are directories of ours and where it has them."""

    def __init__(self, directory: Path, tree: Path, binds: Mapping[Path, str]) -> None:
        target = tree / "etc/systemd/system/tlsproxy-test.target"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(_TARGET)
        (directory / "root").mkdir()
        self._log = directory / "console.log"
        unified = _CGROUPS / "unified"
        self._cgroup = (unified if unified.is_dir() else _CGROUPS) / f"tlsproxy-test-{os.getpid()}"
        self._cgroup.mkdir()
        pairs = [str(part) for source, where in binds.items() for part in (source, where)]
        boot = ["unshare", "--fork", *_NAMESPACES, "--kill-child", "sh", "-euc", _BOOT, "boot"]
        # The cgroup is joined before the namespaces are made: it is the root of the new ones.
        join = ["sh", "-euc", 'echo $$ >"$0"; exec "$@"', str(self._cgroup / "cgroup.procs")]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [*join, *boot, str(directory / "root"), str(tree), *pairs],
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
            )

    def __enter__(self) -> Self:
        try:
            self._first = self._until_first()
            self._until_running()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._process.kill()  # with it goes its child, and with that everything in the namespace
        self._process.wait(DEADLINE)
        for directory in sorted([self._cgroup, *self._cgroup.rglob("*/")], reverse=True):
            _removed(directory)

    def _until_first(self) -> int:
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children")
        end = time.monotonic() + DEADLINE
        while time.monotonic() < end and self._process.poll() is None:
            if found := children.read_text().split():
                return int(found[0])
        raise AssertionError(self.console())

    def _until_running(self) -> None:
        end = time.monotonic() + DEADLINE
        while time.monotonic() < end and self._process.poll() is None:
            if self.run("systemctl", "is-system-running", "--wait", check=False).stdout.strip() in {
                "running",
                "degraded",
            }:
                return
            time.sleep(0.05)  # until it listens there is nothing to wait on
        raise AssertionError(self.console())

    def console(self) -> str:
        return self._log.read_text(errors="replace")

    def run(self, *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """A command on the machine, as root."""
        enter = ["nsenter", "-t", str(self._first), "-m", "-p", "-u", "-i", "-C", "-r", "-w", "--"]
        environ = ["env", "-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "SYSTEMD_PAGER=", "SYSTEMD_COLORS=0"]
        done = subprocess.run([*enter, *environ, *command], capture_output=True, text=True, timeout=60, check=False)
        if check and done.returncode:
            journal = self.run("journalctl", "-q", "--no-pager", "-n", "40", check=False).stdout
            raise AssertionError(f"{command}: {done.stdout}{done.stderr}{journal}{self.console()}")
        return done

    def shown(self, unit: str, name: str) -> str:
        """A property, as `systemctl show` has it."""
        return self.run("systemctl", "show", "--value", "-p", name, unit).stdout.strip()

    def journal(self, unit: str) -> str:
        return self.run("journalctl", "-q", "--no-pager", "-o", "cat", "-u", unit, check=False).stdout


def _removed(cgroup: Path) -> None:
    end = time.monotonic() + DEADLINE
    while cgroup.is_dir() and time.monotonic() < end:
        with suppress(OSError):  # its processes are dying
            cgroup.rmdir()
