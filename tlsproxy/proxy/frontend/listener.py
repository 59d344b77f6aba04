"""Accept loops, one for each address.

If the process has no descriptors left, accepting pauses instead of spinning.
"""

from __future__ import annotations

import asyncio
import errno
import os
import shlex
import socket
import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Final, Self

from tlsproxy.config.endpoints import Endpoint, UnixSocket
from tlsproxy.config.listeners import Listening
from tlsproxy.config.networks import unix_peer
from tlsproxy.proxy.core.gateway import Gateway
from tlsproxy.proxy.frontend.connections import Connections
from tlsproxy.proxy.frontend.unix_socket import SocketFile, bind_unix
from tlsproxy.proxy.frontend.watchdog_probe import ProbeConnection

BACKLOG: Final = 4096
BATCH: Final = 32
"""Connections accepted in one iteration of the loop. A worker among several accepts one at a time: while it is busy
with that one, another worker accepts the next."""
REST: Final = 0.2
"""Seconds without accepting after an error, most often EMFILE."""


def bind(endpoint: Endpoint | UnixSocket, mode: int) -> ListeningSocket:
    """Raises OSError, whose text names the address and, for a taken one, the way to its owner.

    ``mode`` is that of a unix socket at a path.
    """
    try:
        if isinstance(endpoint, UnixSocket):
            return ListeningSocket(*bind_unix(endpoint, mode, BACKLOG))
        sock = bound_socket(endpoint.bound, endpoint.port)
        try:
            sock.listen(BACKLOG)
        except OSError:
            sock.close()
            raise
    except OSError as error:
        owner = f"; `{_owner(endpoint)}` names its process" if error.errno == errno.EADDRINUSE else ""
        raise OSError(f"{endpoint}: {error.strerror}{owner}") from error
    return ListeningSocket(sock)


def _owner(endpoint: Endpoint | UnixSocket) -> str:
    """The command that names who listens there."""
    if isinstance(endpoint, UnixSocket):
        return f"ss -lxp src {shlex.quote(endpoint.name)}"
    return f"ss -ltnp 'sport = :{endpoint.port}'"


def bound_socket(host: str, port: int) -> socket.socket:
    """The same before it listens. Raises OSError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family is socket.AF_INET6 and host == "::":
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        sock.setblocking(False)
        sock.bind((host, port))
    except OSError:
        sock.close()
        raise
    return sock


@dataclass(frozen=True, slots=True)
class ListeningSocket:
    """``file`` is that of a unix socket that we have bound at a path."""

    sock: socket.socket
    file: SocketFile | None = None

    def close(self) -> None:
        self.sock.close()
        if self.file is not None:
            self.file.remove()


def address_of(sock: socket.socket) -> Endpoint | UnixSocket:
    """Address of our own end."""
    address: tuple[str, int] | str | bytes = sock.getsockname()
    if isinstance(address, tuple):
        return Endpoint(*address[:2])
    # A name in the abstract namespace comes as bytes, and begins with NUL.
    return UnixSocket(f"@{os.fsdecode(address[1:])}" if isinstance(address, bytes) else address)


@dataclass(frozen=True, slots=True)
class Bound:
    """Listening socket and its configuration. ``address`` is the bound one, with the port that the kernel chose."""

    sock: socket.socket
    where: Listening
    address: str

    @classmethod
    def of(cls, sock: socket.socket, where: Listening) -> Self:
        return cls(sock, where, str(address_of(sock)))


Address = tuple[str, int]
"""Address of a peer, without the flow and scope that IPv6 adds; over a unix socket its user and process."""

_CREDENTIALS: Final = struct.Struct("3i")
"""Linux' `struct ucred`: process, user, group, as they were when the peer connected (unix(7))."""


def peer_of(sock: socket.socket, address: object) -> Address:
    """Address of the peer of an accepted socket, by accept's own ``address``."""
    if isinstance(address, tuple):
        return address[:2]
    credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    pid, uid, _ = _CREDENTIALS.unpack(credentials)
    return unix_peer(uid), pid


class Acceptor:
    """Accepts on one socket until :meth:`stop`, at most ``batch`` connections in an iteration of the loop.

    ``accepted`` takes each connection. ``trouble``: the error for which it pauses, else empty. ``failed`` is called for
    each such error, ``changed`` when trouble begins or ends.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        sock: socket.socket,
        batch: int,
        accepted: Callable[[socket.socket, Address], None],
        failed: Callable[[], None],
        changed: Callable[[], object],
    ) -> None:
        self._loop = loop
        self._sock = sock
        self._batch = batch
        self._accepted = accepted
        self._failed = failed
        self._changed = changed
        self._accepting = False
        self.trouble = ""
        self._resume()

    def _resume(self) -> None:
        if self._sock.fileno() >= 0:
            self._accepting = True
            self._loop.add_reader(self._sock.fileno(), self._accept)

    def _pause(self) -> None:
        self._accepting = False
        self._loop.remove_reader(self._sock.fileno())

    def _accept(self) -> None:
        for _ in range(self._batch):
            try:
                sock, address = self._sock.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                self._note("")  # accept(2) takes a descriptor first, so there is one
                return
            except OSError as error:
                self._failed()
                reason = error.strerror or str(error)
                self._note(f"cannot accept connections on {address_of(self._sock)} for the moment: {reason}")
                self._pause()
                self._loop.call_later(REST, self._resume)
                return
            self._accepted(sock, peer_of(sock, address))

    def _note(self, trouble: str) -> None:
        if trouble != self.trouble:
            self.trouble = trouble
            self._changed()

    def stop(self) -> None:
        """Accepts no more. The kernel refuses connections in the backlog."""
        if self._accepting:
            self._pause()
        self._sock.close()


class Listeners:
    """All listeners. Their ``connections`` outlive :meth:`stop`."""

    def __init__(self, gateway: Gateway, connections: Connections, bound: Iterable[Bound], batch: int) -> None:
        self.connections = connections
        self._gateway = gateway
        failed, changed = gateway.metrics.accept_error, gateway.impairments.notice
        self._all = [
            Acceptor(gateway.loop, one.sock, batch, partial(self._accepted, one.where), failed, changed)
            for one in bound
        ]

    def _accepted(self, where: Listening, sock: socket.socket, address: Address) -> None:
        if address == self._gateway.probe:
            self._gateway.probe = None
            ProbeConnection(self._gateway, sock, where)
        else:
            self.connections.admit(sock, (address[0].removeprefix("::ffff:"), address[1]), where)

    @property
    def trouble(self) -> str:
        """Error for which one of them pauses, empty if none does."""
        return next((one.trouble for one in self._all if one.trouble), "")

    def stop(self) -> None:
        for listener in self._all:
            listener.stop()
