"""Listings, reduced for collection-limited callers: the upstream's response with the caller's collections only.

As Qdrant does for a token with a list of collections, except that its telemetry names all collections under
``collections.snapshots`` to any caller. The fields that remain are listed here. Other fields, and entries that are not
certainly the caller's, are removed, so that a newer Qdrant shows too little rather than too much.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Protocol

import orjson

from tlsproxy.authz.access import Grants, Rights, may_name
from tlsproxy.qdrant.operations import Operation
from tlsproxy.wire.content_coding import Content
from tlsproxy.wire.cooperative import Steps
from tlsproxy.wire.strict_json import counting, memory_of

STEP: Final = 1000
"""Entries per step, at some microseconds each."""


class Reducer(Protocol):
    """Reduces a response to what its caller may see. ``hides_errors``: errors of the upstream lose their text."""

    @property
    def hides_errors(self) -> bool: ...
    def reducing(self, body: Content) -> Steps[bytes]: ...


@dataclass(frozen=True, slots=True)
class Listing:
    """The reduction of one operation's response to the names that all of these lists of grants cover."""

    operation: str
    grants: tuple[Grants, ...]

    @property
    def hides_errors(self) -> bool:
        return True

    def reducing(self, body: Content) -> Steps[bytes]:
        """The reduced response. Raises ValueError if ``body`` has not the form of Qdrant's."""
        yield memory_of(body, (yield from counting(body)))
        answer = orjson.loads(body)
        if not isinstance(answer, dict) or not isinstance(answer.get("result"), dict):
            raise ValueError("not Qdrant's envelope")  # noqa: TRY004 - wrong as a whole
        yield None
        result = yield from REDUCTIONS[self.operation](answer["result"], self._is_shown)
        return orjson.dumps({"result": result} | _only(answer, "status", "time"))

    def _is_shown(self, name: Any) -> bool:
        return isinstance(name, str) and all(may_name(grants, name, self.operation) for grants in self.grants)


def listing_of(operation: Operation, rights: tuple[Rights, ...]) -> Listing | None:
    """The reduction for these rights; None where the response may be shown whole, or cannot be reduced."""
    limited = tuple(one.listed for one in rights if one.listed is not None)
    return Listing(operation.name, limited) if limited and operation.name in REDUCTIONS else None


NameFilter = Callable[[Any], bool]
Reduction = Steps[dict[str, Any]]


def _collections(result: dict[str, Any], is_shown: NameFilter) -> Reduction:
    entries = yield from _entries(result.get("collections"), "name", is_shown)
    return {"collections": [{"name": entry["name"]} for entry in entries]}


def _aliases(result: dict[str, Any], is_shown: NameFilter) -> Reduction:
    """An alias is shown to callers with grants for both of its names."""
    entries = yield from _entries(result.get("aliases"), "alias_name", is_shown)
    return {"aliases": (yield from _entries(entries, "collection_name", is_shown))}


def _telemetry(result: dict[str, Any], is_shown: NameFilter) -> Reduction:
    """Level 1 has sums over all collections instead of a list; without an ``id`` they are removed."""
    collections = result.get("collections")
    hardware = result.get("hardware")
    reduced = _only(result, "id", "app")
    if isinstance(collections, dict):
        lists = {}
        for name in ("collections", "snapshots"):
            if name in collections:
                lists[name] = yield from _entries(collections[name], "id", is_shown)
        reduced["collections"] = {"number_of_collections": len(lists.get("collections", ())), **lists}
    if isinstance(hardware, dict):
        reduced["hardware"] = {"collection_data": (yield from _mapped(hardware.get("collection_data"), is_shown))}
    return reduced


def _cluster_telemetry(result: dict[str, Any], is_shown: NameFilter) -> Reduction:
    return {"collections": (yield from _mapped(result.get("collections"), is_shown))}


def _issues(result: dict[str, Any], is_shown: NameFilter) -> Reduction:
    return {"issues": (yield from _entries(result.get("issues"), "related_collection", is_shown))}


REDUCTIONS: Final[dict[str, Callable[[dict[str, Any], NameFilter], Reduction]]] = {
    "list_collections": _collections,
    "list_aliases": _aliases,
    "list_collection_aliases": _aliases,
    "telemetry": _telemetry,
    "get_cluster_telemetry": _cluster_telemetry,
    "issues": _issues,
}
"""By operation. A listing without a row is refused to limited callers."""


def _entries(entries: Any, key: str, is_shown: NameFilter) -> Steps[list[dict[str, Any]]]:
    shown = []
    for count, entry in enumerate(entries if isinstance(entries, list) else (), start=1):
        if not count % STEP:
            yield None
        if isinstance(entry, dict) and is_shown(entry.get(key)):
            shown.append(entry)
    return shown


def _mapped(value: Any, is_shown: NameFilter) -> Steps[dict[str, Any]]:
    shown = {}
    for count, (name, entry) in enumerate(value.items() if isinstance(value, dict) else (), start=1):
        if not count % STEP:
            yield None
        if is_shown(name):
            shown[name] = entry
    return shown


def _only(value: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value[name] for name in names if name in value}
