"""Text for people: dates, and strangers' text made safe for a terminal and a line of a log."""

from __future__ import annotations

from datetime import UTC, datetime


def rfc3339(when: float) -> str:
    """Seconds since the epoch as `2026-11-28T19:12:01Z` (RFC 3339 §5.6), fractions cut off."""
    return datetime.fromtimestamp(int(when), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def printable(text: str) -> str:
    r"""The text on one line, without control sequences: `a⏎b` becomes `a\nb`, letters of any alphabet stay."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)
