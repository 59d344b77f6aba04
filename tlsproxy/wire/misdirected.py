"""First bytes of a client that speaks another protocol than its port, and the answer in its own protocol.

Example: `GET / HTTP/1.1` in clear on a port of TLS is answered with a 400 whose body is a sentence, HTTP/2 in clear
with a GOAWAY that holds the sentence.
"""

from __future__ import annotations

import re
from enum import Enum
from typing import Final

from tlsproxy.errors import error_body
from tlsproxy.wire.http2 import Code, goaway, settings
from tlsproxy.wire.proxy_protocol import VERSION_1, VERSION_2


class Spoken(Enum):
    """The value is a name for people."""

    HTTP_1 = "HTTP/1"
    HTTP_2 = "HTTP/2"
    PROXY = "the PROXY protocol"
    OTHER = "another protocol"


NO_TLS: Final = "This port speaks TLS: use https://, or for gRPC a channel with TLS, and a client certificate"
GRPC_ALONE: Final = "This port serves gRPC alone (HTTP/2, ALPN h2): REST is served over HTTP/1.1 on another port"

_PREFACE: Final = b"PRI * HTTP/2"
_PROXY: Final = (VERSION_2, VERSION_1)
# method SP request-target (RFC 9112 §3): origin-form, absolute-form, asterisk-form, or authority-form after CONNECT.
_REQUEST: Final = re.compile(rb"CONNECT [\x21-\x7e]|[A-Z]{1,16} (?:[/*]|https?:)")
_BEGUN: Final = re.compile(rb"[A-Z]{1,16}(?: (?:h|ht|htt|https?)?)?")


def spoken(data: bytes) -> Spoken | None:
    """The protocol that begins with this, None if more of it is needed; 23 bytes are always enough."""
    if data.startswith(_PREFACE):
        return Spoken.HTTP_2
    if data.startswith(_PROXY):
        return Spoken.PROXY
    if not data or any(begin.startswith(data) for begin in (_PREFACE, *_PROXY)):
        return None
    if _REQUEST.match(data):
        return Spoken.HTTP_1
    return None if _BEGUN.fullmatch(data) else Spoken.OTHER


def answer(protocol: Spoken, first: bytes, text: str) -> bytes:
    """The whole answer to a client whose ``first`` bytes these are; empty for another protocol than HTTP."""
    if protocol is Spoken.HTTP_2:
        return settings({}) + goaway(0, Code.INADEQUATE_SECURITY, text)
    if protocol is not Spoken.HTTP_1:
        return b""
    body = error_body(text)
    head = (
        b"HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n"
    )
    return head % len(body) + (b"" if first.startswith(b"HEAD ") else body)
