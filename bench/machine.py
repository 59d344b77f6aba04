"""What stands beside figures, since they mean nothing without it."""

from __future__ import annotations

import os
import platform
import ssl
import subprocess
import sys
import sysconfig
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

UNPROFILED = (
    "built without profile-guided optimisation, which costs tlsproxy almost half of its speed: measure with the Python "
    "that serves, as in make clean bench PYTHON=/usr/bin/python3"
)


def is_profiled(configured: str, prefix: str) -> bool:
    """Whether a Python with these arguments of its ``configure``, installed there, was optimised by profile.

    Its variables keep no other trace: the flags stand on the command line of make. Distributions have theirs in /usr,
    and all of them profile; Debian does it without the argument.
    """
    return "--enable-optimizations" in configured or prefix == "/usr"


def about(command: str) -> dict[str, Any]:
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command,
        "commit": _commit(),
        "machine": {
            "processor": _processor(),
            "cores": len(os.sched_getaffinity(0)),
            "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
            "kernel": platform.release(),
            "system": platform.freedesktop_os_release().get("PRETTY_NAME", ""),
        },
        "python": sys.version.split()[0],
        "python_profiled": is_profiled(str(sysconfig.get_config_var("CONFIG_ARGS")), sys.base_prefix),
        "openssl": ssl.OPENSSL_VERSION,
        "load_average_before": os.getloadavg()[0],
    }


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _commit() -> str:
    """The checkout's, with a + where files differ from it; empty where it is none. TLSPROXY_COMMIT: a copy's."""
    if told := os.environ.get("TLSPROXY_COMMIT"):
        return told
    done = subprocess.run(
        ["git", "describe", "--always", "--dirty=+", "--exclude=*"],  # noqa: S607 - whichever git there is
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout.strip()
