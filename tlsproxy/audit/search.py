"""Search in the audit log's files. Blocks, for a bounded time: to be called off the event loop.

The oldest matching entries come first, as in Qdrant: for the next ones the client moves ``time_from``. Lines that are
still queued are not found, and malformed ones (a crash may leave half a line) are skipped.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

import orjson

from tlsproxy.audit.query import LARGEST, AuditQuery
from tlsproxy.errors import Overloaded

PATIENCE: Final = 10.0
"""Most seconds of reading, after which the query is refused."""
LONGEST_LINE: Final = 1 << 20

_NAME: Final = re.compile(r"audit\.(\d{4}-\d{2}-\d{2})(?:-(\d{2}))?\.log", re.ASCII)


def matching_entries(
    directory: Path, query: AuditQuery, largest: int = LARGEST, patience: float = PATIENCE
) -> list[bytes]:
    """Matching lines without newlines. Raises OSError, and Overloaded if it takes too long or finds too much."""
    give_up = time.monotonic() + patience
    found: list[bytes] = []
    size = 0
    for path in sorted(directory.iterdir()):
        if not _may_hold(path.name, query):
            continue
        for line in _lines(path):
            if time.monotonic() > give_up:
                raise Overloaded("The audit log could not be read in time: ask for a shorter time")
            if not _matches(line, query):
                continue
            found.append(line)
            size += len(line)
            if size > largest:
                raise Overloaded("The audit log holds too much of that: ask for less")
            if len(found) == query.limit:
                return found
    return found


def _may_hold(name: str, query: AuditQuery) -> bool:
    match = _NAME.fullmatch(name)
    if match is None:
        return False
    day, hour = match.groups()
    try:
        begins = datetime.fromisoformat(f"{day}T{hour or '00'}:00:00").replace(tzinfo=UTC)
        ends = begins + (timedelta(days=1) if hour is None else timedelta(hours=1))
    except (ValueError, OverflowError):
        return False
    if query.time_to is not None and begins >= query.time_to:
        return False
    return query.time_from is None or ends > query.time_from


def _lines(path: Path) -> Iterator[bytes]:
    """The lines of a file; not through a symlink or FIFO: write access to the directory must not redirect reads."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    with os.fdopen(descriptor, "rb") as file:
        while line := file.readline(LONGEST_LINE):
            yield line.strip()


def _matches(line: bytes, query: AuditQuery) -> bool:
    try:
        record = orjson.loads(line)
    except orjson.JSONDecodeError:
        return False
    return isinstance(record, dict) and query.matches(record)
