"""The bench's own venv: peers from PyPI and matplotlib, installed when it runs, and never dependencies of tlsproxy."""

from __future__ import annotations

import subprocess
import venv
from collections.abc import Iterable
from pathlib import Path

from bench.errors import AbsentError

PLOTS = "matplotlib"
_TIMEOUT = 300.0


def prepare(directory: Path, packages: Iterable[str]) -> dict[str, str]:
    """Installs what is not there yet; for each package that could not be, the reason."""
    if not (directory / "bin" / "python").exists():
        venv.create(directory, with_pip=True)
    return {package: reason for package in packages if (reason := _install(directory, package))}


def _install(directory: Path, package: str) -> str:
    if _site_packages(directory, package.replace("-", "_") + "-*.dist-info"):
        return ""
    command = [
        str(directory / "bin" / "python"),
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
        package,
    ]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT, check=False)
    except subprocess.TimeoutExpired:
        return f"pip install {package}: no answer in {_TIMEOUT:.0f} s"
    return "" if not done.returncode else f"pip install {package}: {done.stderr.strip().splitlines()[-1]}"


def _site_packages(directory: Path, pattern: str) -> list[Path]:
    return sorted(directory.glob(f"lib/python*/site-packages/{pattern}"))


def wheel_program(directory: Path, package: str, pattern: str) -> str:
    """The program at ``pattern`` below site-packages. Raises AbsentError."""
    found = [path for path in _site_packages(directory, pattern) if path.is_file()]
    if not found:
        raise AbsentError(f"{package} is not installed from PyPI")
    return str(found[0])
