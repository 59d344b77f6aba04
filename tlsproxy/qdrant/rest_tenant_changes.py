"""Changes in a REST body, confined to a tenant's points: by filter or by ids, and the marks of points that are made.

Each change takes its body, or that of one operation of a batch, and returns the name of the operation that it becomes:
a payload that is cleared is overwritten by one of the marks alone. Bodies may be long, so it is done in steps.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Final

from tlsproxy.authz.access import Confinements
from tlsproxy.errors import BadRequest, Unconfined
from tlsproxy.qdrant import tenant_texts
from tlsproxy.qdrant.point_ids import PointId, point_id_of
from tlsproxy.qdrant.rest_collections import expect_object, wrong_type
from tlsproxy.qdrant.tenant_filters import Marks, check_count, chosen_roots, marking, marks_of, narrowed, roots_of
from tlsproxy.wire.cooperative import Pace, Steps

_KEY: Final = 2
"""Units of work of a payload key, or an operation."""

_PLAIN_PATH = re.compile(r"([A-Za-z0-9_-]+)(?:(?:\.[A-Za-z0-9_-]+)|\[[0-9]*\])*")

Body = dict[str, Any]
Change = Callable[[Body, Confinements, Pace], Steps[str]]


def point_ids(value: Any, where: str, pace: Pace) -> Steps[list[PointId]]:
    """A list of ids. Raises :class:`BadRequest`."""
    ids: list[PointId] = []
    for one in _array(value, where):
        found = point_id_of(one)
        if found is None:
            raise wrong_type(where, "ids: unsigned integers or UUIDs")
        ids.append(found)
        if pace.is_step():
            yield None
    return ids


def _upsert(body: Body, confinements: Confinements, pace: Pace) -> Steps[str]:
    if ("points" in body) == ("batch" in body):
        raise BadRequest("Format error in JSON body: either points or batch is expected")
    marks = marks_of(confinements)
    if "points" in body:
        for one in _array(body["points"], "points"):
            point = expect_object(one, "points")
            point["payload"] = yield from _marked(point.get("payload"), marks, pace)
    else:
        batch = expect_object(body["batch"], "batch")
        ids, payloads = _array(batch.get("ids"), "ids"), batch.get("payloads")
        batch["payloads"] = payloads = _array([None] * len(ids) if payloads is None else payloads, "payloads")
        for index, payload in enumerate(payloads):
            payloads[index] = yield from _marked(payload, marks, pace)
    _limit_update(body, confinements)
    return "upsert"


def _update_vectors(body: Body, confinements: Confinements, _pace: Pace) -> Steps[str]:
    yield from ()
    _limit_update(body, confinements)
    return "update_vectors"


def _limit_update(body: Body, confinements: Confinements) -> None:
    """Points that exist are changed only if they are the tenant's (since Qdrant 1.16)."""
    own = body.get("update_filter")
    own = None if own is None else expect_object(own, "update_filter")
    body["update_filter"] = narrowed(own, confinements, alone=True)


def _delete(body: Body, confinements: Confinements, pace: Pace) -> Steps[str]:
    yield from _select(body, confinements, pace)
    return "delete"


def _delete_vectors(body: Body, confinements: Confinements, pace: Pace) -> Steps[str]:
    yield from _select(body, confinements, pace)
    return "delete_vectors"


def _set_payload(body: Body, confinements: Confinements, pace: Pace) -> Steps[str]:
    payload, key = expect_object(body.get("payload"), "payload"), body.get("key")
    if key is None:
        _check_set(payload, roots_of(confinements))
    elif not is_elsewhere(key, confinements):
        raise Unconfined(tenant_texts.BELOW_A_KEY)
    marks_of(confinements)  # raises for conditions that exclude each other
    yield from _select(body, confinements, pace)
    return "set_payload"


def _overwrite_payload(body: Body, confinements: Confinements, pace: Pace) -> Steps[str]:
    if body.get("key") is not None:
        raise Unconfined(tenant_texts.BELOW_A_KEY)
    payload = expect_object(body.get("payload"), "payload")
    _check_set(payload, roots_of(confinements) - chosen_roots(confinements))
    body["payload"] = yield from marking(payload, marks_of(confinements), pace)
    yield from _select(body, confinements, pace)
    return "overwrite_payload"


def _clear_payload(body: Body, confinements: Confinements, pace: Pace) -> Steps[str]:
    marks = marks_of(confinements)
    if any(len(mark.values) > 1 for mark in marks):
        raise Unconfined(tenant_texts.SEVERAL_MARKS)
    body["payload"] = yield from marking({}, marks, pace)
    body.pop("key", None)
    yield from _select(body, confinements, pace)
    return "overwrite_payload"


def _delete_payload(body: Body, confinements: Confinements, pace: Pace) -> Steps[str]:
    for path in _array(body.get("keys"), "keys"):
        if pace.is_step(_KEY):
            yield None
        if not is_elsewhere(path, confinements):
            raise Unconfined(tenant_texts.KEPT)
    yield from _select(body, confinements, pace)
    return "delete_payload"


def _batch(body: Body, confinements: Confinements, pace: Pace) -> Steps[str]:
    operations = _array(body.get("operations"), "operations")
    check_count(len(operations), confinements)
    for index, operation in enumerate(operations):
        if pace.is_step(_KEY):
            yield None
        pairs = list(expect_object(operation, "operations").items())
        change = CHANGES.get(pairs[0][0]) if len(pairs) == 1 else None
        if change is None:
            raise Unconfined(tenant_texts.NOT_OF_A_BATCH)
        inner = expect_object(pairs[0][1], pairs[0][0])
        operations[index] = {(yield from change(inner, confinements, pace)): inner}
    return "batch"


def _select(body: Body, confinements: Confinements, pace: Pace) -> Steps[None]:
    """Replaces ids, or a filter, by the filter of the tenant's own points among them.

    Qdrant takes one of the two, and without either changes nothing: the conditions alone would select all points.
    """
    ids, own = body.pop("points", None), body.get("filter")
    if (ids is None) == (own is None):
        raise BadRequest("Format error in JSON body: either points or filter is expected")
    own = expect_object(own, "filter") if ids is None else {"has_id": (yield from point_ids(ids, "points", pace))}
    body["filter"] = narrowed(own, confinements, alone=True)


def _check_set(payload: Body, roots: frozenset[str]) -> None:
    for root in sorted(roots):
        if root in payload:
            raise Unconfined(tenant_texts.SET.format(root))


def is_elsewhere(path: Any, confinements: Confinements) -> bool:
    """Whether a payload path surely touches no mark."""
    match = _PLAIN_PATH.fullmatch(path) if isinstance(path, str) else None
    return match is not None and match.group(1) not in roots_of(confinements)


def _marked(payload: Any, marks: Marks, pace: Pace) -> Steps[Body]:
    """The payload of a new point with the marks. Raises :class:`Unconfined` where it has another value for one."""
    return (yield from marking({} if payload is None else expect_object(payload, "payload"), marks, pace))


def _array(value: Any, where: str) -> list[Any]:
    if not isinstance(value, list):
        raise wrong_type(where, "an array")
    return value


CHANGES: Final[dict[str, Change]] = {
    "upsert": _upsert,
    "delete": _delete,
    "update_vectors": _update_vectors,
    "delete_vectors": _delete_vectors,
    "set_payload": _set_payload,
    "overwrite_payload": _overwrite_payload,
    "delete_payload": _delete_payload,
    "clear_payload": _clear_payload,
}
"""Operations of a batch."""
_POINTS: Final = "/collections/{collection_name}/points"
ROUTES: Final[dict[tuple[str, str], Change]] = {
    ("PUT", _POINTS): _upsert,
    ("POST", f"{_POINTS}/delete"): _delete,
    ("PUT", f"{_POINTS}/vectors"): _update_vectors,
    ("POST", f"{_POINTS}/vectors/delete"): _delete_vectors,
    ("POST", f"{_POINTS}/payload"): _set_payload,
    ("PUT", f"{_POINTS}/payload"): _overwrite_payload,
    ("POST", f"{_POINTS}/payload/delete"): _delete_payload,
    ("POST", f"{_POINTS}/payload/clear"): _clear_payload,
    ("POST", f"{_POINTS}/batch"): _batch,
}
