"""Ids of points: numbers below 2**64 and UUIDs, which have several spellings (Rust's `Uuid::parse_str`)."""

from __future__ import annotations

import re
from typing import Any, Final

PointId = int | str
"""A number, or a UUID in the spelling of Qdrant's answers."""

_HYPHENATED: Final = "[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"
_UUID: Final = re.compile(rf"[0-9a-f]{{32}}|(?:urn:uuid:)?{_HYPHENATED}|\{{{_HYPHENATED}\}}", re.IGNORECASE)

_CANONICAL: Final = re.compile(_HYPHENATED, re.ASCII)


def canonical_uuid(text: str) -> str | None:
    """The spelling of Qdrant's answers: lower case, with hyphens. None for what is no UUID.

    Example: `{936DA01F-9ABD-4D9D-80C7-02AF85C822A8}` is `936da01f-9abd-4d9d-80c7-02af85c822a8`. A text in that spelling
    is returned itself: of a million ids there is no second copy.
    """
    if _CANONICAL.fullmatch(text) is not None:
        return text
    if _UUID.fullmatch(text) is None:
        return None
    digits = text.lower().removeprefix("urn:uuid:").strip("{}").replace("-", "")
    return "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))


LARGEST: Final = (1 << 64) - 1
_DIGITS: Final = re.compile(r"\+?[0-9]+", re.ASCII)


def point_id_of(value: object) -> PointId | None:
    """The id in a JSON value; None for what is none."""
    if type(value) is int:
        return value if 0 <= value <= LARGEST else None
    return canonical_uuid(value) if isinstance(value, str) else None


def point_id_in(point: Any) -> PointId:
    """The id of a point in an answer. Raises ValueError where it has none."""
    found = point_id_of(point.get("id")) if isinstance(point, dict) else None
    if found is None:
        raise ValueError("a point without an id")
    return found


def point_id_in_path(text: str) -> PointId | None:
    """The id in a path, as Qdrant reads it: a number if it is one, leading zeros and all, else a UUID."""
    if _DIGITS.fullmatch(text) is not None:
        digits = text.lstrip("+0") or "0"
        return point_id_of(int(digits)) if len(digits) <= len(str(LARGEST)) else None
    return canonical_uuid(text)
