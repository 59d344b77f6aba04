"""The page of all operations, docs/qdrant-operations.md, from the tables that decide."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Final

from tlsproxy.authz.access import ANY_COLLECTION, MODES, GlobalMode, Grant, Grants, Rights, Scope
from tlsproxy.qdrant.descriptions import is_described
from tlsproxy.qdrant.grpc_tenancy import is_confinable_call
from tlsproxy.qdrant.operation_groups import OperationGroup, grouped
from tlsproxy.qdrant.operations import ALWAYS, GRPC, Operation
from tlsproxy.qdrant.query_policy import ROWS, Part, Treatment
from tlsproxy.qdrant.releases import shown
from tlsproxy.qdrant.rest_decision import permits
from tlsproxy.qdrant.rest_tenancy import is_confinable, touches_no_points

_HEAD: Final = """\
# Operations of Qdrant

Generated from `tlsproxy/qdrant` by `make reference`. These are the names that the audit log has under `method`, and
that `operations: {allow: […], deny: […]}` of [a role or a grant](roles-and-rules.md#operations) takes. An upload is
audited under its route.

- **on a collection**: the modes of a grant that permit it. **on all**: the modes of a whole role (`access: r`).
- **tenant**: whether a role with a [`filter`](tenants.md) may use it. *names*: it is about no points.
  *reduced*: its answer has no numbers of all points.
- **query policy**: keys of a role's `queries` under which it is refused, since it cannot be checked or reduced. Under
  the others it can be used.

`{c}` is the collection's name, `{s}` a shard.
"""
_MODES: Final = ("pr", "r", "prw", "rw", "m")
_WHOLE: Final = (GlobalMode.PR, GlobalMode.R, GlobalMode.M)


def as_markdown() -> str:
    return _HEAD + "".join(f"{line}\n" for line in _lines())


def _lines() -> Iterator[str]:
    for group, operations in grouped().items():
        yield from ("", f"## {group.value}", "")
        if group is OperationGroup.OPEN:
            yield from ("| operation | REST and gRPC | for |", "|---|---|---|")
            for name, rows in operations:
                everybody = rows[0].requirement.scope is Scope.NONE
                yield f"| `{name}` | {_routes(rows)} | {'everybody' if everybody else 'every caller'} |"
            continue
        yield "| operation | REST and gRPC | on a collection | on all | tenant | query policy |"
        yield "|---|---|---|---|---|---|"
        for name, rows in operations:
            cells = (
                f"`{name}`",
                _routes(rows),
                ", ".join(f"`{mode}`" for mode in _MODES if permits(_granted(mode), rows[0])) or "–",
                ", ".join(f"`{mode.value}`" for mode in _WHOLE if permits(Rights(mode), rows[0])),
                _tenant(rows),
                _policy(name),
            )
            yield f"| {' | '.join(cells)} |"


def _granted(mode: str) -> Rights:
    return Rights(grants=Grants(Grant(ANY_COLLECTION, *MODES[mode])))


def _routes(rows: tuple[Operation, ...]) -> str:
    routes = {row.path if row in GRPC else f"{row.method} {row.path}": row for row in rows}
    shorter = (
        (route.replace("{collection_name}", "{c}").replace("{shard}", "{s}"), row) for route, row in routes.items()
    )
    return "<br>".join(f"`{route}`{_releases(row)}" for route, row in shorter)


def _releases(row: Operation) -> str:
    """The releases that have it, where not all have."""
    if row.until is not None:
        return f" (until {shown(row.until)})"
    return f" (since {shown(row.since)})" if row.since != ALWAYS else ""


def _tenant(rows: tuple[Operation, ...]) -> str:
    if all(map(is_described, rows)):
        return "reduced"
    if all(map(touches_no_points, rows)):
        return "names"
    usable = [row for row in rows if (is_confinable_call(row) if row in GRPC else is_confinable(row))]
    if len(usable) == len(rows) or not usable:
        return "yes" if usable else "no"
    return f"but for {_routes(tuple(row for row in rows if row not in usable))}"


def _policy(name: str) -> str:
    row = ROWS.get(name, {})
    return ", ".join(f"`{part.value}`" for part in Part if row.get(part, Treatment.REFUSED) is Treatment.REFUSED)


if __name__ == "__main__":
    sys.stdout.write(as_markdown())
