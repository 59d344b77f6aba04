"""Filters of Qdrant's gRPC API that confine a request to the points of a caller's conditions."""

from __future__ import annotations

from tlsproxy.authz.access import Condition
from tlsproxy.qdrant.rest_tenancy import Conditions
from tlsproxy.wire.protobuf import delimited


def narrowed(own: bytes, conditions: Conditions, *, alone: bool = False, ids: bytes | None = None) -> bytes:
    """A Filter of all conditions, with the caller's own filter as one of them.

    ``alone``: excludes shared points. ``ids``: a PointsIdsList, whose points alone are meant.
    """
    must = [] if ids is None else [delimited(2, delimited(3, ids))]  # HasIdCondition has the same field
    must += (delimited(2, delimited(1, _match(one))) for one in conditions)
    if alone:
        must += (delimited(2, delimited(1, _one_value(one))) for one in conditions)
    if own:
        must.append(delimited(2, delimited(4, own)))
    return b"".join(must)


def _match(condition: Condition) -> bytes:
    """A FieldCondition: this key has this keyword."""
    return delimited(1, condition.key.encode()) + delimited(2, delimited(1, condition.value.encode()))


def _one_value(condition: Condition) -> bytes:
    """A FieldCondition: this key has at most one value (values_count.lte)."""
    return delimited(1, condition.key.encode()) + delimited(6, b"\x20\x01")
