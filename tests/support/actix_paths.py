"""Qdrant's reading of a path: actix's NormalizePath::trim, its router, and its extractor, each in a line of its own.

The router's text keeps `%25`, `%2F` and `%2B`, so that its cuts at `/` are those of the client; the extractor decodes
what is left. Recorded of Qdrant 1.18: `/collections/a%2520b` is the collection `a%20b`, `docs%2Fx` is `docs/x`.
"""

from __future__ import annotations

import re


def _decoded(text: bytes, protected: bytes = b"") -> bytes:
    def one(found: re.Match[bytes]) -> bytes:
        byte = bytes.fromhex(found[1].decode())
        return found[0] if byte in protected else byte

    return re.sub(rb"%([0-9A-Fa-f]{2})", one, text)


def names_of(target: str) -> list[str]:
    """The segments of a target as Qdrant's handlers get them in the end."""
    path = re.sub("/+", "/", target.partition("?")[0].rstrip("/")) or "/"
    routed = _decoded(path.encode("latin-1"), protected=b"%/+").decode("utf-8", "replace")
    return [_decoded(segment.encode()).decode("utf-8", "replace") for segment in routed.split("/")][1:]
