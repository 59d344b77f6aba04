"""`POST /audit/logs`: queries of the audit log, and matching records (Qdrant: audit_reader.rs)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

import orjson

from tlsproxy.authz.claims import MalformedToken, read_object
from tlsproxy.errors import BadRequest

DEFAULT_LIMIT: Final = 100
MOST: Final = 10_000
LARGEST: Final = 32 << 20
"""Most bytes of all entries of a response."""


@dataclass(frozen=True, slots=True)
class AuditQuery:
    """``time_from`` is inclusive, ``time_to`` exclusive. ``filters``: (field, required value as text).

    A list has each of its members as a value: `{"token_groups": "sre"}`.
    """

    time_from: datetime | None = None
    time_to: datetime | None = None
    limit: int = DEFAULT_LIMIT
    filters: tuple[tuple[str, str], ...] = ()

    def matches(self, record: Mapping[str, Any]) -> bool:
        if self.time_from is not None or self.time_to is not None:
            when = _moment(record.get("timestamp"))
            if when is None or (self.time_from is not None and when < self.time_from):
                return False
            if self.time_to is not None and when >= self.time_to:
                return False
        return all(name in record and text in _texts(record[name]) for name, text in self.filters)


def read_query(body: bytes) -> AuditQuery:
    """Raises :class:`BadRequest`."""
    try:
        fields = read_object(body)
    except MalformedToken as error:
        raise BadRequest(f"Format error in JSON body: {error}") from None
    limit, filters = fields.get("limit"), fields.get("filters", {})
    if limit is not None and (type(limit) is not int or not 1 <= limit <= MOST):
        raise BadRequest(f"Validation error in JSON body: limit must be from 1 to {MOST}")
    if not isinstance(filters, dict) or not all(isinstance(value, str) for value in filters.values()):
        raise BadRequest("Format error in JSON body: filters must be a map of text")
    return AuditQuery(
        _time(fields, "time_from"),
        _time(fields, "time_to"),
        DEFAULT_LIMIT if limit is None else limit,
        tuple(filters.items()),
    )


def _time(fields: Mapping[str, Any], name: str) -> datetime | None:
    value = fields.get(name)
    if value is None:
        return None
    when = _moment(value)
    if when is None:
        raise BadRequest(f"Format error in JSON body: {name} must be RFC 3339 with a time zone")
    return when


def _moment(value: Any) -> datetime | None:
    try:
        when = datetime.fromisoformat(value)
    except (TypeError, ValueError):
        return None
    return when if when.tzinfo is not None else None


def _texts(value: Any) -> list[str]:
    return [
        one if isinstance(one, str) else orjson.dumps(one).decode()
        for one in (value if isinstance(value, list) else [value])
    ]
