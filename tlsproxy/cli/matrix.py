"""`explain --matrix`: a role's rights as a table of all operations, made by the functions that decide requests."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Final

from tlsproxy.authz.access import ANY_COLLECTION, UNREAD, Grants, Rights, Scope
from tlsproxy.authz.admission import Admission
from tlsproxy.authz.globs import is_exact
from tlsproxy.authz.roles import Principal
from tlsproxy.config.model import Role
from tlsproxy.config.policy import configured_rights
from tlsproxy.qdrant.descriptions import is_described
from tlsproxy.qdrant.grpc_decision import decide_at_best, decide_call
from tlsproxy.qdrant.operation_groups import grouped
from tlsproxy.qdrant.operations import GRPC, Operation
from tlsproxy.qdrant.query_policy import Treatment, treatment
from tlsproxy.qdrant.rest_decision import decide_request, needs_names
from tlsproxy.qdrant.rest_tenancy import touches_no_points
from tlsproxy.qdrant.router import Recognised
from tlsproxy.wire.target import parse_target

EVERYWHERE: Final = "all of Qdrant"
"""Name of the only column of a role that is not for collections."""
_ALL: Final = "**"
_OPEN: Final = frozenset({Scope.NONE, Scope.CALLER})
_TARGET: Final = parse_target("/")

WORDS: Final = {
    "yes": "allowed",
    "confined": "to the points of the role's `filter`",
    "partly": "refused if an operation is in it that `operations` leaves out",
    "bounded": "the request is held to the role's `queries`",
    "reduced": "the answer is reduced to what the role may know",
    "no: writing": "a change: the role only reads",
    "no: extras": "about more than points: the role is for points alone",
    "no: managing": "needs `m`",
    "no: global": "needs a role for all of Qdrant",
    "no: denied": "left out by `operations`",
    "no: tenant": "cannot be confined to a `filter`",
    "no: policy": "cannot be held to the role's `queries`",
    "no": "no access",
}
"""Words of cells, and their meanings."""
_REASONS: Final = {
    "needs_write": "no: writing",
    "needs_extras": "no: extras",
    "needs_manage": "no: managing",
    "needs_global": "no: global",
    "operation": "no: denied",
    "not_confined": "no: tenant",
    "query_policy": "no: policy",
}


@dataclass(frozen=True, slots=True)
class Row:
    """Rows of the operation table with equal outcomes: their name, or the route of one that differs from most."""

    operation: str
    routes: tuple[str, ...]
    cells: tuple[str, ...]
    exception: bool = False


@dataclass(frozen=True, slots=True)
class Matrix:
    """``columns`` are the patterns of the role's grants; ``groups`` the headings with their rows."""

    role: str
    rights: Rights
    columns: tuple[str, ...]
    groups: tuple[tuple[str, tuple[Row, ...]], ...]

    def by_column(self) -> list[tuple[str, tuple[str, ...]]]:
        """Each column's name with its cells."""
        cells = zip(*(row.cells for _, rows in self.groups for row in rows), strict=True)
        return list(zip(self.columns, cells, strict=False))

    def words(self) -> list[str]:
        """Words that its cells have, in the order of the legend."""
        used = {word for _, rows in self.groups for row in rows for cell in row.cells for word in cell.split(", ")}
        return [word for word in WORDS if word in used]

    def as_json(self) -> dict[str, Any]:
        operations = [
            {
                "operation": row.operation,
                "group": group,
                "routes": row.routes,
                "on": dict(zip(self.columns, row.cells, strict=True)),
            }
            for group, rows in self.groups
            for row in rows
        ]
        return {"role": self.role, "rights": str(self.rights), "operations": operations}


def matrix_of(name: str, role: Role) -> Matrix:
    rights = configured_rights(role)
    columns = (EVERYWHERE,) if rights.everywhere is not None else tuple(grant.collection for grant in rights.grants)
    callers = [Admission(Principal(None, "", name, _on(rights, column), None), None) for column in columns]
    groups = tuple(
        (group.value, tuple(row for each in operations for row in _rows(*each, callers)))
        for group, operations in grouped().items()
    )
    return Matrix(name, rights, columns, groups)


def _on(rights: Rights, pattern: str) -> Rights:
    """Rights on a collection that matches the pattern of one grant: those of the grant, and of any that covers it."""
    covering = rights.grants.covering(pattern) if is_exact(pattern) else rights.grants
    wide = [one for one in covering if is_exact(pattern) or one.collection in {pattern, _ALL}]
    return replace(rights, grants=Grants(*(replace(one, collection=ANY_COLLECTION) for one in wide)))


def _rows(name: str, rows: tuple[Operation, ...], callers: list[Admission]) -> Iterator[Row]:
    cells = {row: tuple(_cell(row, caller) for caller in callers) for row in rows}
    (usual, _), *_ = Counter(cells.values()).most_common(1)
    yield Row(name, tuple(_route(row) for row in rows if cells[row] == usual), usual)
    for row in rows:
        if cells[row] != usual:
            yield Row(name, (_route(row),), cells[row], exception=True)


def _route(row: Operation) -> str:
    path = row.path.replace("{collection_name}", "{c}").replace("{shard}", "{s}")
    return path if row in GRPC else f"{row.method} {path}"


def _cell(row: Operation, caller: Admission) -> str:
    collection = None if row.names_changed else ANY_COLLECTION
    if row in GRPC:
        head, best = decide_call(caller, row), decide_at_best(caller, row)
        # Rights before the policy, as over REST: here the policy refuses before the collection is known.
        decision = best if head.decision is UNREAD or not best.allowed else head.decision
    else:
        head = decide_request(caller, Recognised(_TARGET, row, collection))
        decision = head.decision
    if not decision.allowed and decision is not UNREAD:
        reason = "needs_manage" if row.requirement.grantable and decision.reason == "needs_global" else decision.reason
        return _REASONS.get(reason, "no")
    treated = treatment(row, caller.queries)
    about_collections = row.requirement.listing or is_described(row)
    words = {
        "confined": bool(caller.confinements) and row.requirement.scope not in _OPEN and not touches_no_points(row),
        "partly": bool(row.carries) and needs_names(caller.rights, row),
        "bounded": treated is Treatment.READ,
        "reduced": treated is Treatment.STRIPPED or (head.listing is not None and about_collections),
    }
    return ", ".join(word for word, holds in words.items() if holds) or "yes"
