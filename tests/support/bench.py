"""A directory for the bench in which nothing is installed from an index: those peers are absent."""

from __future__ import annotations

from pathlib import Path

from bench.peers import PEERS
from bench.venv import PLOTS


def installed(directory: Path) -> Path:
    """What the bench takes for its venv, with every package in it."""
    site_packages = directory / "venv" / "lib" / "python3" / "site-packages"
    for package in {PLOTS, *(peer.package for peer in PEERS.values() if peer.package)}:
        (site_packages / f"{package.replace('-', '_')}-0.dist-info").mkdir(parents=True)
    python = directory / "venv" / "bin" / "python"
    python.parent.mkdir()
    python.touch()
    return directory
