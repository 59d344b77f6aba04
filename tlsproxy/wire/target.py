"""Request targets: one canonical form, or a refusal.

Qdrant merges ``//``, trims a trailing ``/``, matches on a path that is decoded except for ``%25 %2F %2B``, and decodes
a captured segment a second time. Here a path is decoded exactly once, anything that a second decoding or another
normaliser could read differently is refused (`%252F`, `..`), and the path for the upstream is rebuilt from the decoded
segments: the decision and the request that Qdrant gets are about the same path.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final
from urllib.parse import quote, unquote_to_bytes

from tlsproxy.errors import BadRequest

MAX_SEGMENT: Final = 1024

# pchar and "/" (RFC 3986 §3.3); the query adds what browsers and clients leave unescaped there.
_PATH = re.compile(r"/(?:[0-9A-Za-z\-._~!$&'()*+,;=:@/]|%[0-9A-Fa-f]{2})*")
_QUERY = re.compile(r"(?:[0-9A-Za-z\-._~!$&'()*+,;=:@/?\[\]|{}^`]|%[0-9A-Fa-f]{2})*")
_PLAIN = re.compile(r"(?:/[0-9A-Za-z\-_~]+)+|/")
# A percent sign (of a second encoding), a separator, a C0 control or DEL.
_AMBIGUOUS = re.compile(r"[%/\\\x00-\x1f\x7f]")


@dataclass(frozen=True, slots=True)
class RequestTarget:
    """``segments`` are decoded and not empty; ``path`` is canonical; ``query`` is as sent, without its ``?``."""

    segments: tuple[str, ...]
    path: str
    query: str

    def __str__(self) -> str:
        return f"{self.path}?{self.query}" if self.query else self.path


def parse_target(target: str) -> RequestTarget:
    """Parses a target in origin-form (RFC 9112 §3.2.1). Raises :class:`BadRequest`."""
    path, _, query = target.partition("?")
    if _QUERY.fullmatch(query) is None:
        raise BadRequest("Malformed query")
    if _PLAIN.fullmatch(path) is not None:  # nothing to decode, merge or trim
        return RequestTarget(tuple(path[1:].split("/")) if len(path) > 1 else (), path, query)
    if _PATH.fullmatch(path) is None:
        raise BadRequest("The request target must be an absolute path")
    segments = tuple(_decoded(segment) for segment in path.split("/") if segment)
    return RequestTarget(segments, "/" + "/".join(quote(segment, safe="") for segment in segments), query)


def _decoded(segment: str) -> str:
    try:
        decoded = unquote_to_bytes(segment).decode("utf-8")
    except UnicodeDecodeError:
        raise BadRequest("The path is not UTF-8") from None
    if decoded in {".", ".."} or _AMBIGUOUS.search(decoded) is not None or len(decoded) > MAX_SEGMENT:
        raise BadRequest("The path holds a segment that could be read in two ways")
    return decoded
