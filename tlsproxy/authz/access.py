"""Rights × requirement → Decision: the one place that says yes.

Qdrant's own rules (RBAC of v1.19): a requirement is a scope and the flags *write*, *manage* and *extras*. Global ``m``
passes everything, global ``r`` passes what neither writes nor manages. A collection-limited caller passes nothing of
global scope; on a collection it needs a grant for the very name (checked in the order extras, write, manage), and for
every further collection that the request names, a grant of any mode. The texts are Qdrant's, so that clients behave.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, StrEnum
from functools import lru_cache
from typing import Final

from tlsproxy.authz.globs import glob_matches
from tlsproxy.errors import Form


class Scope(Enum):
    NONE = "none"
    """No authentication: version and health."""
    CREDENTIAL = "credential"
    """Any valid caller; the response of a collection-limited one holds only what it may know."""
    CALLER = "caller"
    """Any valid caller, whatever its rights: about itself."""
    COLLECTION = "collection"
    GLOBAL = "global"


class GlobalMode(StrEnum):
    R = "r"
    M = "m"


@dataclass(frozen=True, slots=True)
class Requirement:
    """What one Qdrant operation asks of its caller."""

    scope: Scope
    write: bool = False
    manage: bool = False
    extras: bool = False


@dataclass(frozen=True, slots=True)
class Grant:
    """Reading one collection, and what goes beyond it.

    ``collection`` is a name or a glob (:mod:`tlsproxy.authz.globs`). ``extras`` is what concerns more than the points:
    indexes, snapshots, cluster information.
    """

    collection: str
    write: bool
    extras: bool


GRANTS: Final = {"r": (False, True), "rw": (True, True), "prw": (True, False)}
"""Qdrant's spellings of a grant's (write, extras)."""
_SPELLINGS: Final = {flags: name for name, flags in GRANTS.items()}


@dataclass(frozen=True, slots=True)
class Rights:
    """All of Qdrant (``everywhere``), or a list of grants, or nothing at all."""

    everywhere: GlobalMode | None = None
    grants: tuple[Grant, ...] = ()

    @property
    def limited(self) -> bool:
        return self.everywhere is None

    def __str__(self) -> str:
        """As Qdrant's tokens spell it: `m`, or `docs rw, logs.* r`."""
        if self.everywhere is not None:
            return self.everywhere.value
        return (
            ", ".join(f"{grant.collection} {_SPELLINGS[grant.write, grant.extras]}" for grant in self.grants) or "none"
        )


@dataclass(frozen=True, slots=True)
class Decision:
    """``status`` is 0 where the request is allowed; else what the client is told, and in which form."""

    allowed: bool
    reason: str = "allowed"
    status: int = 0
    text: str = ""
    form: Form = Form.JSON


ALLOWED: Final = Decision(allowed=True)


def forbidden(reason: str, text: str, form: Form = Form.JSON) -> Decision:
    return Decision(allowed=False, reason=reason, status=403, text=f"Forbidden: {text}", form=form)


def decide(
    rights: Rights,
    requirement: Requirement,
    collection: str | None,
    *,
    names_others: bool = False,
    form: Form = Form.JSON,
) -> Decision:
    """Whether a caller with these rights may do this.

    ``collection`` is the name in the request's path, decoded once. ``names_others`` says that the request's body may
    name further collections, which nobody has read: a collection-limited caller is refused then.
    """
    if requirement.scope in {Scope.NONE, Scope.CALLER}:
        return ALLOWED
    if rights.everywhere is GlobalMode.M:
        return ALLOWED
    if rights.everywhere is GlobalMode.R:
        if requirement.write or requirement.manage:
            return forbidden("needs_manage", "Global manage access is required", form)
        return ALLOWED
    return _decide_limited(rights, requirement, collection, names_others=names_others, form=form)


def _decide_limited(
    rights: Rights, requirement: Requirement, collection: str | None, *, names_others: bool, form: Form
) -> Decision:
    if not rights.grants:
        return forbidden("no_rights", "Global access is required", form)
    if requirement.scope is Scope.GLOBAL:
        return forbidden("needs_global", "Global access is required", form)
    if requirement.scope is Scope.CREDENTIAL:
        return forbidden("unfiltered_listing", "Global access is required for this listing", form)
    if collection is None:
        return forbidden("no_collection", "Global access is required", form)
    held = _held(rights.grants, collection)
    if not held:
        return forbidden("collection", f"Access to collection {collection} is required", form)
    if requirement.extras and not any(grant.extras for grant in held):
        return forbidden("needs_extras", f"Only points access is allowed for collection {collection}", form)
    if requirement.write and not any(grant.write and grant.extras >= requirement.extras for grant in held):
        return forbidden("needs_write", f"Write access to collection {collection} is required", form)
    if requirement.manage:
        return forbidden("needs_manage", "Manage access for this operation is required", form)
    if names_others:
        return forbidden(
            "body_not_inspected", "Global access is required where a body may name another collection", form
        )
    return ALLOWED


@lru_cache(maxsize=4096)
def _held(grants: tuple[Grant, ...], collection: str) -> tuple[Grant, ...]:
    return tuple(grant for grant in grants if glob_matches(grant.collection, collection))
