"""HTTP/1.1 response heads of the upstream: parsed as strictly as requests, forwarded without hop-by-hop fields.

The content of a response is trusted, its framing is not: a response whose end two parsers could place differently
closes the connection instead of reaching a client (RFC 9112 §6.3, §11.1).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Final

from tlsproxy.wire.http1 import CHUNKED

UNTIL_CLOSE: Final = -2
"""The ``length`` of a body that ends with its connection."""

_HEAD = re.compile(
    rb"HTTP/1\.([01]) ([1-5][0-9]{2})([ \t\x21-\x7e\x80-\xff]*)\r\n"
    rb"((?:[!#$%&'*+\-.^_`|~0-9A-Za-z]+:[\t\x20-\x7e\x80-\xff]*\r\n)*)\r\n"
)
# Hop-by-hop fields, and those that the gateway sets itself.
_OURS = re.compile(
    rb"^(connection|keep-alive|proxy-connection|te|trailer|upgrade|transfer-encoding|content-length|x-request-id)"
    rb":([^\r\n]*)\r\n",
    re.IGNORECASE | re.MULTILINE,
)
# The frequent form: HTTP/1.1, one Content-Length, and none of the other fields above; one match, half the time.
_OTHER = (
    rb"(?!(?i:connection|keep-alive|proxy-connection|te|trailer|upgrade|transfer-encoding|content-length|x-request-id):)"
    rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+:[\t\x20-\x7e\x80-\xff]*\r\n"
)
_USUAL = re.compile(
    rb"(HTTP/1\.1 ([2-5][0-9]{2})[ \t\x21-\x7e\x80-\xff]*\r\n)((?:%b)*)"
    rb"(?i:content-length):[ \t]*([0-9]{1,15})[ \t]*\r\n((?:%b)*)\r\n" % (_OTHER, _OTHER)
)
_FRAMING = re.compile(rb"^(?:transfer-encoding|content-length):[^\r\n]*\r\n", re.IGNORECASE | re.MULTILINE)
_MEMO: Final = 256
_LONGEST: Final = 1024
"""Longer heads are not memoized: the memo's size is bounded by the product."""
_DIGITS = re.compile(rb"[0-9]{1,15}")
_GATEWAY: Final = frozenset((502, 503, 504))
_JSON = re.compile(rb"^content-type:[ \t]*application/json", re.IGNORECASE | re.MULTILINE)
_NO_CONTENT: Final = 204
_BODILESS = frozenset((_NO_CONTENT, 304))


@dataclass(slots=True)
class ResponseHead:
    """``fields`` are the field lines to forward. ``length`` is that of the body on the connection: a size, ``CHUNKED``
    or ``UNTIL_CLOSE``. ``keep``: the upstream connection may be used again. ``ends``: the client's may not.
    """

    status: int
    line: bytes
    fields: bytes
    length: int
    keep: bool
    ends: bool = False

    @property
    def of_a_proxy(self) -> bool:
        """Whether a proxy between says that Qdrant cannot be had: Qdrant's own errors are JSON."""
        return self.status in _GATEWAY and _JSON.search(self.fields) is None

    def reframed(self, length: int) -> ResponseHead:
        """The head with the framing of another body: of this length, or chunked."""
        framing = b"transfer-encoding: chunked\r\n" if length == CHUNKED else b"content-length: %d\r\n" % length
        return replace(self, fields=_FRAMING.sub(b"", self.fields) + framing, length=length)

    def delimited(self) -> ResponseHead:
        """The head with a body in chunks in place of one that ends with its connection: by the last chunk a client
        tells a whole body from one that broke off, also where its TLS library takes any end for the end.
        """
        return replace(self.reframed(CHUNKED), ends=True)

    def restated(self, fields: bytes = b"", *, close: bool) -> bytes:
        """The whole head for the client, with additional field lines.

        ``close`` announces that the connection ends with this response.
        """
        return self.line + self.fields + fields + (b"connection: close\r\n\r\n" if close else b"\r\n")


def parse_response(head: bytes, *, to_head: bool) -> ResponseHead:
    """Parses a head, its empty line included. ``to_head``: it answers a HEAD request. Raises ValueError.

    A server's heads repeat but for the date and the length, so the last ones are memoized (0.3 µs instead of 3).
    """
    return _memoized(head, to_head) if len(head) <= _LONGEST else parse_unmemoized(head, to_head)


def parse_unmemoized(head: bytes, to_head: bool) -> ResponseHead:  # noqa: FBT001 - lru_cache is quicker without names
    """Parses a head without the memo."""
    usual = _USUAL.fullmatch(head)
    if usual is None or usual[2] == b"204":
        return parse_unusual(head, to_head=to_head)
    line, code, before, size, after = usual.groups()
    status, length = int(code), int(size)
    fields = b"%b%bcontent-length: %d\r\n" % (before, after, length)
    return ResponseHead(status, line, fields, 0 if to_head or status in _BODILESS else length, keep=True)


_memoized = lru_cache(_MEMO)(parse_unmemoized)


def parse_unusual(head: bytes, *, to_head: bool) -> ResponseHead:  # noqa: C901 - one branch for each field of the framing
    """Parses any head, of the frequent form or not."""
    match = _HEAD.fullmatch(head)
    if match is None:
        raise ValueError("malformed response head")
    status = int(match.group(2))
    fields = match.group(4)
    keep = match.group(1) == b"1"
    length: int | None = None
    coding: bytes | None = None
    for name, padded in _OURS.findall(fields):
        lowered, value = name.lower(), padded.strip(b" \t")
        if lowered == b"content-length":
            if length is not None or _DIGITS.fullmatch(value) is None:
                raise ValueError("malformed or repeated content-length")
            length = int(value)
        elif lowered == b"transfer-encoding":
            if coding is not None or value.lower() != b"chunked":
                raise ValueError("a transfer coding other than chunked")
            coding = value
        elif lowered == b"connection" and b"close" in value.lower():
            keep = False
    if length is not None and coding is not None:
        raise ValueError("content-length beside transfer-encoding")
    restated = _OURS.sub(b"", fields)
    if status < 200 or status == _NO_CONTENT:  # noqa: PLR2004 - 1xx; neither is framed (RFC 9110 §8.6, RFC 9112 §6.1)
        pass
    elif length is not None:
        restated += b"content-length: %d\r\n" % length
    elif coding is not None:
        restated += b"transfer-encoding: chunked\r\n"
    return ResponseHead(
        status=status,
        line=b"HTTP/1.1 %d%b\r\n" % (status, match.group(3)),
        fields=restated,
        length=_body_length(status, length, chunked=coding is not None, to_head=to_head),
        keep=keep,
    )


def _body_length(status: int, length: int | None, *, chunked: bool, to_head: bool) -> int:
    """The length of the body (RFC 9112 §6.3, its rules in order)."""
    if to_head or status < 200 or status in _BODILESS:  # noqa: PLR2004 - 1xx
        return 0
    if chunked:
        return CHUNKED
    return UNTIL_CLOSE if length is None else length
