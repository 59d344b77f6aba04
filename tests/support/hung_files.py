"""A gateway whose file system hangs or fails at some paths, as a file server that is gone makes it.

The process is a real one, with threads that are really blocked: its system calls are wrapped before anything of ours is
imported, and ask a plan of the test's at each call.
"""

from __future__ import annotations

import errno
import json
from pathlib import Path

from support.gateway import Gateway

_WRAPPER = """
import os, time

_plan, _open, _read, _close = os.environ["UNANSWERING_PLAN"], os.open, os.read, os.close


def _fate(path):
    descriptor = _open(_plan, os.O_RDONLY)
    try:
        lines = _read(descriptor, 1 << 16).decode().splitlines()
    finally:
        _close(descriptor)
    for line in lines:
        number, _, place = line.partition(" ")
        if path == place or path.startswith(place + "/"):
            return int(number)
    return None


def _wrap(name):
    call = getattr(os, name)

    def wrapped(path=".", *arguments, **more):
        if isinstance(path, (str, os.PathLike)):
            while (number := _fate(os.fspath(path))) == 0:
                time.sleep(0.01)
            if number is not None:
                raise OSError(number, os.strerror(number), path)
        return call(path, *arguments, **more)

    setattr(os, name, wrapped)


for _name in ("open", "stat", "lstat", "readlink", "scandir", "listdir"):
    _wrap(_name)
"""


class Unanswering:
    """``environ`` is for the gateway. A path stands for all that is below it."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir()
        (directory / "sitecustomize.py").write_text(_WRAPPER)
        self._plan = directory / "plan"
        self.answer()
        self.environ = {"PYTHONPATH": str(directory), "UNANSWERING_PLAN": str(self._plan)}

    def answer(self) -> None:
        """All paths again."""
        self._write("")

    def hang(self, *paths: Path) -> None:
        self._write("".join(f"0 {path}\n" for path in paths))

    def fail(self, path: Path, number: int = errno.ESTALE) -> None:
        self._write(f"{number} {path}\n")

    def _write(self, text: str) -> None:
        staged = self._plan.with_suffix(".new")
        staged.write_text(text)
        staged.replace(self._plan)


def inputs(gateway: Gateway) -> str:
    """The part `reload` of `/readyz`, which costs no readiness."""
    code, body = gateway.ask_admin("/readyz")
    assert code == 200, body
    return str(json.loads(body)["parts"]["reload"]).removeprefix("degraded: ")


def wait_for_inputs(gateway: Gateway, begin: str) -> None:
    """Until that part begins so. Each reload that makes it another has a line in the log."""
    while not inputs(gateway).startswith(begin):
        gateway.log.wait(lambda line: "reload (" in line)
