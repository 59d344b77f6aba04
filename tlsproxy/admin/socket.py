"""The admin server's listening socket: loopback, or a unix socket with mode 0600.

A connected client may reload and read the status, so no other address is bound, whatever the configuration says.
"""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from tlsproxy.config.endpoints import Endpoint, admin_endpoint
from tlsproxy.errors import TlsproxyError

_UNIX: Final = "unix:"
_BACKLOG: Final = 64
_LONGEST_PATH: Final = 107
"""Bytes of a unix socket's path on Linux, without the final NUL (unix(7))."""
_NO_SOCKET: Final = "exists and is not a socket; remove it, or choose another path"


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
    endpoint = _endpoint(listen)
    try:
        if isinstance(endpoint, Endpoint):
            return _loopback(endpoint)
        return _unix(listen, Path(endpoint))
    except OSError as error:
        raise AdminAddressError(listen, error.strerror or str(error)) from error


def check_path(path: str) -> None:
    """Check that a unix socket can be made there, if it is free. Raises AdminAddressError."""
    listen = f"{_UNIX}{path}"
    try:
        _check_path(listen, Path(path))
    except OSError as error:
        raise AdminAddressError(listen, error.strerror or str(error)) from error


def _endpoint(listen: str) -> Endpoint | str:
    try:
        return admin_endpoint(listen)
    except ValueError as error:
        raise AdminAddressError(listen, str(error)) from error


def _loopback(endpoint: Endpoint) -> AdminSocket:
    address = ipaddress.ip_address("127.0.0.1" if endpoint.host == "localhost" else endpoint.host)
    family = socket.AF_INET6 if isinstance(address, ipaddress.IPv6Address) else socket.AF_INET
    bound = socket.create_server((str(address), endpoint.port), family=family, backlog=_BACKLOG)
    return AdminSocket(bound, str(Endpoint(str(address), bound.getsockname()[1])))


def _check_path(listen: str, path: Path) -> None:
    if not path.parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, f"there is no directory {path.parent}")
    if len(os.fsencode(path)) > _LONGEST_PATH:
        raise AdminAddressError(listen, f"a path of a unix socket has at most {_LONGEST_PATH} bytes")
    if os.path.lexists(path) and not stat.S_ISSOCK(path.lstat().st_mode):
        raise AdminAddressError(listen, _NO_SOCKET)
    if not os.access(path.parent, os.W_OK | os.X_OK, effective_ids=True):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


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
        raise AdminAddressError(listen, _NO_SOCKET)
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
