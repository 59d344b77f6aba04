"""Text for people: dates, and strangers' text made safe for a terminal and a line of a log."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Final

_UNITS: Final = ((86400, "day"), (3600, "hour"), (60, "minute"), (1, "second"))
_LAST: Final = datetime.max.replace(tzinfo=UTC, microsecond=0).timestamp()


def rfc3339(when: float) -> str:
    """Seconds since the epoch as `2026-11-28T19:12:01Z` (RFC 3339 §5.6), fractions cut off."""
    return f"{_utc(when):%Y-%m-%dT%H:%M:%SZ}"


def utc_time(when: float) -> str:
    """Seconds since the epoch as a person reads them: `2026-11-28 19:12:01 UTC`."""
    return f"{_utc(when):%Y-%m-%d %H:%M:%S} UTC"


def _utc(when: float) -> datetime:
    """Moments after the year 9999, such as a token's expiry may name, become the end of that year."""
    return datetime.fromtimestamp(min(when, _LAST), UTC)


def printable(text: str) -> str:
    r"""The text on one line, without control sequences: `a⏎b` becomes `a\nb`, letters of any alphabet stay."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


def span(seconds: float) -> str:
    """A duration in the largest unit of which there are at least two: `3 hours`, `90 minutes`."""
    for size_of, unit in _UNITS:
        if seconds >= 2 * size_of:
            return f"{int(seconds // size_of)} {unit}s"
    return "1 second" if seconds >= 1 else "a moment"
