"""The admin server's listening socket: loopback, or a unix socket with mode 0600.

A connected client may reload and read the status, so no other address is bound, whatever the configuration says.
"""

from __future__ import annotations

import ipaddress
import socket
from dataclasses import dataclass
from typing import Final

from tlsproxy.config.endpoints import Endpoint, UnixSocket, admin_endpoint
from tlsproxy.errors import TlsproxyError
from tlsproxy.proxy.frontend.unix_socket import SocketFile, bind_unix, check_unix

_BACKLOG: Final = 64
_MODE: Final = 0o600


class AdminAddressError(TlsproxyError):
    """An address of `admin.listen` that cannot, or may not, be bound."""

    def __init__(self, listen: str, text: str) -> None:
        super().__init__(f"admin.listen {listen}: {text}")


@dataclass(frozen=True, slots=True)
class AdminSocket:
    """``address`` is the bound one, in the form of `admin.listen`."""

    socket: socket.socket
    address: str
    file: SocketFile | None = None

    def close(self) -> None:
        """Close, and remove the unix socket unless another process has replaced it."""
        self.socket.close()
        if self.file is not None:
            self.file.remove()


def listening_socket(listen: str) -> AdminSocket:
    """A bound and listening socket. Raises AdminAddressError."""
    try:
        endpoint = admin_endpoint(listen)
    except ValueError as error:
        raise AdminAddressError(listen, str(error)) from error
    try:
        if isinstance(endpoint, Endpoint):
            return _loopback(endpoint)
        sock, file = bind_unix(endpoint, _MODE, _BACKLOG)
    except OSError as error:
        raise AdminAddressError(listen, error.strerror or str(error)) from error
    return AdminSocket(sock, str(endpoint), file)


def check_place(endpoint: UnixSocket) -> None:
    """Check that a unix socket can be made there, if it is free. Raises AdminAddressError."""
    try:
        check_unix(endpoint)
    except OSError as error:
        raise AdminAddressError(str(endpoint), error.strerror or str(error)) from error


def _loopback(endpoint: Endpoint) -> AdminSocket:
    address = ipaddress.ip_address("127.0.0.1" if endpoint.host == "localhost" else endpoint.host)
    family = socket.AF_INET6 if isinstance(address, ipaddress.IPv6Address) else socket.AF_INET
    bound = socket.create_server((str(address), endpoint.port), family=family, backlog=_BACKLOG)
    return AdminSocket(bound, str(Endpoint(str(address), bound.getsockname()[1])))
