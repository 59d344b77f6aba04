"""A small disk of a test's own, where one may be mounted; else a limit on how large the gateway's files get."""

from __future__ import annotations

import os
import resource
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from support.gateway import Gateway

SIZE = 256 << 10
Fill = Callable[[Gateway], Callable[[], None]]
"""Leaves room for some bytes that are no whole number of lines; what it returns makes room again."""


@contextmanager
def small_disk(directory: Path) -> Iterator[Fill]:
    """``directory`` is made, and is on a disk of :data:`SIZE` bytes (tmpfs) if that can be had."""
    directory.mkdir(mode=0o700)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={SIZE},mode=700", "tlsproxy-test", str(directory)]
    if os.geteuid() or subprocess.run(mount, capture_output=True, check=False).returncode:
        yield _limited
        return
    try:
        yield lambda _gateway: _filled(directory / "ballast")
    finally:
        subprocess.run(["umount", "--lazy", str(directory)], check=True)


def _filled(ballast: Path) -> Callable[[], None]:
    page = 4096
    with ballast.open("wb", buffering=0) as file:
        while (room := os.statvfs(ballast).f_bavail * page) > page:
            file.write(bytes(room - page))
    return ballast.unlink


def _limited(gateway: Gateway) -> Callable[[], None]:
    """EFBIG in place of ENOSPC, for a process that writes nothing else."""
    pid, kind = gateway.process.pid, resource.RLIMIT_FSIZE
    largest = max(path.stat().st_size for path in (gateway.config.parent / "audit").iterdir())
    before = resource.prlimit(pid, kind)
    resource.prlimit(pid, kind, (largest + 1000, before[1]))
    return lambda: resource.prlimit(pid, kind, before) and None
