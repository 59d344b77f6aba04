"""Notifications to systemd (sd_notify(3)) from the main process.

Without NOTIFY_SOCKET nothing is sent. READY: every listener accepts. RELOADING lasts until the result of a reload,
which the status then has. After STOPPING there is no READY any more.
"""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import MutableMapping
from typing import Final

from tlsproxy.service.reload_result import ReloadResult
from tlsproxy.text import printable, rfc3339

_SEND_DEADLINE: Final = 1.0
"""Seconds for systemd to make room for a message."""
_SERVING: Final = "serving"
"""The headline that a status does without."""
_LONGEST: Final = 400
"""Most characters of a status, which `systemctl status` shows on one line."""

_log = logging.getLogger(__name__)


class Notifier:
    """``watchdog`` is the number of seconds within which systemd expects the next :meth:`alive`; 0 for none."""

    def __init__(self, address: str = "", watchdog: float = 0.0) -> None:
        """``address`` is a path, or begins with `@` for an abstract socket; empty for no notifications."""
        self._address = f"\0{address[1:]}" if address.startswith("@") else address
        self._serving = ""
        self._headline = _SERVING
        self._result: ReloadResult | None = None
        self._stopping = False
        self.watchdog = watchdog if address else 0.0

    @classmethod
    def of(cls, environ: MutableMapping[str, str], pid: int) -> Notifier:
        """By systemd's variables for the process ``pid``, which are removed from ``environ``, as no child notifies."""
        address, usec, watchdog_pid = (
            environ.pop(name, "") for name in ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")
        )
        if address and address[0] not in "/@":
            _log.warning("NOTIFY_SOCKET is neither a path nor an abstract socket: nothing is sent to systemd")
            address = ""
        for_us = usec.isdecimal() and watchdog_pid in {"", str(pid)}
        return cls(address, int(usec) / 1e6 if for_us else 0.0)

    def serving(self, listeners: str, result: ReloadResult) -> None:
        """READY: every listener accepts. ``listeners`` is a text for people."""
        self._serving = listeners
        self.reloaded(result)

    def reloading(self) -> None:
        if self._serving and not self._stopping:
            self._send("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}", _status("reloading"))

    def reloaded(self, result: ReloadResult) -> None:
        """READY again, whatever the result: a failed reload has changed nothing."""
        self._result = result
        if self._serving and not self._stopping:
            self._send("READY=1", self._status)

    def headline(self, text: str) -> None:
        """The verdict on readiness: its status is sent if it is a new one."""
        if text != self._headline:
            self._headline = text
            if self._serving and not self._stopping:
                self._send(self._status)

    @property
    def _status(self) -> str:
        verdict = [] if self._headline == _SERVING else [self._headline]
        result = [] if self._result is None else [_summary(self._result)]
        return _status("; ".join([*verdict, *result, self._serving]))

    def stopping(self) -> None:
        self._stopping = True
        self._send("STOPPING=1", _status("draining"))

    def alive(self) -> None:
        self._send("WATCHDOG=1")

    def _send(self, *lines: str) -> None:
        if not self._address:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
                sock.settimeout(_SEND_DEADLINE)
                sock.connect(self._address)
                sock.sendall("\n".join(lines).encode())
        except OSError as error:
            _log.error("systemd could not be notified (%s): %s", lines[0], error)


def _summary(result: ReloadResult) -> str:
    when = rfc3339(result.when)
    if result.result == "held":
        return f"generation {result.generation} goes on, reload ({result.trigger}) of {when} {result.error}"
    if result.result == "failed":
        return f"generation {result.generation} goes on, reload ({result.trigger}) FAILED at {when}: {result.error}"
    if result.result == "partial":
        return f"generation {result.generation} since {when} ({result.trigger}), NOT ALL of it: {result.error}"
    return f"generation {result.generation} since {when} ({result.trigger})"


def _status(text: str) -> str:
    """A status on one line, since each line is an assignment: a file name in an error may hold a line break."""
    line = printable(text)
    return f"STATUS={line if len(line) <= _LONGEST else line[: _LONGEST - 1] + '…'}"
