"""Output of the log that nobody waits for: lines are written by a thread, in order.

A pipe that is not read, or a terminal that is stopped, would hold the event loop, and with it all clients, with the
first line that finds no room.
"""

from __future__ import annotations

import logging
import os
import queue
import select
from threading import Condition, Thread
from typing import Final

MOST: Final = 4 << 20
"""Bytes that may wait. Further lines are lost, and their number is told once there is room again."""
LAST: Final = 2.0
"""Seconds for what waits at the end of the process."""


class Output(logging.Handler):
    """Handler for a descriptor, until :meth:`close`. A line for which there is no reader any more is lost.

    ``_put`` and ``_written`` are bytes so far, ``_lost`` lines that are not told of yet.
    """

    def __init__(self, descriptor: int) -> None:
        super().__init__()
        self._descriptor = descriptor
        self._lines: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self._written_more = Condition()
        self._put = self._written = self._lost = 0
        Thread(target=self._write, name="log", daemon=True).start()

    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = f"{self.format(record)}\n".encode("utf-8", "backslashreplace")
        except Exception:  # noqa: BLE001 - as the standard library's handlers
            self.handleError(record)
            return
        waiting = self._put - self._written
        if waiting + len(line) > MOST:
            self._lost += 1
            return
        if self._lost and waiting < MOST // 2:
            lost, self._lost = self._lost, 0
            text = "%d lines of the log are lost: nobody read those before them in time"
            self.emit(logging.LogRecord(__name__, logging.ERROR, __file__, 0, text, (lost,), None))
        self._put += len(line)
        self._lines.put(line)

    def flush(self) -> None:
        """Wait until all is written, for at most :data:`LAST` seconds."""
        wanted = self._put
        with self._written_more:
            self._written_more.wait_for(lambda: self._written >= wanted, LAST)

    def close(self) -> None:
        self._lines.put(b"")
        super().close()

    def _write(self) -> None:
        while line := self._lines.get():
            self._write_line(line)
            with self._written_more:
                self._written += len(line)
                self._written_more.notify_all()

    def _write_line(self, line: bytes) -> None:
        left = memoryview(line)
        while left:
            try:
                left = left[os.write(self._descriptor, left) :]
            except BlockingIOError:  # another process has made it so
                select.select([], [self._descriptor], [])
            except OSError:
                return
