"""Roles and rules of tenants that share the collection `docs`, each with its organizational unit as its mark."""

from __future__ import annotations

from typing import Any

from tlsproxy.authz.access import Condition, Confinement, Confinements, Value
from tlsproxy.qdrant.tenant_filters import Marks, marking
from tlsproxy.wire.cooperative import Pace, at_once

ROLES = {
    "admin": {"access": "m"},
    "tenant": {"access": [{"collection": "docs", "access": "rw"}], "filter": {"tenant": "{ou}"}},
}
IDENTITIES = [
    {"name": "platform", "match": {"ou": "platform"}, "role": "admin"},
    {"name": "tenants", "match": {"cn": "tenant-*"}, "role": "tenant"},
]


def confinement(**values: Value) -> Confinements:
    """One role's filter, filled in with these values."""
    return (Confinement(tuple(Condition(key, (value,)) for key, value in values.items())),)


def marked(payload: dict[str, Any], marks: Marks) -> dict[str, Any]:
    """The payload of a new point with the marks, in one step."""
    return at_once(marking(payload, marks, Pace()))
