"""HTTP/1.1 request heads: a parser of a strict subset, and the serialisation for the upstream.

A head is parsed from its first byte to its empty line and written anew: only parsed fields reach the upstream, never
raw bytes. Anything that two parsers could read differently is refused: bare LF or CR, obs-fold, space before a colon,
two Hosts, two Content-Lengths, Content-Length beside Transfer-Encoding, a transfer coding other than exactly
``chunked`` (RFC 9112 §2.2, §5, §6, §11.2). Heads never include a body byte.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Final

from tlsproxy.errors import BadRequest, ExpectationFailed, HeadTooLarge, UpgradeRefused, VersionRefused
from tlsproxy.memo import Memo

Field = tuple[bytes, bytes]
"""Name, in lower case, and value, without the white space around it."""

MEMO_LINES: Final = 1024
MEMO_LINE: Final = 512
"""A longer line is not remembered: the memo's size in memory is bounded by the product."""
_MEMO_NAMES: Final = 512
_MEMO_NAME: Final = 64

CHUNKED: Final = -1
"""The ``length`` of a chunked body."""

END: Final = b"\r\n\r\n"
_FEWEST_LINES: Final = 4
"""Parts of a head split at its line ends: a request line, a field, and two empty ones, behind the last two."""

# request-line = method SP request-target SP HTTP-version (RFC 9112 §3); the target is visible ASCII, split later.
_REQUEST_LINE: Final = re.compile(rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]{1,32}) ([\x21-\x7e]+) HTTP/([0-9]\.[0-9])")
# field-line = field-name ":" OWS field-value OWS (RFC 9112 §5); field-vchar and obs-text, so no CTL but HTAB.
_FIELD_LINE: Final = re.compile(rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]+):([\t\x20-\x7e\x80-\xff]*)")
_DIGITS: Final = re.compile(rb"[0-9]{1,15}")
# uri-host [ ":" port ] (RFC 9110 §7.2), without the userinfo, percent-encoding and sub-delims that no client sends.
_HOST: Final = re.compile(rb"(?:[0-9A-Za-z._\-]{1,255}|\[[0-9A-Fa-f:.]{2,45}\])(?::[0-9]{1,5})?")
_BARE: Final = re.compile(rb"(?<!\r)\n|\r[^\n]")

_HOP_BY_HOP: Final = frozenset(
    (b"connection", b"keep-alive", b"proxy-connection", b"te", b"trailer", b"transfer-encoding", b"upgrade")
)
_DROPPED: Final = _HOP_BY_HOP | {b"host"}
# gRPC's binary metadata has names that end in -bin. Fields of the last two lines are set by the gateway alone. CGI-like
# servers map `api_key` and `api-key` to one variable.
_IDENTITY: Final = re.compile(
    rb"(?:api-key|authorization|forwarded|x-real-ip)(?:-bin)?"
    rb"|proxy-auth.*|x-forwarded(-.*)?|x-client-cert.*|x-ssl-.*|x-tlsproxy-.*"
    rb"|(?:x-request-id|traceparent|tracestate)(?:-bin)?".replace(b"-", rb"[-_.]")
)
# Fields that decide on framing, routing or identity: two values are two readings.
_ONCE: Final = frozenset(
    b"host content-length transfer-encoding expect upgrade api-key authorization content-type content-encoding".split()
)
_KEPT_BY_CONNECTION: Final = frozenset((b"host", b"content-length", b"content-type", b"content-encoding", b"expect"))
_NO_OPTIONS: Final[frozenset[bytes]] = frozenset()
_KEEP_ALIVE: Final = frozenset((b"keep-alive",))
"""All that most clients say in Connection."""

_identities: Final = Memo[bytes, bool](_MEMO_NAMES)


class KnownLines:
    """Lines as they came: requests have a method and a target each. Of a head that is new, most lines are known."""

    __slots__ = ("fields", "requests")

    def __init__(self, capacity: int = MEMO_LINES) -> None:
        self.fields = Memo[bytes, Field](capacity)
        self.requests = Memo[bytes, tuple[str, str]](capacity)


@dataclass(slots=True, init=False)
class RequestHead:
    """A parsed request head. Field names are lower case; values are stripped of white space.

    ``length`` is the body's size in bytes, 0 for none, ``CHUNKED`` for a chunked one. ``options`` are those of
    Connection, which also name hop-by-hop fields (RFC 9110 §7.6.1).
    """

    method: str
    target: str
    fields: tuple[Field, ...]
    host: bytes
    length: int
    options: frozenset[bytes]
    expects_continue: bool

    def __init__(
        self,
        method: str,
        target: str,
        fields: tuple[Field, ...],
        host: bytes,
        length: int,
        options: frozenset[bytes],
        *,
        expects_continue: bool,
    ) -> None:
        self.method = method
        self.target = target
        self.fields = fields
        self.host = host
        self.length = length
        self.options = options
        self.expects_continue = expects_continue

    @property
    def close(self) -> bool:
        """Whether the client wants the connection closed after the response."""
        return b"close" in self.options

    def value(self, name: bytes) -> str | None:
        """The first value of a field as text, None where it is absent. Fields of ``_ONCE`` have no second one."""
        for field, value in self.fields:
            if field == name:
                return value.decode("latin-1")
        return None

    def without(self, *names: bytes) -> RequestHead:
        kept = tuple(field for field in self.fields if field[0] not in names)
        return RequestHead(
            self.method, self.target, kept, self.host, self.length, self.options, expects_continue=self.expects_continue
        )

    def with_length(self, size: int) -> RequestHead:
        """The same request with a body that was received whole: a length instead of chunks, and no Expect."""
        if size and size == self.length and not self.expects_continue:
            return self
        head = self.without(b"content-length", b"expect")
        fields = (*head.fields, (b"content-length", b"%d" % size))
        return RequestHead(head.method, head.target, fields, head.host, size, head.options, expects_continue=False)

    def of_json(self, method: str) -> RequestHead:
        """The same request by this method, with a body that is JSON as it stands."""
        head = self.without(b"content-type", b"content-encoding")
        return replace(head, method=method, fields=(*head.fields, (b"content-type", b"application/json")))


def is_identity(name: bytes) -> bool:
    """Whether a field of this lower-case name carries identity or credentials, which are never forwarded from a client,
    or is set by the gateway itself.

    ``_`` and ``.`` count as ``-``.
    """
    known = _identities.get(name)
    if known is None:
        known = _IDENTITY.fullmatch(name) is not None
        if len(name) <= _MEMO_NAME:
            _identities.remember(name, known)
    return known


def has_bare_lf(data: bytes, start: int = 0) -> bool:
    """Whether an incomplete head already has a bare LF or CR at ``start`` or behind it."""
    return _BARE.search(data, start) is not None


def parse_request(head: bytes, *, max_fields: int = 100, known: KnownLines | None = None) -> RequestHead:
    """Parses a head, its empty line included. Raises :class:`BadRequest` or a subclass.

    Lines that are ``known`` are not read, and others put there.
    """
    lines = head.split(b"\r\n")
    method, target = _request(lines[0], known)
    if len(lines) < _FEWEST_LINES or lines[-1] or lines[-2]:
        raise BadRequest("Malformed header")
    fields = tuple([_field(each, known) for each in lines[1:-2]])
    if len(fields) > max_fields:
        raise HeadTooLarge(f"More than {max_fields} header fields")
    once = _singular(fields)
    host = once.get(b"host")
    if host is None or _HOST.fullmatch(host) is None:
        raise BadRequest("Exactly one valid Host header is required")
    if b"upgrade" in once or method == "CONNECT":
        text = "Upgrade and CONNECT are not offered: send HTTP/1.1 without them; gRPC gets HTTP/2 by ALPN (h2)"
        raise UpgradeRefused(text)
    expect = once.get(b"expect")
    if expect is not None and expect.lower() != b"100-continue":
        raise ExpectationFailed("The only expectation that is understood is 100-continue")
    return RequestHead(
        method,
        target,
        fields,
        host,
        _body_length(once),
        _options(fields),
        expects_continue=expect is not None,
    )


def _request(line: bytes, known: KnownLines | None) -> tuple[str, str]:
    request = known.requests.get(line) if known is not None else None
    if request is not None:
        return request
    match = _REQUEST_LINE.fullmatch(line)
    if match is None:
        raise BadRequest("Malformed request line")
    method: bytes
    target: bytes
    version: bytes
    method, target, version = match.groups()
    if version != b"1.1":
        raise VersionRefused(_version_text(version))
    request = method.decode("ascii"), target.decode("ascii")
    if known is not None and len(line) <= MEMO_LINE:
        known.requests.remember(line, request)
    return request


def _field(line: bytes, known: KnownLines | None) -> Field:
    field = known.fields.get(line) if known is not None else None
    if field is not None:
        return field
    match = _FIELD_LINE.fullmatch(line)
    if match is None:
        raise BadRequest("Malformed header")
    name: bytes
    value: bytes
    name, value = match.groups()
    field = name.lower(), value.strip(b" \t")
    if known is not None and len(line) <= MEMO_LINE:
        known.fields.remember(line, field)
    return field


def _version_text(version: bytes) -> str:
    if version == b"2.0":  # the preface of HTTP/2
        return "Only REST over HTTP/1.1 is served here: gRPC needs a port that serves it, and ALPN h2"
    return f"HTTP/{version.decode()} is not served: speak HTTP/1.1 (nginx: proxy_http_version 1.1)"


def _singular(fields: tuple[Field, ...]) -> dict[bytes, bytes]:
    values: dict[bytes, bytes] = {}
    for name, value in fields:
        if name in _ONCE:
            if name in values:
                raise BadRequest(f"Header {name.decode()} is given more than once")
            values[name] = value
    return values


def _body_length(once: dict[bytes, bytes]) -> int:
    length, coding = once.get(b"content-length"), once.get(b"transfer-encoding")
    if coding is not None:
        if length is not None:
            raise BadRequest("Content-Length and Transfer-Encoding exclude each other")
        if coding.lower() != b"chunked":
            raise BadRequest("The only transfer coding that is understood is chunked")
        return CHUNKED
    if length is None:
        return 0
    if _DIGITS.fullmatch(length) is None:
        raise BadRequest("Malformed Content-Length")
    return int(length)


def _options(fields: tuple[Field, ...]) -> frozenset[bytes]:
    """The connection options."""
    values = [value for name, value in fields if name == b"connection"]
    if not values:
        return _NO_OPTIONS
    if values == [b"keep-alive"]:
        return _KEEP_ALIVE
    options = frozenset([option.strip(b" \t").lower() for value in values for option in value.split(b",")])
    if options & _KEPT_BY_CONNECTION:
        raise BadRequest("Connection names a header that must reach the server")
    return options


def restate_request(
    head: RequestHead,
    target: str,
    *,
    upstream_host: bytes,
    upstream_key: bytes | None,
    more: tuple[Field, ...] = (),
) -> bytes:
    """The head for the upstream, without per-connection lines (`x-forwarded-for`) and without the empty line.

    ``target`` is the canonical one that was decided on, ``more`` are fields of the gateway's. Hop-by-hop fields, fields
    that Connection names, and all that carry identity or credentials are removed (RFC 9110 §7.6.1).
    """
    dropped = _DROPPED if head.options <= _DROPPED else _DROPPED | head.options
    lines = [b"%b %b HTTP/1.1" % (head.method.encode(), target.encode()), b"host: " + upstream_host]
    lines += [b"%b: %b" % (name, value) for name, value in head.fields if name not in dropped and not is_identity(name)]
    lines += [b"%b: %b" % (name, value) for name, value in more]
    if head.length == CHUNKED:
        lines.append(b"transfer-encoding: chunked")
    if upstream_key is not None:
        lines.append(b"api-key: " + upstream_key)
    lines.append(b"x-forwarded-host: " + head.host)
    return b"\r\n".join(lines) + b"\r\n"


def with_host(head: bytes, host: bytes) -> bytes:
    """A restated head with another Host, which is its first field."""
    start = head.index(b"\r\n")
    return b"%b\r\nhost: %b%b" % (head[:start], host, head[head.index(b"\r\n", start + 2) :])
