"""Request targets: one canonical form, or a refusal.

Qdrant's router (actix) decodes a path except for ``%25 %2F %2B``, cuts it into segments, and decodes what is left in a
captured one: a name is decoded exactly once, whatever is in it. Example: `clip%2Fv1` is `clip/v1`, `a%2520b` is
`a%20b`. Before that it merges ``//`` and trims a trailing ``/``. So it is here, and the path for the upstream is
rebuilt from the decoded segments: the decision and the request that Qdrant gets are about the same names. A path with
a second reading is refused: dot segments (a normaliser resolves them), NUL (it ends a text in C), bytes that are not
UTF-8 (actix replaces them, so that many spellings become one name).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final
from urllib.parse import quote, unquote_to_bytes

from tlsproxy.errors import AmbiguousPath, BadRequest

MAX_SEGMENT: Final = 1024

# pchar and "/" (RFC 3986 §3.3), and what clients leave unescaped besides and Qdrant takes: payload fields like a[].b
_PATH: Final = re.compile(r"/(?:[0-9A-Za-z\-._~!$&'()*+,;=:@/\[\]|^]|%[0-9A-Fa-f]{2})*")
_QUERY: Final = re.compile(r"(?:[0-9A-Za-z\-._~!$&'()*+,;=:@/?\[\]|{}^`]|%[0-9A-Fa-f]{2})*")
_PLAIN: Final = re.compile(r"/[0-9A-Za-z\-_~/]*")


@dataclass(slots=True, init=False)
class RequestTarget:
    """``segments`` are decoded and not empty; ``path`` is canonical; ``query`` is as sent, without its ``?``."""

    segments: tuple[str, ...]
    path: str
    query: str

    def __init__(self, segments: tuple[str, ...], path: str, query: str) -> None:
        self.segments = segments
        self.path = path
        self.query = query

    def __str__(self) -> str:
        return f"{self.path}?{self.query}" if self.query else self.path


def parse_target(target: str) -> RequestTarget:
    """Parses a target in origin-form (RFC 9112 §3.2.1). Raises :class:`BadRequest` and :class:`AmbiguousPath`."""
    path, _, query = target.partition("?")
    if query and _QUERY.fullmatch(query) is None:
        raise BadRequest("Malformed query")
    if path == "/":
        return RequestTarget((), path, query)
    if _PLAIN.fullmatch(path) is not None and "//" not in path and not path.endswith("/"):
        return RequestTarget(tuple(path[1:].split("/")), path, query)  # nothing to decode, merge or trim
    if _PATH.fullmatch(path) is None:
        raise BadRequest("The request target must be an absolute path")
    segments = tuple(_decoded(segment) for segment in path.split("/") if segment)
    return RequestTarget(segments, "/" + "/".join(quote(segment, safe="") for segment in segments), query)


def _decoded(segment: str) -> str:
    try:
        decoded = unquote_to_bytes(segment).decode("utf-8")
    except UnicodeDecodeError:
        raise AmbiguousPath("The path is not UTF-8") from None
    if decoded in {".", ".."} or "\0" in decoded:
        raise AmbiguousPath("The path has a dot segment, or NUL")
    if len(decoded) > MAX_SEGMENT:
        raise BadRequest(f"A segment of the path has at most {MAX_SEGMENT} characters")
    return decoded
