"""Query policies × operations: the table, and the refusals in the words of Qdrant's strict mode.

Each operation has a treatment for each part of a policy. Under a policy with a part that an operation has no treatment
for, the operation is refused. How a request is read: :mod:`tlsproxy.qdrant.rest_query_policy` and
:mod:`tlsproxy.qdrant.grpc_query_policy`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from enum import Enum, IntEnum
from typing import Final

from tlsproxy.authz.query_policy import NO_POLICY, KeyPath, QueryPolicy, spelled
from tlsproxy.errors import PolicyRefused
from tlsproxy.qdrant.operations import Operation

DEFAULT_LIMIT: Final = 10
"""Qdrant's: points of a query, a prefetch, a scroll; values of a facet; groups; samples of a matrix."""
DEFAULT_GROUP_SIZE: Final = 3
DEFAULT_PER_SAMPLE: Final = 3
"""Neighbours of each sample of a matrix."""


class Part(Enum):
    """A part of a policy, by its key in the configuration."""

    LIMIT = "max_limit"
    OFFSET = "max_offset"
    PREFETCH = "max_prefetch"
    EXACT = "exact"
    TIMEOUT = "timeout"
    VECTORS = "vectors"
    PAYLOAD = "payload"


class Treatment(IntEnum):
    """From the mildest; the strictest of several counts."""

    FREE = 0
    """Has nothing of the kind."""
    READ = 1
    """The request is read: refused if it asks for too much, completed where Qdrant's default would be too much."""
    STRIPPED = 2
    """And its answer loses what is hidden."""
    REFUSED = 3
    """Its request or answer may have something hidden in it that cannot be found."""


Row = Mapping[Part, Treatment]

_FREE: Final[Row] = dict.fromkeys(Part, Treatment.FREE)
_TIMED: Final = {**_FREE, Part.TIMEOUT: Treatment.READ}
_STRIPPED: Final = {Part.VECTORS: Treatment.STRIPPED, Part.PAYLOAD: Treatment.STRIPPED}
_LISTED: Final = {**_TIMED, Part.LIMIT: Treatment.READ, **_STRIPPED}
"""Points by ids, and page by page: the offset of a page is a point's id."""
_SEARCHED: Final = {**_LISTED, Part.OFFSET: Treatment.READ, Part.EXACT: Treatment.READ}
_COUNTED: Final = {**_TIMED, Part.EXACT: Treatment.READ, Part.PAYLOAD: Treatment.READ}
_CHANGES: Final = {**_FREE, Part.PAYLOAD: Treatment.READ}
_OPAQUE: Final = {**_FREE, Part.VECTORS: Treatment.REFUSED, Part.PAYLOAD: Treatment.REFUSED}
"""Files and logs of all that there is."""
_NAMES_KEYS: Final = {**_FREE, Part.PAYLOAD: Treatment.REFUSED}
"""Reports by payload key."""

ROWS: Final[Mapping[str, Row]] = {
    "query_batch": {**_SEARCHED, Part.PREFETCH: Treatment.READ},
    "group": {**_SEARCHED, Part.PREFETCH: Treatment.READ, Part.OFFSET: Treatment.FREE},
    **dict.fromkeys(("core_search_batch", "recommend", "recommend_batch", "discover", "discover_batch"), _SEARCHED),
    **dict.fromkeys(("retrieve", "scroll"), _LISTED),
    "count": _COUNTED,
    "facet": {**_COUNTED, Part.LIMIT: Treatment.READ},
    "search_points_matrix": {**_TIMED, Part.LIMIT: Treatment.READ, Part.PAYLOAD: Treatment.READ},
    "get_collection": {**_FREE, Part.PAYLOAD: Treatment.STRIPPED},
    **dict.fromkeys(
        (
            *("upsert_points", "delete_points", "update_vectors", "delete_vectors", "set_payload", "delete_payload"),
            *("update_batch", "create_payload_index", "drop_payload_index"),
        ),
        _CHANGES,
    ),
    # They would take away what the caller cannot see, and keep the point.
    **dict.fromkeys(("overwrite_payload", "clear_payload"), _NAMES_KEYS),
    **dict.fromkeys(("telemetry", "get_cluster_telemetry", "issues"), _NAMES_KEYS),
    **dict.fromkeys(("get_optimizations", "get_collection_memory"), _NAMES_KEYS),
    **dict.fromkeys(
        (
            *("get_full_snapshot", "get_snapshot", "download_shard_snapshot", "stream_shard_snapshot"),
            *("get_partial_snapshot_manifest", "get_shard_wal", "debug", "get_slow_requests"),
            *("list_files", "file_exists", "file_length", "read_bytes", "read_bytes_stream", "read_whole"),
            *("read_batch", "read_multi"),
        ),
        _OPAQUE,
    ),
    **dict.fromkeys(
        (
            *("healthz", "livez", "readyz", "index", "web_ui", "cors_preflight", "whoami", "server_reflection"),
            *("cluster_status", "recover_current_peer", "remove_peer", "get_cluster_metadata_keys"),
            *("get_cluster_metadata_key", "update_cluster_metadata_key", "delete_cluster_metadata_key"),
            *("get_debugger_config", "update_debugger_config", "get_stacktrace", "get_consensus_lag"),
            *("get_logger_config", "update_logger_config", "get_quotas", "update_quotas", "metrics"),
            *("get_audit_logs", "clear_issues", "list_collections", "list_aliases", "change_aliases"),
            *("collection_exists", "list_collection_aliases", "create_collection", "update_collection"),
            *("delete_collection", "get_collection_cluster", "update_collection_cluster"),
            *("truncate_unapplied_wal", "create_named_vector", "delete_named_vector"),
            *("list_full_snapshots", "create_full_snapshot", "delete_full_snapshot", "list_snapshots"),
            *("create_snapshot", "recover_from_snapshot", "delete_collection_snapshot", "get_shard_recovery_point"),
            *("cleanup_local_shard", "get_collection_shard_keys", "list_shard_snapshots", "create_shard_snapshot"),
            *("recover_shard_snapshot", "delete_shard_snapshot", "partial_snapshot_recovery_lock"),
        ),
        _FREE,
    ),
}
"""By the operation's name, which REST and gRPC share. Uploads have none: an archive is not read."""


_FIELDS: Final = {
    Part.LIMIT: "max_limit",
    Part.OFFSET: "max_offset",
    Part.PREFETCH: "max_prefetch",
    Part.EXACT: "forbids_exact",
    Part.TIMEOUT: "timeout",
    Part.VECTORS: "hides_vectors",
    Part.PAYLOAD: "hidden",
}
"""The field of a policy that each part is."""


def parts_of(policy: QueryPolicy) -> tuple[Part, ...]:
    """The parts that a policy has."""
    return tuple(part for part, name in _FIELDS.items() if getattr(policy, name) != getattr(NO_POLICY, name))


def treatment(operation: Operation, policy: QueryPolicy, *, untimed: bool = False) -> Treatment:
    """The strictest treatment of an operation for the parts of a policy. ``untimed``: without its timeout, which REST
    has in the request's head.
    """
    if not policy:
        return Treatment.FREE
    row = ROWS.get(operation.name, {})
    parts = (part for part in parts_of(policy) if not (untimed and part is Part.TIMEOUT))
    return max((row.get(part, Treatment.REFUSED) for part in parts), default=Treatment.FREE)


def concerning(policy: QueryPolicy, operation: Operation | None) -> QueryPolicy:
    """The parts of a policy that an operation is treated for: a request under way is not ended for another's sake."""
    if operation is None or not policy:
        return NO_POLICY
    row = ROWS.get(operation.name, {})
    free = [part for part in parts_of(policy) if row.get(part) is Treatment.FREE]
    without = {_FIELDS[part]: getattr(NO_POLICY, _FIELDS[part]) for part in free}
    return (replace(policy, **without) if without else policy) or NO_POLICY


NOT_UNDER_POLICY: Final = "This operation is not available under your role's query policy"


def check_limit(value: int, bound: int | None, name: str) -> None:
    """Raises :class:`PolicyRefused` for a value above the bound."""
    if bound is not None and value > bound:
        raise PolicyRefused(
            f'Limit exceeded {value} > {bound} for "{name}". Help: Reduce the "{name}" parameter to or below {bound}.'
        )


def check_key(path: KeyPath, policy: QueryPolicy) -> None:
    """Raises :class:`PolicyRefused` for a hidden path, or one below or above it."""
    if policy.hidden.touch(path):
        raise hidden_refused(spelled(path))


def hidden_refused(key: str) -> PolicyRefused:
    return PolicyRefused(f'The payload key "{key}" is hidden from you, in whole or in part')


def exact_refused() -> PolicyRefused:
    return PolicyRefused("Exact search disabled!. Help: Set exact=false.")


def unknown_refused(name: str) -> PolicyRefused:
    """The refusal of a part of a request that may be about a bound, or a hidden key, in a way unknown here."""
    return PolicyRefused(f'"{name}" cannot be checked under your role\'s query policy')
