"""Child processes of the demo, with their output in files. They end with the demo, by their own handles."""

from __future__ import annotations

import os
import subprocess
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

from tlsproxy.errors import TlsproxyError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

Ready = TypeVar("Ready")

START_TIMEOUT = 30.0
_STOP_TIMEOUT = 15.0
_POLL_INTERVAL = 0.02
_SHOWN_OUTPUT = 2000
# Configuration of the user's own gateway, which would override the demo's file.
_NOT_INHERITED = "QDRANT__"


class ProgramError(TlsproxyError):
    """A program did not start, or ended too early. The text ends with its last output."""


class Program:
    """A running process. ``output`` is the file of its standard output, ``log`` that of its standard error."""

    def __init__(self, name: str, process: subprocess.Popen[bytes], output: Path, log: Path) -> None:
        self.name = name
        self.output = output
        self.log = log
        self._process = process

    def wait_until(self, ready: Callable[[], Ready | None]) -> Ready:
        """The first result of ``ready`` that is not None. Raises ProgramError if the program ends or is late."""
        deadline = time.monotonic() + START_TIMEOUT
        while (value := ready()) is None:
            if self._process.poll() is not None:
                raise ProgramError(f"{self.name} ended with {self._process.returncode}: {self._last_words()}")
            if time.monotonic() > deadline:
                raise ProgramError(f"{self.name} was not up after {START_TIMEOUT:g} s: {self._last_words()}")
            time.sleep(_POLL_INTERVAL)
        return value

    def wait(self) -> int:
        """Wait for its end."""
        return self._process.wait()

    def stop(self) -> None:
        """End it: by SIGTERM first, so that the gateway writes its audit log."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        self._process.terminate()
        try:
            self._process.wait(_STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _last_words(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace")[-_SHOWN_OUTPUT:].strip() or "it said nothing"


@contextmanager
def running(name: str, arguments: Sequence[str], logs: Path) -> Iterator[Program]:
    """A program during the context, with ``NAME.out`` and ``NAME.log`` in ``logs``.

    Its standard input is a pipe, which closes with this process. It has a session of its own, so that Ctrl-C reaches
    the demo alone, which stops its programs in order.
    """
    environment = {name: value for name, value in os.environ.items() if not name.startswith(_NOT_INHERITED)}
    output, log = logs / f"{name}.out", logs / f"{name}.log"
    with output.open("wb") as out, log.open("wb") as err:
        process = subprocess.Popen(  # noqa: S603 - our own modules, by sys.executable, without a shell
            arguments, stdin=subprocess.PIPE, stdout=out, stderr=err, env=environment, start_new_session=True
        )
    program = Program(name, process, output, log)
    try:
        yield program
    finally:
        program.stop()
