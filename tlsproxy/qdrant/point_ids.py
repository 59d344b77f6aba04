"""Ids of points: numbers below 2**64 and UUIDs, which have several spellings (Rust's `Uuid::parse_str`)."""

from __future__ import annotations

import re
from typing import Final

PointId = int | str
"""A number, or a UUID in the spelling of Qdrant's answers."""

_HYPHENATED: Final = "[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"
_UUID: Final = re.compile(rf"[0-9a-f]{{32}}|(?:urn:uuid:)?{_HYPHENATED}|\{{{_HYPHENATED}\}}", re.IGNORECASE)


def canonical_uuid(text: str) -> str | None:
    """The spelling of Qdrant's answers: lower case, with hyphens. None for what is no UUID.

    Example: `{936DA01F-9ABD-4D9D-80C7-02AF85C822A8}` is `936da01f-9abd-4d9d-80c7-02af85c822a8`.
    """
    if _UUID.fullmatch(text) is None:
        return None
    digits = text.lower().removeprefix("urn:uuid:").strip("{}").replace("-", "")
    return "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))
