"""Errors of `make bench-debian13` where Debian 13 cannot be had. (To make it takes minutes: no test of this suite.)"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "bench" / "debian13.sh"
UTILITIES = {"id": "echo 0", "unshare": "exit 0", "chroot": "exit 0"}


@pytest.mark.parametrize(
    ("programs", "said"),
    [
        ({"id": "echo 1000"}, "root is needed"),
        ({}, "debootstrap is not installed: apt-get install debootstrap"),
        ({"debootstrap": "exit 0", "unshare": "exit 1"}, "this machine allows no mounts of its own"),
        ({"debootstrap": "echo E: no such mirror; exit 1"}, "E: no such mirror"),
    ],
)
def test_what_is_missing_is_told(programs: dict[str, str], said: str, tmp_path: Path) -> None:
    for name, text in (UTILITIES | programs).items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    for name in ("sh", "dirname", "mkdir", "rm", "tail"):
        (tmp_path / name).symlink_to(shutil.which(name) or name)
    done = subprocess.run(
        [tmp_path / "sh", SCRIPT, "data", "true"],
        cwd=tmp_path, env={"PATH": str(tmp_path)},
        capture_output=True, text=True, timeout=20, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert f"bench-debian13: {said}" in done.stderr or done.stderr.endswith(f": {said}\n")
    assert not (tmp_path / "data" / "debian13-root").exists()
