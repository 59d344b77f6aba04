"""A pure stand-in for Qdrant's REST reads, over a few points in memory: filters, orders, formulas, facets and groups.

Payload paths and filters are those of qdrant-client's local mode. It takes a body as Qdrant does, so that what a caller
learns of payloads can be compared for two sets of points.
"""

from __future__ import annotations

import copy
import json
from collections import Counter
from collections.abc import Iterator
from typing import Any, Final

from qdrant_client.http import models as m
from qdrant_client.local.local_collection import LocalCollection
from qdrant_client.local.payload_filters import check_filter
from qdrant_client.local.payload_value_extractor import value_by_key

Point = dict[str, Any]
MOST: Final = 10


def answer(path: str, body: dict[str, Any], points: list[Point]) -> bytes:
    """The answer to a request for these points, for example to `scroll` or `query`."""
    result = {
        "": _retrieve,
        "/scroll": lambda request, among: {"points": _page(request, among, with_payload=True)},
        "/query": lambda request, among: {"points": _page(request, among, with_payload=False)},
        "/count": lambda request, among: {"count": len(list(_matching(request, among)))},
        "/facet": _facet,
        "/query/groups": _groups,
    }[path](body, copy.deepcopy(points))
    return json.dumps({"result": result, "status": "ok", "time": 0.0, "usage": {"read": str(points)}}).encode()


def _matching(request: dict[str, Any], points: list[Point]) -> Iterator[Point]:
    asked = request.get("filter")
    parsed = m.Filter.model_validate(asked) if asked is not None else m.Filter()
    return (one for one in points if check_filter(parsed, one["payload"], one["id"], {"": True}))


def _shown(request: dict[str, Any], point: Point, *, with_payload: bool) -> Point:
    asked = request.get("with_payload")
    if isinstance(asked, dict):
        asked = m.PayloadSelectorInclude(**asked) if "include" in asked else m.PayloadSelectorExclude(**asked)
    payload = LocalCollection._process_payload(point["payload"], with_payload if asked is None else asked)
    shown = {"id": point["id"], "payload": payload}
    if request.get("with_vector", request.get("with_vectors")):
        shown["vector"] = point["vector"]
    return shown


def _page(request: dict[str, Any], points: list[Point], *, with_payload: bool) -> list[Point]:
    found, query = list(_matching(request, points)), request.get("query")
    order = request.get("order_by") or (query.get("order_by") if isinstance(query, dict) else None)
    shown = {one["id"]: _shown(request, one, with_payload=with_payload) for one in found}
    if order is not None:
        key = order if isinstance(order, str) else order["key"]
        values = {one["id"]: _numbers(one, key) for one in found}
        found = sorted((one for one in found if values[one["id"]]), key=lambda one: values[one["id"]])
        for one in found:
            shown[one["id"]]["order_value"] = values[one["id"]][0]
    elif isinstance(query, dict) and "formula" in query:
        for one in found:
            shown[one["id"]]["score"] = _evaluated(query["formula"], one)
        found.sort(key=lambda one: -float(shown[one["id"]]["score"]))
    skipped = int(request.get("offset") or 0)
    return [shown[one["id"]] for one in found][skipped : skipped + int(request.get("limit", request.get("top", MOST)))]


def _numbers(point: Point, key: str) -> list[float]:
    return [one for one in value_by_key(point["payload"], key) or [] if isinstance(one, int | float)]


def _evaluated(expression: Any, point: Point) -> float:
    match expression:
        case int() | float():
            return float(expression)
        case str():
            return sum(_numbers(point, expression)) if not expression.startswith("$") else 1.0
        case {"sum": list(parts)}:
            return sum(_evaluated(one, point) for one in parts)
        case {"neg": part} | {"exp_decay": {"x": part}}:
            return -_evaluated(part, point)
        case dict():
            condition = m.Filter.model_validate({"must": [expression]})
            return float(check_filter(condition, point["payload"], point["id"], {"": True}))
    raise ValueError(expression)


def _retrieve(request: dict[str, Any], points: list[Point]) -> list[Point]:
    return [_shown(request, one, with_payload=True) for one in points if one["id"] in request["ids"]]


def _values(point: Point, key: str) -> list[Any]:
    return [one for one in value_by_key(point["payload"], key) or [] if isinstance(one, str | int | bool)]


def _facet(request: dict[str, Any], points: list[Point]) -> dict[str, Any]:
    counts = Counter(value for one in _matching(request, points) for value in set(_values(one, request["key"])))
    return {"hits": [{"value": value, "count": count} for value, count in sorted(counts.items(), key=str)]}


def _groups(request: dict[str, Any], points: list[Point]) -> dict[str, Any]:
    groups: dict[Any, list[Point]] = {}
    for one in _matching(request, points):
        for value in _values(one, request["group_by"]):
            groups.setdefault(value, []).append(one)
    size, most = int(request.get("group_size") or 3), int(request.get("limit") or MOST)
    shown = []
    for value, hits in sorted(groups.items(), key=str)[:most]:
        group = {"id": value, "hits": [_shown(request, one, with_payload=False) for one in hits[:size]]}
        shown.append(group | ({"lookup": hits[0]} if "with_lookup" in request else {}))
    return {"groups": shown}
