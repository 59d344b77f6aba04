"""tlsproxy as it ships: its compiled wheel in a venv of its own, built once for each state of the sources."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import venv
from collections.abc import Callable
from pathlib import Path
from typing import Final

from bench.errors import AbsentError

_ROOT: Final = Path(__file__).parent.parent
_FILES: Final = ("pyproject.toml", "setup.py", "constraints.txt", "README.md", "LICENSE")
_TIMEOUT: Final = 1800.0


def interpreter(directory: Path) -> Path:
    """Python of the venv below ``directory``. Raises AbsentError where there is none, or one of other sources."""
    if not _stamp(directory).exists():
        raise AbsentError("it is not compiled: python -m bench compile")
    if _stamp(directory).read_text() != _digest(_ROOT):
        raise AbsentError("what is compiled is of other sources: python -m bench compile")
    return _python(directory)


def compile_form(directory: Path, say: Callable[[str], None]) -> None:
    """Builds the venv unless it is there. Raises AbsentError, with the reason, where it cannot be."""
    try:
        interpreter(directory)
    except AbsentError:
        say("compiling tlsproxy: some minutes, once for each state of the sources")
    else:
        return
    _stamp(directory).unlink(missing_ok=True)
    digest = _digest(_ROOT)  # of before: sources may change meanwhile
    with tempfile.TemporaryDirectory() as place:
        wheel = _wheel(Path(place))
        venv.create(directory / "compiled", with_pip=True, clear=True)
        _pip(_python(directory), "install", "--constraint", str(_ROOT / "constraints.txt"), str(wheel))
    if not list((directory / "compiled").glob("lib/python*/site-packages/tlsproxy/**/*.so")):
        raise AbsentError("the wheel has no compiled module")
    _stamp(directory).write_text(digest)


def _wheel(place: Path) -> Path:
    """Made of a copy: leftovers of a build would be imported from the checkout."""
    shutil.copytree(_ROOT / "tlsproxy", place / "source/tlsproxy", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    for path in _files(_ROOT):
        shutil.copy(path, place / "source")
    _pip(Path(sys.executable), "wheel", "--no-deps", "--wheel-dir", str(place), str(place / "source"))
    return next(place.glob("*.whl"))


def _pip(python: Path, *arguments: str) -> None:
    command = [str(python), "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments]
    environment = os.environ | {"TLSPROXY_COMPILED": "yes"}
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT, check=False, env=environment)
    except subprocess.TimeoutExpired:
        raise AbsentError(f"it cannot be compiled: no end in {_TIMEOUT:.0f} s") from None
    if done.returncode:
        raise AbsentError(f"it cannot be compiled: {(done.stderr + done.stdout).strip()[-300:]}")


def _files(root: Path) -> list[Path]:
    return [path for name in _FILES for path in root.glob(name)]


def _stamp(directory: Path) -> Path:
    return directory / "compiled.sources"


def _python(directory: Path) -> Path:
    return directory / "compiled" / "bin" / "python"


def _digest(root: Path) -> str:
    """SHA-256 over the files of the wheel, and the version of the Python that it is for."""
    digest = hashlib.sha256(sys.version.encode())
    sources = (path for path in (root / "tlsproxy").rglob("*") if path.suffix in {".py", ".lua", ".html", ".css"})
    for path in sorted([*sources, *_files(root)]):
        digest.update(f"{path.relative_to(root)}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()
