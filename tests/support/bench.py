"""A directory for the bench in which nothing is installed from an index: those peers are absent."""

from __future__ import annotations

from pathlib import Path

from bench.venv import PACKAGES


def installed(directory: Path) -> Path:
    """What the bench takes for its venv, with every package in it."""
    site_packages = directory / "venv" / "lib" / "python3" / "site-packages"
    for package in PACKAGES:
        (site_packages / f"{package.replace('-', '_')}-0.dist-info").mkdir(parents=True)
    python = directory / "venv" / "bin" / "python"
    python.parent.mkdir()
    python.touch()
    return directory
