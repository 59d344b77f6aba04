"""The unit as shipped: systemd understands every line of it, and finds little to expose."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

UNIT = Path(__file__).parents[2] / "systemd" / "tlsproxy.service"
needs_systemd = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs Debian's systemd package")


@pytest.fixture
def unit(tmp_path: Path) -> Path:
    """With a program that is there: the installed one is at /opt."""
    copy = tmp_path / UNIT.name
    copy.write_text(re.sub(r"^ExecStart=\S+", "ExecStart=/bin/true", UNIT.read_text(), flags=re.MULTILINE))
    return copy


@needs_systemd
def test_systemd_understands_every_line(unit: Path) -> None:
    result = subprocess.run(["systemd-analyze", "verify", str(unit)], capture_output=True, text=True, check=False)
    # It exits with 0 on keys that it does not know: what it says is what counts.
    assert (result.returncode, result.stderr) == (0, "")


@needs_systemd
def test_systemd_says_so_where_a_line_is_wrong(unit: Path) -> None:
    unit.write_text(unit.read_text().replace("NoNewPrivileges=", "NoNewPrivilege="))
    result = subprocess.run(["systemd-analyze", "verify", str(unit)], capture_output=True, text=True, check=False)
    assert "NoNewPrivilege" in result.stderr


@needs_systemd
def test_the_exposure_is_small(unit: Path) -> None:
    result = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--threshold=15", "--no-pager", str(unit)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout


def test_a_refused_configuration_waits_for_a_person() -> None:
    assert "RestartPreventExitStatus=2" in UNIT.read_text()
