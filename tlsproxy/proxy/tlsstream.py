"""The TLS layer: an SSLObject between two memory BIOs, on a stream.

It takes its context when the connection is accepted and never changes it, sends the alert when a handshake fails, and
knows why. Records are read greedily and written once for each direction. Data that waits undecrypted while reading is
paused is drained on resume: no socket event will announce it.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from contextlib import suppress
from typing import Final, Protocol

from tlsproxy.proxy.deadlines import Deadlines
from tlsproxy.proxy.stream import Owner, Stream, received

RECORD: Final = 16_384
PLAIN: Final = 262_144 + RECORD
MAX_HANDSHAKE: Final = 131_072
"""Bytes that a client may send before its handshake is done: room for a long chain, not for a flood."""
ALERT_LINGER: Final = 1.0
"""Seconds for a client to read why its handshake failed."""

_plain = bytearray(PLAIN)
_plain_view = memoryview(_plain)

# X509_V_ERR_* (openssl/x509_vfy.h) → the slug under which a refused certificate is counted and audited.
_VERIFY: Final = {
    3: "crl_missing",
    9: "certificate_not_yet_valid",
    10: "certificate_expired",
    12: "crl_expired",
    18: "unknown_ca",
    19: "unknown_ca",
    20: "unknown_ca",
    21: "unknown_ca",
    23: "certificate_revoked",
    26: "certificate_purpose",
}
_REASONS: Final = {
    "PEER_DID_NOT_RETURN_A_CERTIFICATE": "no_certificate",
    "HTTP_REQUEST": "plaintext_http",
    "WRONG_VERSION_NUMBER": "not_tls",
    "UNSUPPORTED_PROTOCOL": "protocol_version",
    "NO_SHARED_CIPHER": "no_shared_cipher",
    "NO_APPLICATION_PROTOCOL": "no_application_protocol",
}


class TlsOwner(Owner, Protocol):
    """Is told of the handshake first; ``data_received`` gets plaintext, and never a byte of an unfinished handshake."""

    def handshake_done(self, tls: ssl.SSLObject) -> None: ...
    def handshake_failed(self, reason: str, detail: str) -> None: ...


def handshake_failure(error: ssl.SSLError | None) -> tuple[str, str]:
    """(slug, OpenSSL's words) of a failed handshake; without an error the client went away."""
    if error is None:
        return "client_closed", ""
    if isinstance(error, ssl.SSLCertVerificationError):
        return _VERIFY.get(error.verify_code, "certificate_invalid"), error.verify_message
    reason = error.reason or ""
    if "ALERT" in reason:
        return "client_alert", reason.lower()
    return _REASONS.get(reason, "tls_error"), reason.lower()


class TlsStream(Stream):
    """Begins with the handshake; ``close`` sends the close_notify that tells an end from a cut (RFC 8446 §6.1)."""

    __slots__ = ("_handshaken", "_incoming", "_outgoing", "_received", "_tls", "_tls_owner")

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        sock: socket.socket,
        owner: TlsOwner,
        deadlines: Deadlines,
        write_timeout: float,
        context: ssl.SSLContext,
    ) -> None:
        super().__init__(loop, sock, owner, deadlines, write_timeout)
        self._tls_owner = owner
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        self._handshaken = False
        self._received = 0
        self.resume_reading()

    def _on_readable(self) -> None:
        size = self._receive()
        if not size or self._closing:
            return
        self._incoming.write(received[:size])
        if self._handshaken:
            self._decrypt()
        else:
            self._received += size
            self._handshake()

    def _handshake(self) -> None:
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            self._flush()
            if self._received > MAX_HANDSHAKE:
                self._fail("handshake_too_large", f"{self._received} bytes")
            return
        except ssl.SSLError as error:
            self._flush()  # the alert
            self._fail(*handshake_failure(error))
            return
        self._handshaken = True
        self._flush()
        self.tell(self._tls_owner.handshake_done, self._tls)
        if self._incoming.pending and not self.closed and not self._closing:
            self._decrypt()

    def _fail(self, reason: str, detail: str) -> None:
        self._tls_owner.handshake_failed(reason, detail)
        super().close(ALERT_LINGER)

    def resume_reading(self) -> None:
        if self._reading:
            return
        super().resume_reading()
        if self._incoming.pending or (self._handshaken and self._tls.pending()):
            self._loop.call_soon(self._decrypt_waiting)

    def _decrypt_waiting(self) -> None:
        if self._reading and not self._closing and (self._incoming.pending or self._tls.pending()):
            self._decrypt()

    def _decrypt(self) -> None:
        size, ended = self._read()
        if self._outgoing.pending:  # a key update, an alert
            self._flush()
        if size:
            self.tell(self.owner.data_received, bytes(_plain_view[:size]))
        if isinstance(ended, ssl.SSLError):
            self.abort(ended)
        elif ended and self.when_ended is not None:
            self._half_ended(self.when_ended)
        elif ended:
            self._say_goodbye()
            self.abort()
        elif size > PLAIN - RECORD:
            self._loop.call_soon(self._decrypt_waiting)

    def _read(self) -> tuple[int, bool | ssl.SSLError]:
        """All records that are here: (how many bytes of plaintext, whether or with what error the stream ended)."""
        tls, incoming = self._tls, self._incoming
        size = 0
        try:
            while size <= PLAIN - RECORD:
                # typeshed knows only the form without a buffer, which returns bytes
                got: int = tls.read(PLAIN - size, _plain_view[size:])  # type: ignore[assignment]
                if got == 0:
                    return size, True
                size += got
                if not incoming.pending and not tls.pending():
                    break
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLError as error:
            return size, error
        return size, False

    def write(self, data: bytes) -> None:
        if self.closed or self._closing:
            return
        written = self._tls.write(data)
        while written < len(data):
            written += self._tls.write(memoryview(data)[written:])
        self._send(self._outgoing.read())

    def _at_eof(self) -> None:
        """An end without a close_notify is a cut (RFC 8446 §6.1), never an end of what the client had to say."""
        self.abort(self._error)

    def shut(self) -> None:
        if not (self.closed or self._closing or self._shutting):
            self._say_goodbye()
            super().shut()

    def _flush(self) -> None:
        if self._outgoing.pending and not self.closed:
            self._send(self._outgoing.read())

    def close(self, linger: float) -> None:
        if self.closed or self._closing:
            return
        if self._handshaken:
            self._say_goodbye()
        super().close(linger)

    def _say_goodbye(self) -> None:
        # Ours is written first; that theirs is not there yet, or data before it, is what the error would say.
        with suppress(ssl.SSLError):
            self._tls.unwrap()
        self._flush()

    def _write_failed(self, error: OSError) -> None:
        self.abort(error)

    def _lost(self, error: Exception | None) -> None:
        del self._tls_owner
        super()._lost(error)
