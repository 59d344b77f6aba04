"""What a contender is to the runner."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bench.errors import AbsentError
from bench.site import Site

WITH_TWO = frozenset({"get", "search-inspected", "handshake", "grpc"})
"""What is measured with two workers as well."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where one contender runs: a directory of its own, the ports that it is to serve, and what is behind it."""

    directory: Path
    site: Site
    http: int
    grpc: int
    tcp: int
    upstream_http: int
    upstream_grpc: int
    workers: int = 1

    def write(self, name: str, text: str) -> Path:
        path = self.directory / name
        path.write_text(text)
        return path


@dataclass(frozen=True, slots=True)
class Program:
    path: str
    version: str


@dataclass(frozen=True, slots=True)
class Peer:
    """``serves``: ``http``, ``grpc``, ``tcp``. ``locate`` is given the bench's own venv and raises AbsentError.

    ``command`` writes the configuration and gives the command line. ``reload`` is the signal after which the process
    reads its certificates anew, 0 where it notices by itself; None: this bench has no way to tell it.
    """

    name: str
    serves: frozenset[str]
    locate: Callable[[Path], Program]
    command: Callable[[Program, Place], list[str]]
    note: str = ""
    reload: int | None = None
    only: frozenset[str] = frozenset()
    """The workloads that it is for, where it is a variant of another peer."""
    workers: int = 1
    package: str = ""
    """PyPI's, where it is from there."""
    behind: bool = False
    """Whether it serves the proxy that is measured, and so runs on the upstream's core."""
    start_timeout: float = 20.0
    """Seconds until it serves."""


def debian(program: str, package: str, *version: str) -> Callable[[Path], Program]:
    """A program of a Debian package; ``version`` are the arguments that make it tell its own."""

    def locate(_venv: Path) -> Program:
        path = shutil.which(program, path="/usr/sbin:/usr/bin:/sbin:/bin:/usr/local/sbin:/usr/local/bin")
        if path is None:
            raise AbsentError(f"{program} is not installed: apt-get install {package}")
        return Program(path, told_version(path, *version))

    return locate


def told_version(path: str, *arguments: str) -> str:
    done = subprocess.run([path, *arguments], capture_output=True, text=True, check=False, timeout=20)
    told = (done.stdout + done.stderr).replace(path, "")
    found = re.search(r"\d+\.\d+(\.\d+)*", told)
    if found is None:
        raise AbsentError(f"{path} does not tell its version: {told[:200]}")
    return found[0]
