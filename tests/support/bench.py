"""What tests of the bench share: its programs, and a directory in which nothing is installed from an index."""

from __future__ import annotations

import fcntl
import os
import shutil
from pathlib import Path

import pytest

from bench.build import build, missing
from bench.errors import CannotBuildError
from bench.peers import PEERS
from bench.venv import PLOTS


def built(factory: pytest.TempPathFactory) -> Path:
    """The directory of the load generator and the upstream, which all processes of a run share."""
    own = factory.getbasetemp()
    directory = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "bench-build"
    directory.mkdir(exist_ok=True)
    with (directory / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            build(directory)
        except CannotBuildError as error:
            if missing() is None:
                raise
            pytest.skip(str(error))
    return directory


def installed(directory: Path, programs: Path) -> Path:
    """A directory for the bench with these, and what it takes for its venv: peers from there are absent."""
    shutil.copytree(programs, directory / "build")
    site_packages = directory / "venv" / "lib" / "python3" / "site-packages"
    for package in {PLOTS, *(peer.package for peer in PEERS.values() if peer.package)}:
        (site_packages / f"{package.replace('-', '_')}-0.dist-info").mkdir(parents=True)
    python = directory / "venv" / "bin" / "python"
    python.parent.mkdir()
    python.touch()
    return directory
