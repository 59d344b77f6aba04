"""What a collection-limited caller may know of a listing: the upstream's answer, which names everything, reduced.

As Qdrant does for a token with a list of collections, and one thing more: its telemetry names every collection under
``collections.snapshots`` to anybody. What is kept is written down here; a field that is not, or an entry that cannot be
told to be the caller's, is left out, so that a newer Qdrant shows too little rather than too much.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import orjson

from tlsproxy.authz.access import Grants, Rights, names_held
from tlsproxy.qdrant.operations import Operation
from tlsproxy.wire.steps import Steps


@dataclass(frozen=True, slots=True)
class Listing:
    """The reduction of one operation's answer to the names that each of these lists of grants covers."""

    operation: str
    grants: tuple[Grants, ...]

    def reduced(self, body: bytes) -> bytes:
        """Raises ValueError for an answer that is not what Qdrant sends."""
        answer = orjson.loads(body)
        if not isinstance(answer, dict) or not isinstance(answer.get("result"), dict):
            raise ValueError("not Qdrant's envelope")  # noqa: TRY004 - wrong as a whole
        result = REDUCTIONS[self.operation](answer["result"], self._held)
        return orjson.dumps({"result": result} | _only(answer, "status", "time"))

    def reducing(self, body: bytes) -> Steps[bytes]:
        """The same in steps."""
        yield
        return self.reduced(body)

    def _held(self, name: Any) -> bool:
        return isinstance(name, str) and all(names_held(grants, name) for grants in self.grants)


def listing_of(operation: Operation, rights: tuple[Rights, ...]) -> Listing | None:
    """None where the answer may be seen as it is, or cannot be reduced."""
    limited = tuple(one.grants for one in rights if one.limited)
    return Listing(operation.name, limited) if limited and operation.name in REDUCTIONS else None


Held = Callable[[Any], bool]


def _collections(result: dict[str, Any], held: Held) -> dict[str, Any]:
    return {"collections": [{"name": entry["name"]} for entry in _entries(result, "collections", "name", held)]}


def _aliases(result: dict[str, Any], held: Held) -> dict[str, Any]:
    """An alias is shown to who may know both of its names."""
    entries = _entries(result, "aliases", "alias_name", held)
    return {"aliases": [entry for entry in entries if held(entry.get("collection_name"))]}


def _telemetry(result: dict[str, Any], held: Held) -> dict[str, Any]:
    """Level 1 has sums over all collections in place of a list of them; they have no ``id``, and go."""
    collections = result.get("collections")
    hardware = result.get("hardware")
    reduced = _only(result, "id", "app")
    if isinstance(collections, dict):
        lists = {
            name: _entries(collections, name, "id", held)
            for name in ("collections", "snapshots")
            if name in collections
        }
        reduced["collections"] = {"number_of_collections": len(lists.get("collections", ())), **lists}
    if isinstance(hardware, dict):
        reduced["hardware"] = {"collection_data": _mapped(hardware.get("collection_data"), held)}
    return reduced


def _cluster_telemetry(result: dict[str, Any], held: Held) -> dict[str, Any]:
    return {"collections": _mapped(result.get("collections"), held)}


def _issues(result: dict[str, Any], held: Held) -> dict[str, Any]:
    return {"issues": _entries(result, "issues", "related_collection", held)}


REDUCTIONS: Final[dict[str, Callable[[dict[str, Any], Held], dict[str, Any]]]] = {
    "list_collections": _collections,
    "list_aliases": _aliases,
    "list_collection_aliases": _aliases,
    "telemetry": _telemetry,
    "get_cluster_telemetry": _cluster_telemetry,
    "issues": _issues,
}
"""By the operation's name. A listing that is not here is refused to a limited caller."""


def _entries(result: dict[str, Any], name: str, key: str, held: Held) -> list[dict[str, Any]]:
    entries = result.get(name)
    if not isinstance(entries, list):
        return []
    return [entry for entry in entries if isinstance(entry, dict) and held(entry.get(key))]


def _mapped(value: Any, held: Held) -> dict[str, Any]:
    return {name: entry for name, entry in value.items() if held(name)} if isinstance(value, dict) else {}


def _only(value: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value[name] for name in names if name in value}
