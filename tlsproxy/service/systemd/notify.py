"""What systemd is told of the service (sd_notify(3)), by the one process that it calls the main one.

Without NOTIFY_SOCKET nothing is sent. READY says that every listener accepts; a reload is RELOADING until its verdict,
and the status has that verdict; nothing is READY any more once it is STOPPING.
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
_LONGEST: Final = 400
"""Characters of a status: `systemctl status` shows it on one line."""

_log = logging.getLogger(__name__)


class Notifier:
    """``watchdog`` is the number of seconds within which :meth:`alive` is expected again and again; 0 for never."""

    def __init__(self, address: str = "", watchdog: float = 0.0) -> None:
        """``address`` is a path, or begins with `@` for an abstract socket; empty for nobody to tell."""
        self._address = f"\0{address[1:]}" if address.startswith("@") else address
        self._serving = ""
        self._stopping = False
        self.watchdog = watchdog if address else 0.0

    @classmethod
    def of(cls, environ: MutableMapping[str, str], pid: int) -> Notifier:
        """What systemd asks of the process ``pid``. Its words are taken out of ``environ``: no child speaks for us."""
        address, usec, whom = (environ.pop(name, "") for name in ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"))
        if address and address[0] not in "/@":
            _log.warning("NOTIFY_SOCKET is neither a path nor an abstract socket: nobody is notified")
            address = ""
        asked = usec.isdecimal() and whom in {"", str(pid)}
        return cls(address, int(usec) / 1e6 if asked else 0.0)

    def serving(self, what: str, verdict: ReloadResult) -> None:
        """Every listener accepts. ``what`` is served, and where, for a person to read."""
        self._serving = what
        self.reloaded(verdict)

    def reloading(self) -> None:
        if self._serving and not self._stopping:
            self._send("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}", _status("reloading"))

    def reloaded(self, verdict: ReloadResult) -> None:
        """Ready again, whatever came of it: a reload that failed has changed nothing."""
        if self._serving and not self._stopping:
            self._send("READY=1", _status(f"{_told(verdict)}; {self._serving}"))

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
            _log.error("systemd was not told %s: %s", lines[0], error)


def _told(verdict: ReloadResult) -> str:
    when = rfc3339(verdict.when)
    if verdict.result == "held":
        return f"generation {verdict.generation} goes on, reload ({verdict.trigger}) of {when} {verdict.error}"
    if verdict.result == "failed":
        return f"generation {verdict.generation} goes on, reload ({verdict.trigger}) FAILED at {when}: {verdict.error}"
    if verdict.result == "partial":
        return f"generation {verdict.generation} since {when} ({verdict.trigger}), NOT ALL of it: {verdict.error}"
    return f"generation {verdict.generation} since {when} ({verdict.trigger})"


def _status(text: str) -> str:
    """On one line: a line of its own would be another assignment, and an error's text may name any file."""
    line = printable(text)
    return f"STATUS={line if len(line) <= _LONGEST else line[: _LONGEST - 1] + '…'}"
