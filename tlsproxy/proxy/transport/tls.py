"""The server's side of TLS on a stream.

Its context is set when the connection is accepted and never changes. A failed handshake sends its alert and has a
reason.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable
from typing import Final, Protocol

from tlsproxy.authz.identity import identity_of
from tlsproxy.proxy.transport.deadlines import Deadlines
from tlsproxy.proxy.transport.records import MAX_HANDSHAKE, Records
from tlsproxy.proxy.transport.stream import Stream, StreamHandler
from tlsproxy.tls.trust import REFUSALS
from tlsproxy.tls.verification import ChainRefused, Unverified
from tlsproxy.tls.verify_errors import described
from tlsproxy.wire import misdirected
from tlsproxy.wire.content_coding import Content
from tlsproxy.wire.misdirected import NO_TLS, Spoken

CLEAR: Final = frozenset((0x0D, *range(0x41, 0x5B)))
"""First bytes of HTTP and of the PROXY protocol in clear. Those of TLS are none of them (RFC 8446 §5.1)."""
ALERT_LINGER: Final = 1.0
"""Seconds for a client to read why its handshake failed."""
UNEXPECTED_HEADER: Final = (
    "a header of the PROXY protocol is not expected (again): list the balancer in proxy_protocol of the listener, or "
    "let it send one"
)

_REASONS: Final = {
    "PEER_DID_NOT_RETURN_A_CERTIFICATE": "no_certificate",
    "HTTP_REQUEST": "plaintext_http",
    "WRONG_VERSION_NUMBER": "not_tls",
    "UNSUPPORTED_PROTOCOL": "protocol_version",
    "NO_SHARED_CIPHER": "no_shared_cipher",
    "NO_APPLICATION_PROTOCOL": "no_application_protocol",
}


def handshake_failure(error: ssl.SSLError | None) -> tuple[str, str]:
    """(reason slug, sentence or OpenSSL's text) of a failed handshake; without an error the client went away."""
    if error is None:
        return "client_closed", ""
    if isinstance(error, ChainRefused):
        return error.refusal, REFUSALS[error.refusal]
    if isinstance(error, ssl.SSLCertVerificationError):
        at_fault = isinstance(error, Unverified) and error.authority
        return described(error.verify_code, error.verify_message, identity_of(at_fault).name if at_fault else "")
    reason = error.reason or ""
    if "ALERT" in reason:
        return "client_alert", reason.lower()
    return _REASONS.get(reason, "tls_error"), reason.lower()


class TlsHandler(StreamHandler, Protocol):
    """A handshake callback comes first; ``data_received`` gets plaintext, and only after a finished handshake.

    ``certificate_verified`` is the :data:`~tlsproxy.tls.verification.Judge` of a client certificate. It is not called
    without one, nor where it cannot be.
    """

    def certificate_verified(self, verified: tuple[bytes, ...], sent: tuple[bytes, ...]) -> str: ...
    def handshake_done(self, tls: ssl.SSLObject) -> None: ...
    def handshake_failed(self, reason: str, detail: str, tls: ssl.SSLObject) -> None: ...


class TlsStream(Stream):
    """Begins with the handshake; ``close`` sends the close_notify that tells an end from a cut (RFC 8446 §6.1).

    ``_handshaking``: the handler until the handshake is done, then None.
    """

    __slots__ = ("_clear", "_handshaking", "_received", "_records")

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        sock: socket.socket,
        handler: TlsHandler,
        deadlines: Deadlines,
        lowest: Callable[[], tuple[float, float]],
        context: ssl.SSLContext,
    ) -> None:
        super().__init__(loop, sock, handler, deadlines, lowest)
        self._handshaking: TlsHandler | None = handler
        self._records = Records(context)
        self._received = 0
        self._clear = b""
        self.resume_reading()

    @property
    def silent(self) -> bool:
        """Whether the client has sent nothing at all."""
        return not (self._received or self._clear)

    def _handshake(self, handler: TlsHandler, data: bytes) -> None:
        self._received += len(data)
        rest, done, answer = self._records.shake_hands(data, handler.certificate_verified)
        if done is True:
            self._handshaking = None
            self._flush(answer)
            self.tell(handler.handshake_done, self._records.tls)
            if rest and not self.closed and not self._closing:
                self._take(rest)
            return
        self._flush(answer)
        if done:
            self._fail(handler, *handshake_failure(done))
        elif self._received > MAX_HANDSHAKE:
            self._fail(handler, "handshake_too_large", f"{self._received} bytes")

    def _greeted(self, handler: TlsHandler, data: bytes) -> None:
        """Takes bytes from before the handshake's end."""
        if self._clear or (not self._received and data[0] in CLEAR):
            data = self._in_clear(handler, data)
        if data:
            self._handshake(handler, data)

    def _in_clear(self, handler: TlsHandler, data: bytes) -> bytes:
        """Answers HTTP without TLS in its own form. Returns other bytes once they are known, for OpenSSL to refuse."""
        first = self._clear + data
        protocol = misdirected.spoken(first)
        if protocol is None:
            self._clear = first
            return b""
        self._clear = b""
        if protocol is Spoken.OTHER:
            return first
        if protocol is Spoken.PROXY:
            self._fail(handler, "proxy_protocol", UNEXPECTED_HEADER)
            return b""
        self._send(misdirected.answer(protocol, first, NO_TLS))
        self._fail(handler, "plaintext_http", f"{protocol.value} without TLS")
        return b""

    def _fail(self, handler: TlsHandler, reason: str, detail: str) -> None:
        handler.handshake_failed(reason, detail, self._records.tls)
        super().close(ALERT_LINGER)

    def _take(self, data: bytes) -> None:
        """Decrypts all received data, and hands it on in one piece."""
        if self._handshaking is not None:
            self._greeted(self._handshaking, data)
            return
        data, ended, answer = self._records.opened(data)
        if answer:
            self._flush(answer)
        if data:
            self.handler.data_received(data)
        if ended:
            self._end(None if ended is True else ended)

    def _end(self, error: ssl.SSLError | None) -> None:
        if error is not None:
            self.abort(error)
        elif self.when_ended is not None:
            self._half_ended(self.when_ended)
        else:
            self._close_notify()
            self.abort()

    def write(self, data: Content) -> None:
        if self.corked is not None:
            self.corked.append(data)
            return
        if self.closed or self._closing:
            return
        self._send(self._records.sealed(data))

    def _at_eof(self) -> None:
        """Aborts: an end without a close_notify is a cut (RFC 8446 §6.1), not the end of the client's data."""
        self.abort(self._error)

    def shut(self) -> None:
        if not (self.closed or self._closing or self._shutting):
            self._close_notify()
            super().shut()

    def _flush(self, answer: bytes) -> None:
        if answer and not self.closed:
            self._send(answer)

    def close(self, linger: float) -> None:
        if self.closed or self._closing:
            return
        if self._handshaking is None:
            self._close_notify()
        super().close(linger)

    def _close_notify(self) -> None:
        self._flush(self._records.goodbye())

    def _write_failed(self, error: OSError) -> None:
        self.abort(error)

    def _lost(self, error: Exception | None) -> None:
        self._handshaking = None
        super()._lost(error)
