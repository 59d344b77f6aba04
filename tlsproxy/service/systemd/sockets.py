"""Listening sockets: inherited from systemd (sd_listen_fds(3)) where there are any, else our own.

An inherited socket outlives the process: connections in its backlog are served by the next one. It belongs to the
listener with the same address, and its name (`FileDescriptorName=`) must be one of the protocols there, so that two
socket units are not mistaken for each other. One without a listener is an error: its clients would wait for ever.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping, MutableMapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Final

from tlsproxy.config.endpoints import Endpoint, UnixSocket
from tlsproxy.config.listeners import Listening, titles
from tlsproxy.config.positions import dotted
from tlsproxy.errors import TlsproxyError
from tlsproxy.proxy.frontend.listener import Bound, address_of, bind

FIRST: Final = 3
"""SD_LISTEN_FDS_START"""


class InheritedSocketError(TlsproxyError):
    """An inherited socket that fits no listener: socket units and configuration disagree."""


@dataclass(frozen=True, slots=True)
class Inherited:
    """An inherited socket; ``name`` is None if systemd gave no names."""

    sock: socket.socket
    name: str | None

    def __str__(self) -> str:
        name = "" if self.name is None else f" {self.name!r}"
        return f"the inherited socket{name} on {address_of(self.sock)}"


def inherited_sockets(environ: MutableMapping[str, str], pid: int) -> tuple[Inherited, ...]:
    """Sockets that systemd passed to the process ``pid``; children do not inherit them.

    systemd's variables are removed from ``environ``. Raises InheritedSocketError for one that is no listening
    stream socket.
    """
    count, names, listen_pid = (environ.pop(name, "") for name in ("LISTEN_FDS", "LISTEN_FDNAMES", "LISTEN_PID"))
    if listen_pid != str(pid) or not count.isdecimal():
        return ()
    given: Sequence[str | None] = names.split(":") if names else [None] * int(count)
    if len(given) != int(count):
        raise InheritedSocketError(f"LISTEN_FDNAMES names {len(given)} sockets, LISTEN_FDS says {count}")
    return tuple(_taken(FIRST + place, name) for place, name in enumerate(given))


def _taken(number: int, name: str | None) -> Inherited:
    os.set_inheritable(number, False)
    try:
        sock = socket.socket(fileno=number)
        listens = (
            sock.family in {socket.AF_INET, socket.AF_INET6, socket.AF_UNIX}
            and sock.type == socket.SOCK_STREAM
            and sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        )
    except OSError as error:
        raise InheritedSocketError(f"descriptor {number} ({name}) is no socket: {error.strerror}") from error
    if not listens:
        sock.close()
        text = "is no listening stream socket: its socket unit needs ListenStream= and Accept=no"
        raise InheritedSocketError(f"descriptor {number} ({name}) {text}")
    sock.setblocking(False)
    return Inherited(sock, name)


def open_sockets(listening: Sequence[Listening], inherited: Sequence[Inherited], until: ExitStack) -> list[Bound]:
    """A socket for each listener, all or none, which ``until`` closes. No client is accepted before all are bound.

    Unix sockets of ours are removed then; inherited ones are systemd's. Raises InheritedSocketError, and OSError for an
    address that cannot be bound.
    """
    with ExitStack() as stack:
        for entry in inherited:
            stack.enter_context(entry.sock)
        taken = {where: entry.sock for where, entry in _matched(listening, inherited).items()}
        for where in listening:
            if where not in taken:
                bound = bind(where.endpoint, where.mode)
                stack.callback(bound.close)
                taken[where] = bound.sock
        until.push(stack.pop_all())
    return [Bound.of(taken[where], where) for where in listening]


def _matched(listening: Sequence[Listening], inherited: Sequence[Inherited]) -> Mapping[Listening, Inherited]:
    taken: dict[Listening, Inherited] = {}
    for entry in inherited:
        where = next((each for each in listening if _same(each.endpoint, entry.sock)), None)
        if where is None:
            known = ", ".join(str(each.endpoint) for each in listening)
            raise InheritedSocketError(
                f"{entry} is for no listener of the configuration ({known}): let ListenStream= of its socket unit say"
                " the address that the configuration says, or stop and disable that unit"
            )
        if entry.name is not None and entry.name not in where.protocols:
            names = " or ".join(f"FileDescriptorName={protocol}" for protocol in where.protocols)
            raise InheritedSocketError(
                f"{entry} has the wrong name: {dotted(where.path)} listens there for {titles(where.protocols)}, so its"
                f" socket unit needs {names}"
            )
        if where in taken:
            raise InheritedSocketError(f"{entry} was passed twice: two socket units listen there")
        taken[where] = entry
    return taken


def _same(endpoint: Endpoint | UnixSocket, sock: socket.socket) -> bool:
    """Whether the socket has the address that :func:`bind` would bind."""
    if isinstance(endpoint, UnixSocket) or sock.family == socket.AF_UNIX:
        return endpoint == address_of(sock)
    family = socket.AF_INET6 if ":" in endpoint.host else socket.AF_INET
    if family != sock.family or endpoint.port != sock.getsockname()[1]:
        return False
    try:
        resolved: list[Any] = socket.getaddrinfo(endpoint.bound, endpoint.port, family, socket.SOCK_STREAM)
    except OSError:
        return False
    return sock.getsockname()[0] in {address[0] for *_, address in resolved}
