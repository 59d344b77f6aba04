"""Outgoing streams, in plaintext or over TLS: written data waits until the connection stands."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import struct
from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol

from tlsproxy.errors import OutOfDescriptors, RequestError, UpstreamTlsFailed, UpstreamUnreachable
from tlsproxy.proxy.transport.deadlines import Deadlines
from tlsproxy.proxy.transport.records import MAX_HANDSHAKE, Records
from tlsproxy.proxy.transport.stream import HIGH_WATER, LOW_WATER, Stream, StreamHandler
from tlsproxy.tls.client_context import ClientTls, ServerRefused, server_refused
from tlsproxy.tls.negotiated import Negotiated, negotiated
from tlsproxy.wire.content_coding import Content

STAGGER: Final = 0.25
"""Seconds after which the next address is tried beside those that have not answered yet (RFC 8305 §5)."""

_TCP_INFO: Final = struct.Struct("=44xI4xI")
"""Two fields of Linux' `struct tcp_info`: `tcpi_last_data_sent` and `tcpi_last_data_recv`, milliseconds ago."""

Address = tuple[int, tuple[Any, ...]]
"""(family, sockaddr), as getaddrinfo gives them; of a unix socket the path, in a tuple too."""


def dial_failure(error: Exception | None) -> RequestError:
    """The error for a client whose upstream could not be dialled: without the system's words, which the log has."""
    if isinstance(error, socket.gaierror):
        return UpstreamUnreachable(f"The upstream cannot be reached: {error}")
    if isinstance(error, ServerRefused):
        return UpstreamTlsFailed()
    number = error.errno if isinstance(error, OSError) else None
    return OutOfDescriptors() if number in {errno.EMFILE, errno.ENFILE} else UpstreamUnreachable()


class DialHandler(StreamHandler, Protocol):
    """``connected`` comes before any other callback but ``connection_lost``."""

    def connected(self) -> None: ...


class DialledStream(Stream):
    """Tries the addresses in their order, each as soon as the one before it fails or has not answered for a moment.

    The first that takes the connection has it; when none does, ``connection_lost`` comes without ``connected``.
    ``address``: the latest that is being tried, or the one that was reached. ``tls``: None in plaintext. ``anchor``:
    the CA (DER) by which the server was verified, if that is known. ``prologue``: bytes that are sent before all else,
    and before TLS in plaintext, as a header of the PROXY protocol is.
    """

    __slots__ = ("_addresses", "_attempts", "_next_try", "_when_connected", "address", "anchor", "prologue", "tls")

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        addresses: Sequence[Address],
        handler: DialHandler,
        deadlines: Deadlines,
        lowest: Callable[[], tuple[float, float]],
    ) -> None:
        """Raises OSError where no socket can be made, and socket.gaierror where no address is known."""
        if not addresses:
            raise socket.gaierror("its name does not resolve")
        self._addresses = list(addresses)
        self._attempts: dict[socket.socket, Address] = {}
        self._next_try: asyncio.TimerHandle | None = None
        self._when_connected: Callable[[], None] | None = handler.connected
        self.tls: ClientTls | None = None
        self.prologue = self.anchor = b""
        self.address = self._addresses.pop(0)
        super().__init__(loop, self._socket(self.address[0]), handler, deadlines, lowest)
        self.established = self._connected = False
        self._dial()

    @staticmethod
    def _socket(family: int) -> socket.socket:
        sock = socket.socket(family, socket.SOCK_STREAM)
        sock.setblocking(False)
        if family != socket.AF_UNIX:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return sock

    @property
    def negotiated(self) -> Negotiated | None:
        """Outcome of the TLS handshake; None in plaintext."""
        return None

    @property
    def reached(self) -> bool:
        """Whether the socket is connected; over TLS the handshake may still be under way."""
        return self._connected

    def _dial(self) -> None:
        sock, (family, where) = self._sock, self.address
        self._attempts[sock] = self.address
        error = sock.connect_ex(where[0] if family == socket.AF_UNIX else where)
        if error not in {0, errno.EINPROGRESS}:  # known at once, and not reported by SO_ERROR
            self._loop.call_soon(self._failed, sock, OSError(error, os.strerror(error)))
            return
        self._loop.add_writer(self._fd, self._on_dialled, sock)
        if self._addresses:
            self._next_try = self._loop.call_later(STAGGER, self._dial_next)

    def _dial_next(self) -> None:
        address = self._addresses.pop(0)
        try:
            sock = self._socket(address[0])
        except OSError as failure:
            if not self._attempts:
                self.abort(failure)
            return
        self._sock, self._fd, self.address = sock, sock.fileno(), address
        self._dial()

    def _failed(self, sock: socket.socket, error: OSError) -> None:
        if self._attempts.pop(sock, None) is None:  # the stream has ended meanwhile
            return
        self._loop.remove_writer(sock.fileno())
        sock.close()
        if self._addresses:
            self._end_wait()
            self._dial_next()
        elif not self._attempts:
            self.abort(error)

    def _end_wait(self) -> None:
        if self._next_try is not None:
            self._next_try.cancel()
            self._next_try = None

    def _end_attempts(self) -> None:
        """Closes all sockets but the one that the stream has."""
        self._end_wait()
        attempts, self._attempts = self._attempts, {}
        for sock in attempts:
            self._loop.remove_writer(sock.fileno())
            if sock is not self._sock:
                sock.close()

    def abort(self, error: Exception | None = None) -> None:
        if self._attempts:
            self._end_attempts()
        super().abort(error)

    def _on_dialled(self, sock: socket.socket) -> None:
        error = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if error:
            self._failed(sock, OSError(error, os.strerror(error)))
            return
        self._sock, self._fd, self.address = sock, sock.fileno(), self._attempts[sock]
        self._end_attempts()
        self._connected = True
        if self.prologue:
            self._send(self.prologue)
        self._begin()

    def _begin(self) -> None:
        """The socket is connected."""
        self.established = True
        self._tell_connected()
        self.resume_reading()
        if self._out:
            self._start_writing()
            self._on_writable()
            if self.stalled:
                self._await_room()

    def _tell_connected(self) -> None:
        if self._when_connected is not None:
            self.tell(self._when_connected)

    def silent_for(self) -> float | None:
        """Seconds since the last received byte; None where bytes were sent after it, and at the end of the stream. A
        unix socket keeps no times: None too.
        """
        if self.closed or self.address[0] == socket.AF_UNIX:
            return None
        info = self._sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO.size)
        sent, received = _TCP_INFO.unpack(info)
        return received / 1000 if received <= sent else None

    def _lost(self, error: Exception | None) -> None:
        self._when_connected = None
        super()._lost(error)


class DialledTlsStream(DialledStream):
    """The same over TLS: the connection stands once the handshake is done and the server is the expected one.

    Else ``connection_lost`` comes with :class:`ServerRefused`. That may also come later, without any data in between:
    with TLS 1.3 a server judges our certificate after our handshake is done. An end without close_notify is a cut
    (RFC 8446 §6.1), and thus an error.
    """

    __slots__ = ("_answered", "_early", "_early_size", "_received", "_records", "_way")

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        addresses: Sequence[Address],
        handler: DialHandler,
        deadlines: Deadlines,
        lowest: Callable[[], tuple[float, float]],
        tls: ClientTls,
    ) -> None:
        """Raises OSError as in plaintext."""
        self._way = tls
        self._records = Records(tls.context, tls.server_name)
        self._early: list[Content] = []
        self._early_size = self._received = 0
        self._answered = False
        super().__init__(loop, addresses, handler, deadlines, lowest)
        self.tls = tls

    @property
    def negotiated(self) -> Negotiated:
        return negotiated(self._records.tls)

    def _begin(self) -> None:
        self.resume_reading()
        self._handshake(b"")

    def _handshake(self, data: bytes) -> None:
        self._received += len(data)
        rest, done, answer = self._records.shake_hands(data, self._judge)
        if done is True:
            self._stand(rest, answer)
            return
        self._flush(answer)
        if done:
            self.abort(server_refused(done))
        elif self._received > MAX_HANDSHAKE:
            self.abort(ServerRefused("handshake_too_large", f"{self._received} bytes without an end"))

    def _stand(self, rest: bytes, answer: bytes) -> None:
        """The handshake is done; ``rest`` came behind it."""
        if refusal := self._way.refusal(self._records.tls):
            self.abort(refusal)
            return
        self.established = True
        self._flush(answer)
        self._tell_connected()
        self._send_early()
        if rest and not self.closed and not self._closing:
            self._take(rest)

    def _judge(self, verified: tuple[bytes, ...], sent: tuple[bytes, ...]) -> str:
        self.anchor = verified[-1]
        return self._way.expected.judge(verified, sent)

    def _send_early(self) -> None:
        """Sends all that was written before the handshake was done."""
        early, self._early = self._early, []
        if not early or self.closed or self._closing:
            return
        stalled, self._early_size = self.stalled, 0
        self._send(self._records.sealed(b"".join(early)))
        if stalled and self._queued > LOW_WATER:
            self._await_room()
        elif stalled and not self.closed:
            self.stalled = False
            self.tell(self.handler.resume_writing)

    def _take(self, data: bytes) -> None:
        if not self.established:
            self._handshake(data)
            return
        data, ended, answer = self._records.opened(data)
        if answer:
            self._flush(answer)
        if data:
            self._answered = True
            self.handler.data_received(data)
        if ended is True:
            if self.when_ended is None:
                self.abort()
            else:
                self._half_ended(self.when_ended)
        elif ended:
            self.abort(ended if self._answered else server_refused(ended))

    def _at_eof(self) -> None:
        if self._error is not None or self._closing:
            self.abort(self._error)
        else:
            self.abort(ConnectionAbortedError("the server ended the connection without a close_notify"))

    def _lost(self, error: Exception | None) -> None:
        if isinstance(error, ConnectionError) and self._connected and not self.established:
            error = ServerRefused("closed", "the server ended the connection during the handshake")
        super()._lost(error)

    def write(self, data: Content) -> None:
        if self.corked is not None:
            self.corked.append(data)
        elif self.established:
            if not self.closed and not self._closing:
                self._send(self._records.sealed(data))
        elif not self.closed and not self._closing:
            self._early.append(data)
            self._early_size += len(data)
            if self._early_size > HIGH_WATER and not self.stalled:
                self.stalled = True
                self.handler.pause_writing()

    def _flush(self, answer: bytes) -> None:
        if answer and not self.closed:
            self._send(answer)

    def shut(self) -> None:
        if self.established and not (self.closed or self._closing or self._shutting):
            self._flush(self._records.goodbye())
        super().shut()

    def close(self, linger: float) -> None:
        if self.established and not (self.closed or self._closing):
            self._flush(self._records.goodbye())
        super().close(linger)


class Dialled(Protocol):
    """A connection, as far as where it leads goes."""

    @property
    def address(self) -> Address: ...
    @property
    def tls(self) -> ClientTls | None: ...
    @property
    def anchor(self) -> bytes: ...


def leads_to(stream: Dialled, addresses: Sequence[Address], tls: ClientTls | None) -> bool:
    """Whether a connection that stands leads where a new one would."""
    return stream.address in addresses and is_trusted(stream, tls)


def is_trusted(stream: Dialled, tls: ClientTls | None) -> bool:
    """Whether the server of a connection that stands would be trusted by ``tls``, as far as dates have no part in it.

    The client certificate may differ, and CAs too, as long as the one that the server was verified by is among them.
    """
    if stream.tls is None or tls is None:
        return stream.tls is tls
    return stream.tls == tls and (stream.tls.anchors == tls.anchors or stream.anchor in tls.anchors)


def dial(
    loop: asyncio.AbstractEventLoop,
    addresses: Sequence[Address],
    handler: DialHandler,
    deadlines: Deadlines,
    lowest: Callable[[], tuple[float, float]],
    tls: ClientTls | None = None,
) -> DialledStream:
    """A stream to the first address that answers, over TLS if ``tls`` says how. Raises OSError as the stream does."""
    if tls is None:
        return DialledStream(loop, addresses, handler, deadlines, lowest)
    return DialledTlsStream(loop, addresses, handler, deadlines, lowest, tls)
