"""A gRPC call's head and its messages, as gRPC puts them into HTTP/2 (PROTOCOL-HTTP2.md of gRPC; RFC 9113 §8).

The strict subset again: what is malformed there ends the stream, and what goes upstream is written anew from what was
understood. What is well-formed but no gRPC is refused in words.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from tlsproxy.errors import BadRequest, HeadTooLarge
from tlsproxy.wire.field_block import Fields, literals, write
from tlsproxy.wire.http1 import is_identity
from tlsproxy.wire.http2 import Code, StreamError

PREFIX: Final = 5
"""Bytes before a message: whether it is compressed, and its length."""

TIMEOUT: Final = b"grpc-timeout"
_DEADLINES: Final = tuple(literals(((TIMEOUT, bytes(length)),))[:-length] for length in range(1, 10))
"""Bytes before a deadline of one byte, of two and so on: the name and the length."""

_UNITS: Final = {
    ord("H"): 3600.0,
    ord("M"): 60.0,
    ord("S"): 1.0,
    ord("m"): 1e-3,
    ord("u"): 1e-6,
    ord("n"): 1e-9,
}
"""Seconds of the units of a deadline."""

_NAME = re.compile(rb"[!#$%&'*+\-.^_`|~0-9a-z]{1,256}")
# field-vchar, obs-text, space and tab within (RFC 9113 §8.2.1).
VALUE: Final = re.compile(rb"(?:[\x21-\x7e\x80-\xff](?:[\t\x20-\x7e\x80-\xff]*[\x21-\x7e\x80-\xff])?)?")
_PATH = re.compile(rb"/[\x21-\x7e]*")
_MAX_PATH: Final = 513
"""Bytes of a method's path, at most."""
_METHOD = re.compile(rb"/[A-Za-z0-9_]+(?:\.[A-Za-z0-9_]+)+/[A-Za-z0-9_]+")
_LENGTH = re.compile(rb"[0-9]{1,18}")
_LONGEST_TIMEOUT: Final = 9
"""Bytes of a deadline: at most eight digits, and a unit."""
_AUTHORITY = re.compile(rb"(?:[0-9A-Za-z._\-]{1,255}|\[[0-9A-Fa-f:.]{2,45}\])(?::[0-9]{1,5})?")
_CONTENT_TYPE = re.compile(rb"application/grpc(?:\+[a-z0-9.\-]+)?(?:;[\x20-\x7e]*)?")
_PSEUDO: Final = frozenset((b":method", b":scheme", b":path", b":authority"))
_OF_CONNECTIONS: Final = frozenset(
    (b"connection", b"keep-alive", b"proxy-connection", b"transfer-encoding", b"upgrade")
)
_ONCE: Final = frozenset(
    (
        b"api-key",
        b"authorization",
        b"content-length",
        b"content-type",
        b"grpc-encoding",
        TIMEOUT,
        b"host",
        b"te",
    )
)
_OURS: Final = frozenset((b"host", b"te", b"content-type", b"content-length"))
"""Fields that are stated anew, or that end here."""


@dataclass(slots=True)
class CallHead:
    """``path`` is the method's, ``/package.Service/Method``. ``fields`` are the regular ones, names in lower case."""

    path: str
    fields: Fields
    authority: bytes

    @property
    def length(self) -> int | None:
        """Bytes of its DATA, where the client has said so."""
        said = self.value(b"content-length")
        return None if said is None else int(said)

    def value(self, name: bytes) -> str | None:
        for field, value in self.fields:
            if field == name:
                return value.decode("latin-1")
        return None

    def without(self, *names: bytes) -> CallHead:
        return CallHead(self.path, tuple(field for field in self.fields if field[0] not in names), self.authority)


class NotGrpc(BadRequest):
    """A request over HTTP/2 that is no gRPC call, such as one of REST. ``to_head``: its response has no body."""

    status = 421  # RFC 9110 §15.5.20: over another connection it may be served
    reason = "not_grpc"

    def __init__(self, text: str, *, to_head: bool = False) -> None:
        super().__init__(text)
        self.to_head = to_head


class NotGrpcContent(NotGrpc):
    """A request for a gRPC method whose content is not gRPC's. The status is gRPC's choice (PROTOCOL-HTTP2.md)."""

    status = 415


def parse_call(fields: Fields, *, max_fields: int = 100) -> CallHead:
    """Raises StreamError for what is malformed (RFC 9113 §8.1.1), and BadRequest's leaves for what is no gRPC call."""
    pseudo, regular = _split_unusual(fields)
    once: dict[bytes, bytes] = {}
    for name, value in regular:
        if name in _ONCE:
            if name in once:
                raise BadRequest(f"Metadata {name.decode()} is given more than once")
            once[name] = value
    if pseudo.get(b":method") == b"CONNECT":  # neither :scheme nor :path (RFC 9113 §8.5)
        raise _not_grpc(b"CONNECT", b"")
    _check_pseudo(pseudo, once)
    if _LENGTH.fullmatch(once.get(b"content-length", b"0")) is None:
        raise StreamError(Code.PROTOCOL_ERROR, "a content-length that is no number")
    if len(regular) > max_fields:
        raise HeadTooLarge(f"More than {max_fields} metadata fields")
    method, path = pseudo[b":method"], pseudo[b":path"]
    if method != b"POST" or _CONTENT_TYPE.fullmatch(once.get(b"content-type", b"")) is None:
        raise _not_grpc(method, path)
    if len(path) > _MAX_PATH:
        raise HeadTooLarge(f"The path of a method has at most {_MAX_PATH} bytes")
    if not is_timeout(once.get(TIMEOUT, b"1S")):
        raise BadRequest("Malformed grpc-timeout")
    return CallHead(path.decode(), regular, pseudo.get(b":authority") or once.get(b"host", b""))


def _not_grpc(method: bytes, path: bytes) -> NotGrpc:
    if method == b"POST" and _METHOD.fullmatch(path) is not None:
        return NotGrpcContent("The content-type of a gRPC call is application/grpc; gRPC-Web is not served")
    text = "Over HTTP/2 only gRPC is served: send REST over HTTP/1.1 (curl --http1.1) to a port that serves REST"
    return NotGrpc(text, to_head=method == b"HEAD")


def deadline_apart(fields: Fields) -> tuple[Fields, bytes]:
    """A call's fields without its grpc-timeout, and that as a part of the block that goes upstream.

    Clients send another one with each call, and nothing is decided by it: so the rest can be what was seen before. It
    stays where it is if anything about it or its place is wrong, for the parser to say so.
    """
    names = [name for name, _ in fields]
    if names.count(TIMEOUT) != 1:
        return fields, b""
    at = names.index(TIMEOUT)
    if not is_timeout(fields[at][1]) or any(name[:1] == b":" for name in names[at:]):
        return fields, b""
    return fields[:at] + fields[at + 1 :], deadline_block(fields[at][1])


def is_timeout(value: bytes) -> bool:
    """Whether it is a deadline as gRPC writes them (PROTOCOL-HTTP2.md, "Timeout"): `10S`, `250m`."""
    return 1 < len(value) <= _LONGEST_TIMEOUT and value[-1] in _UNITS and value[:-1].isdigit()


def deadline_block(timeout: bytes) -> bytes:
    """``timeout`` is one by :func:`is_timeout`."""
    return _DEADLINES[len(timeout) - 1] + timeout


def seconds_in(deadline: bytes) -> float | None:
    """Seconds of a deadline as :func:`deadline_block` writes it; None where it is empty."""
    timeout = deadline[len(_DEADLINES[0]) :]
    return int(timeout[:-1]) * _UNITS[timeout[-1]] if timeout else None


def _split_unusual(fields: Fields) -> tuple[dict[bytes, bytes], Fields]:
    """Pseudo-headers, which come first, and the others. Raises StreamError (RFC 9113 §8.2, §8.3)."""
    pseudo: dict[bytes, bytes] = {}
    regular: list[tuple[bytes, bytes]] = []
    for name, value in fields:
        if name[:1] == b":":
            if regular or name in pseudo or name not in _PSEUDO:
                raise StreamError(Code.PROTOCOL_ERROR, "a pseudo-header that is unknown, late, or there twice")
            pseudo[name] = value
        elif _NAME.fullmatch(name) is None or name in _OF_CONNECTIONS:
            raise StreamError(Code.PROTOCOL_ERROR, "a field that HTTP/2 does not allow")
        else:
            regular.append((name, value))
        if VALUE.fullmatch(value) is None:
            raise StreamError(Code.PROTOCOL_ERROR, "a field value that HTTP/2 does not allow")
    return pseudo, tuple(regular)


def _check_pseudo(pseudo: dict[bytes, bytes], once: dict[bytes, bytes]) -> None:
    """RFC 9113 §8.3.1, and the one connection-specific field that is allowed (§8.2.2)."""
    if not {b":method", b":scheme", b":path"} <= pseudo.keys() or not _is_path(pseudo[b":path"], pseudo[b":method"]):
        raise StreamError(Code.PROTOCOL_ERROR, "a request without one of :method, :scheme and :path, or no valid one")
    if pseudo[b":scheme"] not in {b"https", b"http"}:
        raise StreamError(Code.PROTOCOL_ERROR, "a :scheme that is not https")
    if once.get(b"te", b"trailers") != b"trailers":
        raise StreamError(Code.PROTOCOL_ERROR, "a te that is not trailers")
    authority, host = pseudo.get(b":authority"), once.get(b"host")
    if authority is not None and host is not None and authority != host:
        raise StreamError(Code.PROTOCOL_ERROR, "an :authority that differs from host")
    if _AUTHORITY.fullmatch(authority or host or b"") is None:
        raise StreamError(Code.PROTOCOL_ERROR, "neither :authority nor host, or no valid one")


def _is_path(path: bytes, method: bytes) -> bool:
    return _PATH.fullmatch(path) is not None or (path == b"*" and method == b"OPTIONS")


def origin(authority: bytes, *, tls: bool) -> Fields:
    """The fields that name an upstream (RFC 9113 §8.3.1)."""
    return (b":scheme", b"https" if tls else b"http"), (b":authority", authority)


def restate_call(head: CallHead, *, upstream: Fields, upstream_key: bytes | None, more: Fields = ()) -> Fields:
    """The fields as they go upstream, short of the connection's own; what carries identity or credentials is gone.

    ``upstream`` is its :func:`origin`, ``more`` are fields of the gateway's.
    """
    fields = [
        (b":method", b"POST"),
        *upstream,
        (b":path", head.path.encode()),
        (b"te", b"trailers"),
        (b"content-type", (head.value(b"content-type") or "").encode("latin-1")),
    ]
    fields += [field for field in head.fields if field[0] not in _OURS and not is_identity(field[0])]
    fields += more
    if upstream_key is not None:
        fields.append((b"api-key", upstream_key))
    fields.append((b"x-forwarded-host", head.authority))
    return tuple(fields)


_BAD_GATEWAY: Final = frozenset((b"502", b"503", b"504"))


@dataclass(slots=True)
class Said:
    """A field block of an answer: its beginning, or else its trailers. ``status`` is gRPC's, or None.

    ``of_a_proxy``: a proxy between says that Qdrant cannot be had, whose own errors have a status of gRPC's.

    ``restated`` is what takes the block's place. It has no content-length: an answer that the gateway ends before its
    time would be malformed by one (RFC 9113 §8.1.1), and so would be one that the upstream was wrong about.
    """

    fields: Fields
    beginning: bool
    status: int | None
    restated: bytes | None = None
    of_a_proxy: bool = False


def said_of(fields: Fields) -> Said:
    status = next((value for name, value in fields if name == b"grpc-status"), b"")
    kept = tuple(field for field in fields if field[0] != b"content-length")
    restated = write(kept) if len(kept) < len(fields) else None
    beginning = bool(fields) and fields[0][0] == b":status"
    of_a_proxy = beginning and not status and fields[0][1] in _BAD_GATEWAY
    return Said(kept, beginning, int(status) if status.isdigit() else None, restated, of_a_proxy)


def trailers_only(status: int, message: str, *, retry_after: int = 0) -> Fields:
    """The whole response of a call that is not carried out. ``status`` is gRPC's, ``retry_after`` seconds."""
    return _refusal(b"200", ((b"content-type", b"application/grpc"),), status, message, retry_after)


def refusal_over_http(http: int, length: int, status: int, message: str, *, retry_after: int = 0) -> Fields:
    """The head of a response to what is no call; JSON of ``length`` bytes follows. ``http`` is its status."""
    content = ((b"content-type", b"application/json"), (b"content-length", b"%d" % length))
    return _refusal(b"%d" % http, content if length else content[1:], status, message, retry_after)


def _refusal(http: bytes, content: Fields, status: int, message: str, retry_after: int) -> Fields:
    return (
        (b":status", http),
        *content,
        *trailers(status, message),
        *(((b"retry-after", b"%d" % retry_after),) if retry_after else ()),
    )


def trailers(status: int, message: str) -> Fields:
    """The end of a response whose beginning the client has seen. The message is percent-encoded UTF-8."""
    encoded = b"".join(
        b"%c" % byte if 0x20 <= byte <= 0x7E and byte != 0x25 else b"%%%02X" % byte  # noqa: PLR2004 - printable, %
        for byte in message.encode()
    )
    return (b"grpc-status", b"%d" % status), (b"grpc-message", encoded.strip(b" "))


class Message:
    """Cuts the one message of a unary request out of the DATA that carries it.

    ``whole`` once its last byte has come. ``compressed`` is known once the prefix has come, and ``length`` then.
    """

    __slots__ = ("_left", "_prefix", "compressed", "length", "whole")

    def __init__(self) -> None:
        self._prefix = b""
        self._left = 0
        self.length = 0
        self.compressed = False
        self.whole = False

    def feed(self, data: bytes) -> bytes:
        """The bytes of the message among these. Raises BadRequest for a second message, or a flag that is neither."""
        if not self._prefix and len(data) >= PREFIX and not data[0] and _length(data) == len(data) - PREFIX:
            self._prefix = data[:PREFIX]  # all of it in one piece, as small ones come
            self.length = len(data) - PREFIX
            self.whole = True
            return data[PREFIX:]
        if len(self._prefix) < PREFIX:
            taken = PREFIX - len(self._prefix)
            self._prefix += data[:taken]
            data = data[taken:]
            if len(self._prefix) < PREFIX:
                return b""
            if self._prefix[0] > 1:
                raise BadRequest("A message's compressed-flag is 0 or 1")
            self.compressed = self._prefix[0] == 1
            self.length = self._left = _length(self._prefix)
        if len(data) > self._left:
            raise BadRequest("This method takes one message")
        self._left -= len(data)
        self.whole = self._left == 0
        return data

    def end(self) -> None:
        """The request ends here. Raises BadRequest where its message is not whole."""
        if not self.whole:
            raise BadRequest("The request ended before its message")


def _length(prefix: bytes) -> int:
    return prefix[1] << 24 | prefix[2] << 16 | prefix[3] << 8 | prefix[4]


def message(content: bytes) -> bytes:
    """An uncompressed message with its prefix."""
    return b"\x00" + len(content).to_bytes(4, "big") + content
