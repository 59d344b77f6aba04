"""Trial of client certificates against a server's context, without their private keys.

OpenSSL verifies a client's chain when its Certificate message arrives, and its possession of the key two messages later
(RFC 5246 section 7.3). So a TLS 1.2 handshake up to that message has the verdict of the very context that listeners
use: chain, purpose, dates, key and signature strength, CRLs.
"""

from __future__ import annotations

import ssl
from contextlib import suppress
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

_RECORD: Final = 16_384
"""Most bytes in a record (RFC 5246 section 6.2.1)."""
_CERTIFICATE: Final = b"\x0b"
"""The type of a Certificate message (section 7.4)."""
_HANDSHAKE: Final = b"\x16\x03\x03"
"""Content type and version of a record of handshake messages."""


def present(server: ssl.SSLContext, chain: Sequence[bytes]) -> ssl.SSLObject:
    """The server's side of a handshake in which the client has sent these certificates (DER, leaf first; or none).

    The context must ask for a client certificate. Raises ssl.SSLError where it refuses the chain.
    """
    upward, downward = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname = False
    client.verify_mode = ssl.CERT_NONE
    client.maximum_version = ssl.TLSVersion.TLSv1_2  # in 1.3 the Certificate message is encrypted
    client_side = client.wrap_bio(downward, upward)
    server_side = server.wrap_bio(upward, downward, server_side=True)
    with suppress(ssl.SSLWantReadError):
        client_side.do_handshake()
    with suppress(ssl.SSLWantReadError):
        server_side.do_handshake()
    message = _CERTIFICATE + _sized(_sized(b"".join(map(_sized, chain))))
    for start in range(0, len(message), _RECORD):
        piece = message[start : start + _RECORD]
        upward.write(_HANDSHAKE + len(piece).to_bytes(2, "big") + piece)
    with suppress(ssl.SSLWantReadError):
        server_side.do_handshake()
    return server_side


def _sized(data: bytes) -> bytes:
    return len(data).to_bytes(3, "big") + data
