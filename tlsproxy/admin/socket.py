"""The admin server's listening socket: loopback, or a unix socket with mode 0600.

A connected client may reload and read the status, so no other address is bound, whatever the configuration says.
"""

from __future__ import annotations

import ipaddress
import os
import socket
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from tlsproxy.errors import TlsproxyError

_UNIX: Final = "unix:"
_BACKLOG: Final = 64


class AdminAddressError(TlsproxyError):
    """An address of `admin.listen` that cannot, or may not, be bound."""

    def __init__(self, listen: str, text: str) -> None:
        super().__init__(f"admin.listen {listen}: {text}")


@dataclass(slots=True)
class AdminSocket:
    """``address`` is the bound one, in the form of `admin.listen`."""

    socket: socket.socket
    address: str
    _path: Path | None = None
    _created: os.stat_result | None = field(default=None, repr=False)

    def close(self) -> None:
        """Close, and remove the unix socket unless another process has replaced it."""
        self.socket.close()
        if self._path is None or self._created is None:
            return
        try:
            if os.path.samestat(self._path.lstat(), self._created):
                self._path.unlink()
        except FileNotFoundError:
            return


def listening_socket(listen: str) -> AdminSocket:
    """A bound and listening socket. Raises AdminAddressError."""
    try:
        return _unix(listen, Path(listen.removeprefix(_UNIX))) if listen.startswith(_UNIX) else _loopback(listen)
    except OSError as error:
        raise AdminAddressError(listen, error.strerror or str(error)) from error


def _loopback(listen: str) -> AdminSocket:
    host, _, port = listen.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    try:
        address = ipaddress.ip_address("127.0.0.1" if host == "localhost" else host)
        number = int(port)
    except ValueError as error:
        raise AdminAddressError(listen, "is neither unix:/path nor host:port") from error
    if not address.is_loopback:
        raise AdminAddressError(listen, "is not a loopback address; use 127.0.0.1, [::1] or unix:/path")
    if isinstance(address, ipaddress.IPv6Address):
        bound = socket.create_server((str(address), number), family=socket.AF_INET6, backlog=_BACKLOG)
        return AdminSocket(bound, f"[{address}]:{bound.getsockname()[1]}")
    bound = socket.create_server((str(address), number), backlog=_BACKLOG)
    return AdminSocket(bound, f"{address}:{bound.getsockname()[1]}")


def _unix(listen: str, path: Path) -> AdminSocket:
    _remove_stale(listen, path)
    bound = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        bound.bind(str(path))
        # No client can connect before `listen`, so the mode is in place in time.
        path.chmod(0o600)
        created = path.lstat()
        bound.listen(_BACKLOG)
    except BaseException:
        bound.close()
        raise
    return AdminSocket(bound, f"{_UNIX}{path}", path, created)


def _remove_stale(listen: str, path: Path) -> None:
    """Remove a socket that a crash has left: one without a listener."""
    try:
        found = path.lstat()
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(found.st_mode):
        raise AdminAddressError(listen, "exists and is not a socket; remove it, or choose another path")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        # A full backlog raises BlockingIOError: there is a listener.
        probe.setblocking(False)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
            return
        except BlockingIOError:
            pass
    raise AdminAddressError(listen, "another process is listening there")
