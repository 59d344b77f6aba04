"""Groups of operations, for people who read them in a table."""

from __future__ import annotations

from enum import Enum

from tlsproxy.authz.access import Scope
from tlsproxy.qdrant.operations import OPERATIONS, Operation


class OperationGroup(Enum):
    """In the order of a table; the value is a heading."""

    READING = "Reading points"
    CHANGING = "Changing points"
    COLLECTION = "A collection"
    INDEXES = "Indexes and vectors of a collection"
    MANAGING = "Managing collections"
    FILES = "Snapshots and files of a collection"
    LISTINGS = "Listings"
    STORAGE = "Snapshots of the whole storage"
    SERVICE = "The service and its cluster"
    OPEN = "Open to all"


def group_of(operation: Operation) -> OperationGroup:
    needs, path = operation.requirement, operation.path
    if needs.scope in {Scope.NONE, Scope.CALLER}:
        return OperationGroup.OPEN
    if path.startswith("/snapshots") or (path.startswith("/qdrant.Snapshots/") and path.endswith("Full")):
        return OperationGroup.STORAGE
    if operation.snapshot or needs.files:
        return OperationGroup.FILES
    if needs.listing:
        return OperationGroup.LISTINGS
    if needs.scope is Scope.COLLECTION and not needs.extras:
        if needs.write:
            return OperationGroup.CHANGING
        of_points = path.startswith("/qdrant.Points/") or "/points" in path or path.endswith("/facet")
        return OperationGroup.READING if of_points else OperationGroup.COLLECTION
    if needs.scope is Scope.COLLECTION and not needs.manage:
        return OperationGroup.INDEXES if needs.write else OperationGroup.COLLECTION
    if needs.scope is Scope.COLLECTION or needs.grantable or "{collection_name}" in path:
        return OperationGroup.MANAGING
    return OperationGroup.SERVICE


def grouped() -> dict[OperationGroup, list[tuple[str, tuple[Operation, ...]]]]:
    """Names of operations with their rows, by group; an operation is in the group of its first row."""
    found: dict[OperationGroup, list[tuple[str, tuple[Operation, ...]]]] = {group: [] for group in OperationGroup}
    for name, rows in OPERATIONS.items():
        found[group_of(rows[0])].append((name, rows))
    return found
