"""The other end of NOTIFY_SOCKET: what systemd hears of a service."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager

from support.gateway import DEADLINE

Message = dict[str, str]


class Systemd:
    """``address`` is a path, or an abstract socket's `@name`."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._sock.bind(f"\0{address[1:]}" if address.startswith("@") else address)
        self._sock.settimeout(DEADLINE)

    def close(self) -> None:
        self._sock.close()

    def next(self) -> Message:
        lines = self._sock.recv(65536).decode().split("\n")
        return dict(line.split("=", 1) for line in lines)

    def silent(self) -> bool:
        """Whether nothing more has come. Only for messages whose sender has ended, or would have sent them by now."""
        self._sock.setblocking(False)
        try:
            self._sock.recv(65536)
        except BlockingIOError:
            return True
        finally:
            self._sock.settimeout(DEADLINE)
        return False


@contextmanager
def listening(address: str) -> Iterator[Systemd]:
    systemd = Systemd(address)
    try:
        yield systemd
    finally:
        systemd.close()
