"""Sets the wall clock of this process as a file says (``support.gateway_clock``): imported by Python itself at each
start."""

from __future__ import annotations

import mmap
import os
import struct
import time


def install() -> None:
    """`time.time` is as many seconds ahead as stand in the file by then. OpenSSL reads the system's own clock."""
    path = os.environ.get("TLSPROXY_TEST_WALL")
    if path is None:
        return
    with open(path, "rb") as file:  # noqa: PTH123 - before anything is imported
        ahead = mmap.mmap(file.fileno(), 8, prot=mmap.PROT_READ)
    real, double = time.time, struct.Struct("d")
    time.time = lambda: real() + double.unpack(ahead)[0]


install()
