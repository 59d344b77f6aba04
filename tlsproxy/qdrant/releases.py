"""Releases of Qdrant: those that the tables are made for, and the operations that one of them has."""

from __future__ import annotations

from typing import Final

import orjson

from tlsproxy.qdrant.operations import GRPC, REST, Operation, Release

OLDEST: Final[Release] = (1, 16)
NEWEST: Final[Release] = (1, 20)
"""The releases whose operations, messages and access checks the tables have."""

_LONGEST: Final = 64
_EFFECTS: Final = {
    "older": "roles with a filter need 1.16; a request that it does not know, it refuses itself",
    "newer": "what it has beyond that is refused: unknown routes and methods to everybody, unknown fields of messages "
    "to limited callers",
}


def version_in(answer: bytes) -> str:
    """The version in Qdrant's answer to `GET /`, such as `1.20.0`; empty for anything else."""
    try:
        parsed = orjson.loads(answer)
    except ValueError:
        return ""
    version = parsed.get("version") if isinstance(parsed, dict) else None
    return version if isinstance(version, str) and len(version) <= _LONGEST else ""


def release_of(version: str) -> Release | None:
    """`1.20.1-dev` is (1, 20); None for anything else than a version."""
    major, _, rest = version.partition(".")
    minor = rest.partition(".")[0]
    if major.isdecimal() and minor.isdecimal():
        return int(major), int(minor)
    return None


def outside(release: Release) -> str:
    """Consequence of a release that the tables are not made for; empty for one of theirs."""
    if OLDEST <= release <= NEWEST:
        return ""
    age = "older" if release < OLDEST else "newer"
    return f"{shown(release)} is {age} than {shown(OLDEST)} to {shown(NEWEST)}, which tlsproxy knows: {_EFFECTS[age]}"


def missing(release: Release) -> tuple[Operation, ...]:
    """The operations of the tables that this release does not have."""
    return tuple(row for row in (*REST, *GRPC) if not row.own and not row.served_by(release))


def shown(release: Release) -> str:
    return ".".join(map(str, release))
