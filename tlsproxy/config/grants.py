"""The configuration model of a role's access: its grants, and the operations that it leaves out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Annotated, Final, Literal

from pydantic import Field

from tlsproxy.authz.access import (
    ANY_COLLECTION,
    EVERY,
    MODES,
    GlobalMode,
    Grant,
    Grants,
    OperationFilter,
    Rights,
    Scope,
)
from tlsproxy.config.callers import Section
from tlsproxy.config.findings import Finding
from tlsproxy.config.positions import Path
from tlsproxy.config.problems import did_you_mean
from tlsproxy.qdrant.operations import BATCH, BATCHED, OPERATIONS
from tlsproxy.qdrant.rest_decision import permits


class Operations(Section):
    """Operations of Qdrant that may be used, of those that `access` permits. The names are those of
    docs/qdrant-operations.md, and of the audit log. They narrow what a role may do, and never widen it.
    """

    allow: tuple[str, ...] | None = None
    """Operations that may be used; null for all."""
    deny: tuple[str, ...] = ()
    """Operations that may not be used, whatever `allow` says. A batch of changes (`update_batch`) is refused if it has
    one of them in it."""


class CollectionGrant(Section):
    """Access to the collections that one name or glob matches."""

    collection: Annotated[str, Field(min_length=1, max_length=255)]
    """Name or glob. In every glob of the configuration `*` stops at `/` and `.`, `**` does not, and `?` is one
    character except those two: `*` does not match the collection `docs.v2`; `docs.*` and `**` do."""
    access: Literal["r", "rw", "prw", "pr", "m"]
    """r: reads. rw: reads and writes. prw: reads and writes points only (no indexes, snapshots, cluster information).
    These are as in Qdrant's tokens. pr: reads points only. m: rw, and creates, changes and deletes the collections and
    their aliases."""
    operations: Operations = Operations()
    """Operations that may be used by this grant. A request needs one grant that permits it and has its operation."""


def filter_of(operations: Operations) -> OperationFilter:
    """The filter of a checked section."""
    if operations.allow is None and not operations.deny:
        return EVERY
    allow = None if operations.allow is None else frozenset(operations.allow)
    return OperationFilter(allow, frozenset(operations.deny))


def grant_of(grant: CollectionGrant) -> Grant:
    write, extras, manage = MODES[grant.access]
    return Grant(grant.collection, write, extras, manage, filter_of(grant.operations))


def operation_findings(path: Path, operations: Operations, modes: str | Iterable[str]) -> Iterator[Finding]:
    """``modes``: that of the whole of Qdrant, or those of grants, of which the operations are left over."""
    rights = Rights(GlobalMode(modes)) if isinstance(modes, str) else _granted(modes)
    allow = operations.allow
    if allow == ():
        yield Finding((*path, "allow"), "an empty list allows nothing", warning=True)
    if allow and BATCH in allow and not set(BATCHED).intersection(allow):
        text = f"allows no batch alone: name what one may have in it too, such as {BATCHED[0]!r}"
        yield Finding((*path, "allow", allow.index(BATCH)), text, warning=True)
    for key, names in (("allow", allow or ()), ("deny", operations.deny)):
        for index, name in enumerate(names):
            place: Path = (*path, key, index)
            if (mistake := _mistake(name)) is not None:
                yield Finding(place, mistake)
            elif key == "allow" and name in operations.deny:
                yield Finding(place, f"{name!r} is denied too, which counts", warning=True)
            elif key == "allow" and not any(permits(rights, one) for one in OPERATIONS[name]):
                yield Finding(place, f"`access` does not permit {name!r}", warning=True)


def _mistake(name: str) -> str | None:
    rows = OPERATIONS.get(name)
    if rows is None:
        return f"no operation is called {name!r}{_near(name) or did_you_mean(name, NAMEABLE)}"
    if rows[0].requirement.scope is Scope.NONE:
        return f"{name!r} needs no credential: no role can allow or deny it"
    if rows[0].requirement.scope is Scope.CALLER:
        return f"{name!r} is every caller's: no role can allow or deny it"
    return None


NAMEABLE: Final = {
    name: rows for name, rows in OPERATIONS.items() if rows[0].requirement.scope not in {Scope.NONE, Scope.CALLER}
}
"""Operations that a role has a say in."""
_MOST: Final = 3
"""Names in a hint."""


def _near(name: str) -> str:
    """A hint for the last word of a route or method (`search`, `Upsert`), or for a part of a name."""
    word = name.lower()
    routed = {key for key, rows in NAMEABLE.items() if any(one.path.lower().endswith(f"/{word}") for one in rows)}
    found = routed or {key for key in NAMEABLE if word and word in key}
    names = [repr(one) for one in sorted(found)]
    if not 0 < len(names) <= _MOST:
        return ""
    return f" (did you mean {' or '.join(names)}?)"


def _granted(modes: Iterable[str]) -> Rights:
    return Rights(grants=Grants(*(Grant(ANY_COLLECTION, *MODES[mode]) for mode in modes)))
