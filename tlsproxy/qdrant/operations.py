"""The operation table: every REST route and gRPC method of Qdrant 1.16 to 1.20, and what each requires.

A row is a request line, the name under which Qdrant audits it, and its requirement. Operations without a row are
refused. An open operation needs no credential; a listing is reduced to the caller's collections; other requirements
are on the whole storage or on the collection in the path (``{c}``): *write*, *manage* and *extras* (more than points).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import chain
from typing import Final

from tlsproxy.authz.access import Requirement, Scope
from tlsproxy.errors import Form

Release = tuple[int, int]
"""Major and minor number of a release of Qdrant."""
ALWAYS: Final[Release] = (0, 0)


@dataclass(frozen=True, slots=True, eq=False)
class Operation:
    """One row of the table. Compared and hashed by identity, as a key of memos.

    ``name``: as Qdrant audits it, but where that is the request's route (``audited``). ``names_others``: the body
    may name further collections, to read them. ``names_changed``: the body names the collections and aliases that it
    changes, and the path none. ``carries``: operations that a body of changes may consist of. ``upload``: a multipart
    body without a size limit, rather than JSON. ``form``: of the 403 that Qdrant sends. ``own``: the gateway answers it
    itself, without the upstream. ``free``: it counts against no limit: a health check must not fail under the load that
    it watches. ``probe``: a health check or a scrape, asked again and again by machines: by default it has no audit
    line where it is allowed, as in Qdrant. ``since`` is the first release that has it, if not all of the table have;
    ``until`` the last one.
    """

    name: str
    method: str
    path: str
    requirement: Requirement
    audited: str = ""
    names_others: bool = False
    names_changed: bool = False
    carries: tuple[str, ...] = ()
    upload: bool = False
    form: Form = Form.JSON
    own: bool = False
    free: bool = False
    probe: bool = False
    since: Release = ALWAYS
    until: Release | None = None

    def served_by(self, release: Release) -> bool:
        """Whether this release of Qdrant has it."""
        return self.since <= release and (self.until is None or release <= self.until)

    @property
    def audit_method(self) -> str:
        """Its `method` in the audit log."""
        return self.audited or self.name

    @property
    def open(self) -> bool:
        """Whether it needs no credential. It takes no body then, or next to none."""
        return self.requirement.scope is Scope.NONE

    @property
    def reads(self) -> bool:
        """Whether it changes nothing, so that it may be sent again after a connection was lost."""
        return not (self.requirement.write or self.requirement.manage)

    @property
    def snapshot(self) -> bool:
        """Whether it is about snapshots, of the storage, a collection or a shard."""
        return "/snapshot" in self.path or self.path.startswith("/qdrant.Snapshots/")


MAX_NAME_BYTES: Final = 255
"""Most bytes of a collection's name, as in Qdrant."""

OPEN: Final = Requirement(Scope.NONE)
ANY_CALLER: Final = Requirement(Scope.CALLER)
LISTING: Final = Requirement(Scope.CREDENTIAL, listing=True)
GLOBAL_READ: Final = Requirement(Scope.GLOBAL)
GLOBAL_EXTRAS: Final = Requirement(Scope.GLOBAL, extras=True)
GLOBAL_WRITE: Final = Requirement(Scope.GLOBAL, write=True)
MANAGE: Final = Requirement(Scope.GLOBAL, manage=True)
MANAGE_NAMED: Final = Requirement(Scope.GLOBAL, manage=True, grantable=True)
READ: Final = Requirement(Scope.COLLECTION)
READ_FILES: Final = Requirement(Scope.COLLECTION, files=True)
READ_LISTING: Final = Requirement(Scope.COLLECTION, listing=True)
READ_EXTRAS: Final = Requirement(Scope.COLLECTION, extras=True)
WRITE: Final = Requirement(Scope.COLLECTION, write=True)
WRITE_EXTRAS: Final = Requirement(Scope.COLLECTION, write=True, extras=True)
MANAGE_COLLECTION: Final = Requirement(Scope.COLLECTION, write=True, manage=True, extras=True)


def _rest(method: str, path: str, name: str, requirement: Requirement, *, others: bool = False) -> Operation:
    path = path.replace("{c}", "{collection_name}").replace("{s}", "{shard}")
    return Operation(name, method, path, requirement, names_others=others)


def _probe(path: str, name: str, method: str = "GET") -> Operation:
    """Health and version."""
    return Operation(name, method, path, OPEN, free=True, probe=True)


def _scrape(path: str, name: str, requirement: Requirement) -> Operation:
    return replace(_rest("GET", path, name, requirement), probe=True)


def _file(method: str, path: str, name: str, requirement: Requirement) -> Operation:
    """A download: its refusal is text/plain."""
    return replace(_rest(method, path, name, requirement), form=Form.TEXT)


def _upload(path: str, name: str) -> Operation:
    """An upload: needs global manage access, is refused as text/plain, and is audited under its route."""
    row = _rest("POST", path, name, MANAGE)
    return replace(row, audited=row.path, upload=True, form=Form.TEXT)


def _since(minor: int, row: Operation) -> Operation:
    return replace(row, since=(1, minor))


def _aliases(row: Operation) -> Operation:
    return replace(row, names_changed=True)


def _batch(row: Operation) -> Operation:
    return replace(row, carries=BATCHED)


def _grpc(path: str, name: str, requirement: Requirement, *, others: bool = False) -> Operation:
    return Operation(name, "POST", path, requirement, names_others=others)


BATCH: Final = "update_batch"
"""The operation that is a batch of changes."""
BATCHED: Final = (
    "upsert_points",
    "delete_points",
    "set_payload",
    "overwrite_payload",
    "delete_payload",
    "clear_payload",
    "update_vectors",
    "delete_vectors",
)
"""Operations that a batch of changes may consist of."""

AUDIT_LOGS: Final = _since(18, replace(_rest("POST", "/audit/logs", "get_audit_logs", MANAGE), own=True))
"""Answered from the gateway's own audit log."""

REST: Final = (
    # Open to every connection
    _probe("/healthz", "healthz"),
    _probe("/livez", "livez"),
    _probe("/readyz", "readyz"),
    _probe("/", "index"),
    _file("GET", "/dashboard/{tail...}", "web_ui", OPEN),
    _file("HEAD", "/dashboard/{tail...}", "web_ui", OPEN),
    # The service and its cluster
    AUDIT_LOGS,
    _rest("GET", "/cluster", "cluster_status", GLOBAL_READ),
    _rest("POST", "/cluster/recover", "recover_current_peer", MANAGE),
    _rest("DELETE", "/cluster/peer/{peer_id}", "remove_peer", MANAGE),
    _rest("GET", "/cluster/metadata/keys", "get_cluster_metadata_keys", GLOBAL_READ),
    _rest("GET", "/cluster/metadata/keys/{key}", "get_cluster_metadata_key", GLOBAL_READ),
    _rest("PUT", "/cluster/metadata/keys/{key}", "update_cluster_metadata_key", GLOBAL_WRITE),
    _rest("DELETE", "/cluster/metadata/keys/{key}", "delete_cluster_metadata_key", GLOBAL_WRITE),
    _since(17, _scrape("/cluster/telemetry", "get_cluster_telemetry", LISTING)),
    _rest("GET", "/debugger", "get_debugger_config", MANAGE),
    _rest("PATCH", "/debugger", "update_debugger_config", MANAGE),
    _rest("GET", "/issues", "issues", LISTING),
    _rest("DELETE", "/issues", "clear_issues", MANAGE),
    _rest("GET", "/profiler/slow_requests", "get_slow_requests", MANAGE),
    _since(19, _rest("GET", "/quotas", "get_quotas", GLOBAL_READ)),
    _since(19, _rest("PUT", "/quotas", "update_quotas", MANAGE)),
    _scrape("/telemetry", "telemetry", LISTING),
    _scrape("/metrics", "metrics", GLOBAL_READ),
    _rest("GET", "/stacktrace", "get_stacktrace", MANAGE),
    _rest("GET", "/logger", "get_logger_config", GLOBAL_READ),
    _rest("POST", "/logger", "update_logger_config", MANAGE),
    _since(19, _rest("GET", "/profiler/consensus_lag", "get_consensus_lag", MANAGE)),
    # Listings and aliases
    _rest("GET", "/collections", "list_collections", LISTING),
    _rest("GET", "/aliases", "list_aliases", LISTING),
    _aliases(_rest("POST", "/collections/aliases", "change_aliases", MANAGE_NAMED)),
    # Snapshots of the whole storage
    _rest("GET", "/snapshots", "list_full_snapshots", GLOBAL_READ),
    _rest("POST", "/snapshots", "create_full_snapshot", MANAGE),
    _file("GET", "/snapshots/{snapshot_name}", "get_full_snapshot", GLOBAL_READ),
    _rest("DELETE", "/snapshots/{snapshot_name}", "delete_full_snapshot", MANAGE),
    # A collection
    _rest("GET", "/collections/{c}", "get_collection", READ),
    _rest("GET", "/collections/{c}/exists", "collection_exists", READ),
    _rest("GET", "/collections/{c}/aliases", "list_collection_aliases", READ_LISTING),
    _rest("PUT", "/collections/{c}", "create_collection", MANAGE_NAMED, others=True),  # others: before 1.16
    _rest("PATCH", "/collections/{c}", "update_collection", MANAGE_NAMED),
    _rest("DELETE", "/collections/{c}", "delete_collection", MANAGE_NAMED),
    _rest("GET", "/collections/{c}/cluster", "get_collection_cluster", READ_EXTRAS),
    _rest("POST", "/collections/{c}/cluster", "update_collection_cluster", MANAGE_COLLECTION),
    _since(17, _rest("GET", "/collections/{c}/optimizations", "get_optimizations", READ)),
    _since(18, _rest("GET", "/collections/{c}/memory", "get_collection_memory", READ)),
    _since(17, _rest("POST", "/collections/{c}/truncate_unapplied_wal", "truncate_unapplied_wal", MANAGE)),
    _rest("PUT", "/collections/{c}/index", "create_payload_index", WRITE_EXTRAS),
    _rest("DELETE", "/collections/{c}/index/{field_name}", "drop_payload_index", WRITE_EXTRAS),
    _rest("POST", "/collections/{c}/debug", "debug", WRITE),
    _since(18, _rest("PUT", "/collections/{c}/vectors/{vector_name}", "create_named_vector", WRITE_EXTRAS)),
    _since(18, _rest("DELETE", "/collections/{c}/vectors/{vector_name}", "delete_named_vector", WRITE_EXTRAS)),
    # Points
    _rest("POST", "/collections/{c}/points/count", "count", READ),
    _rest("POST", "/collections/{c}/points/discover", "discover", READ, others=True),
    _rest("POST", "/collections/{c}/points/discover/batch", "discover_batch", READ, others=True),
    _rest("POST", "/collections/{c}/facet", "facet", READ),
    _rest("POST", "/collections/{c}/points/query", "query_batch", READ, others=True),
    _rest("POST", "/collections/{c}/points/query/batch", "query_batch", READ, others=True),
    _rest("POST", "/collections/{c}/points/query/groups", "group", READ, others=True),
    _rest("POST", "/collections/{c}/points/recommend", "recommend", READ, others=True),
    _rest("POST", "/collections/{c}/points/recommend/batch", "recommend_batch", READ, others=True),
    _rest("POST", "/collections/{c}/points/recommend/groups", "group", READ, others=True),
    _rest("GET", "/collections/{c}/points/{id}", "retrieve", READ),
    _rest("POST", "/collections/{c}/points", "retrieve", READ),
    _rest("POST", "/collections/{c}/points/scroll", "scroll", READ),
    _rest("POST", "/collections/{c}/points/search", "core_search_batch", READ),
    _rest("POST", "/collections/{c}/points/search/batch", "core_search_batch", READ),
    _rest("POST", "/collections/{c}/points/search/groups", "group", READ, others=True),
    _rest("POST", "/collections/{c}/points/search/matrix/pairs", "search_points_matrix", READ),
    _rest("POST", "/collections/{c}/points/search/matrix/offsets", "search_points_matrix", READ),
    _rest("PUT", "/collections/{c}/points", "upsert_points", WRITE),
    _rest("POST", "/collections/{c}/points/delete", "delete_points", WRITE),
    _rest("PUT", "/collections/{c}/points/vectors", "update_vectors", WRITE),
    _rest("POST", "/collections/{c}/points/vectors/delete", "delete_vectors", WRITE),
    _rest("POST", "/collections/{c}/points/payload", "set_payload", WRITE),
    _rest("PUT", "/collections/{c}/points/payload", "overwrite_payload", WRITE),
    _rest("POST", "/collections/{c}/points/payload/delete", "delete_payload", WRITE),
    _rest("POST", "/collections/{c}/points/payload/clear", "clear_payload", WRITE),
    _batch(_rest("POST", "/collections/{c}/points/batch", BATCH, WRITE)),
    # Snapshots of a collection
    _rest("GET", "/collections/{c}/snapshots", "list_snapshots", READ_EXTRAS),
    _rest("POST", "/collections/{c}/snapshots", "create_snapshot", WRITE_EXTRAS),
    _upload("/collections/{c}/snapshots/upload", "upload_snapshot"),
    _rest("PUT", "/collections/{c}/snapshots/recover", "recover_from_snapshot", MANAGE),
    _file("GET", "/collections/{c}/snapshots/{snapshot_name}", "get_snapshot", READ_EXTRAS),
    _rest("DELETE", "/collections/{c}/snapshots/{snapshot_name}", "delete_collection_snapshot", WRITE_EXTRAS),
    # Shards
    _rest("GET", "/collections/{c}/shards/{s}/wal", "get_shard_wal", MANAGE_COLLECTION),
    _rest("GET", "/collections/{c}/shards/{s}/recovery_point", "get_shard_recovery_point", MANAGE_COLLECTION),
    _rest("POST", "/collections/{c}/shards/{s}/points", "retrieve", READ),
    _rest("POST", "/collections/{c}/shards/{s}/points/scroll", "scroll", READ),
    _rest("POST", "/collections/{c}/shards/{s}/points/count", "count", READ),
    _rest("POST", "/collections/{c}/shards/{s}/cleanup", "cleanup_local_shard", WRITE),
    _since(17, _rest("GET", "/collections/{c}/shards", "get_collection_shard_keys", READ)),
    _rest("PUT", "/collections/{c}/shards", "update_collection_cluster", MANAGE_COLLECTION),
    _rest("POST", "/collections/{c}/shards/delete", "update_collection_cluster", MANAGE_COLLECTION),
    _rest("GET", "/collections/{c}/shards/{s}/snapshots", "list_shard_snapshots", READ_EXTRAS),
    _rest("POST", "/collections/{c}/shards/{s}/snapshots", "create_shard_snapshot", WRITE_EXTRAS),
    _file("GET", "/collections/{c}/shards/{s}/snapshot", "stream_shard_snapshot", WRITE_EXTRAS),
    _rest("PUT", "/collections/{c}/shards/{s}/snapshots/recover", "recover_shard_snapshot", MANAGE),
    _upload("/collections/{c}/shards/{s}/snapshots/upload", "upload_shard_snapshot"),
    _file("GET", "/collections/{c}/shards/{s}/snapshots/{snapshot}", "download_shard_snapshot", READ_EXTRAS),
    _rest("DELETE", "/collections/{c}/shards/{s}/snapshots/{snapshot}", "delete_shard_snapshot", WRITE_EXTRAS),
    _file("POST", "/collections/{c}/shards/{s}/snapshot/partial/create", "stream_shard_snapshot", WRITE_EXTRAS),
    _upload("/collections/{c}/shards/{s}/snapshot/partial/recover", "upload_partial_snapshot"),
    _rest(
        "POST", "/collections/{c}/shards/{s}/snapshot/partial/recover_from", "partial_snapshot_recovery_lock", MANAGE
    ),
    _rest(
        "GET", "/collections/{c}/shards/{s}/snapshot/partial/manifest", "get_partial_snapshot_manifest", GLOBAL_EXTRAS
    ),
)

WHOAMI: Final = Operation("whoami", "GET", "/_tlsproxy/whoami", ANY_CALLER, own=True)
PREFLIGHT: Final = Operation("cors_preflight", "OPTIONS", "", OPEN, own=True, free=True)
"""A preflight request, for any path."""
OWN: Final = (WHOAMI,)
"""Routes of the gateway itself, which Qdrant does not have."""

GRPC: Final = (
    _grpc("/qdrant.Collections/Get", "get_collection", READ),
    _grpc("/qdrant.Collections/List", "list_collections", LISTING),
    _grpc("/qdrant.Collections/Create", "create_collection", MANAGE_NAMED),
    _grpc("/qdrant.Collections/Update", "update_collection", MANAGE_NAMED),
    _grpc("/qdrant.Collections/Delete", "delete_collection", MANAGE_NAMED),
    _aliases(_grpc("/qdrant.Collections/UpdateAliases", "change_aliases", MANAGE_NAMED)),
    _grpc("/qdrant.Collections/ListCollectionAliases", "list_collection_aliases", READ_LISTING),
    _grpc("/qdrant.Collections/ListAliases", "list_aliases", LISTING),
    _grpc("/qdrant.Collections/CollectionClusterInfo", "get_collection_cluster", READ_EXTRAS),
    _grpc("/qdrant.Collections/CollectionExists", "collection_exists", READ),
    _grpc("/qdrant.Collections/UpdateCollectionClusterSetup", "update_collection_cluster", MANAGE_COLLECTION),
    _grpc("/qdrant.Collections/CreateShardKey", "update_collection_cluster", MANAGE_COLLECTION),
    _grpc("/qdrant.Collections/DeleteShardKey", "update_collection_cluster", MANAGE_COLLECTION),
    _since(17, _grpc("/qdrant.Collections/ListShardKeys", "get_collection_shard_keys", READ)),
    _probe("/grpc.health.v1.Health/Check", "healthz", "POST"),
    _grpc("/qdrant.Points/Upsert", "upsert_points", WRITE),
    _grpc("/qdrant.Points/Delete", "delete_points", WRITE),
    _grpc("/qdrant.Points/Get", "retrieve", READ),
    _grpc("/qdrant.Points/UpdateVectors", "update_vectors", WRITE),
    _grpc("/qdrant.Points/DeleteVectors", "delete_vectors", WRITE),
    _grpc("/qdrant.Points/SetPayload", "set_payload", WRITE),
    _grpc("/qdrant.Points/OverwritePayload", "overwrite_payload", WRITE),
    _grpc("/qdrant.Points/DeletePayload", "delete_payload", WRITE),
    _grpc("/qdrant.Points/ClearPayload", "clear_payload", WRITE),
    _grpc("/qdrant.Points/CreateFieldIndex", "create_payload_index", WRITE_EXTRAS),
    _grpc("/qdrant.Points/DeleteFieldIndex", "drop_payload_index", WRITE_EXTRAS),
    _since(18, _grpc("/qdrant.Points/CreateVectorName", "create_named_vector", WRITE_EXTRAS)),
    _since(18, _grpc("/qdrant.Points/DeleteVectorName", "delete_named_vector", WRITE_EXTRAS)),
    _grpc("/qdrant.Points/Search", "core_search_batch", READ),
    _grpc("/qdrant.Points/SearchBatch", "core_search_batch", READ),
    _grpc("/qdrant.Points/SearchGroups", "group", READ, others=True),
    _grpc("/qdrant.Points/Scroll", "scroll", READ),
    _grpc("/qdrant.Points/Recommend", "recommend", READ, others=True),
    _grpc("/qdrant.Points/RecommendBatch", "recommend_batch", READ, others=True),
    _grpc("/qdrant.Points/RecommendGroups", "group", READ, others=True),
    _grpc("/qdrant.Points/Discover", "discover", READ, others=True),
    _grpc("/qdrant.Points/DiscoverBatch", "discover_batch", READ, others=True),
    _grpc("/qdrant.Points/Count", "count", READ),
    _batch(_grpc("/qdrant.Points/UpdateBatch", BATCH, WRITE)),
    _grpc("/qdrant.Points/Query", "query_batch", READ, others=True),
    _grpc("/qdrant.Points/QueryBatch", "query_batch", READ, others=True),
    _grpc("/qdrant.Points/QueryGroups", "group", READ, others=True),
    _grpc("/qdrant.Points/Facet", "facet", READ),
    _grpc("/qdrant.Points/SearchMatrixPairs", "search_points_matrix", READ),
    _grpc("/qdrant.Points/SearchMatrixOffsets", "search_points_matrix", READ),
    _probe("/qdrant.Qdrant/HealthCheck", "healthz", "POST"),
    _grpc("/qdrant.Snapshots/Create", "create_snapshot", WRITE_EXTRAS),
    _grpc("/qdrant.Snapshots/List", "list_snapshots", READ_EXTRAS),
    _grpc("/qdrant.Snapshots/Delete", "delete_collection_snapshot", WRITE_EXTRAS),
    _grpc("/qdrant.Snapshots/CreateFull", "create_full_snapshot", MANAGE),
    _grpc("/qdrant.Snapshots/ListFull", "list_full_snapshots", GLOBAL_READ),
    _grpc("/qdrant.Snapshots/DeleteFull", "delete_full_snapshot", MANAGE),
    _grpc("/qdrant.StorageRead/ListFiles", "list_files", READ_FILES),
    _grpc("/qdrant.StorageRead/FileExists", "file_exists", READ_FILES),
    _grpc("/qdrant.StorageRead/FileLength", "file_length", READ_FILES),
    _grpc("/qdrant.StorageRead/ReadBytes", "read_bytes", READ_FILES),
    _grpc("/qdrant.StorageRead/ReadBytesStream", "read_bytes_stream", READ_FILES),
    _grpc("/qdrant.StorageRead/ReadWhole", "read_whole", READ_FILES),
    _grpc("/qdrant.StorageRead/ReadBatch", "read_batch", READ_FILES),
    replace(_grpc("/qdrant.StorageRead/ReadMulti", "read_multi", READ_FILES), until=(1, 18)),
    _grpc("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", "server_reflection", ANY_CALLER),
    _grpc("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", "server_reflection", ANY_CALLER),
)


def _by_name() -> dict[str, tuple[Operation, ...]]:
    rows: dict[str, tuple[Operation, ...]] = {}
    for row in chain(REST, OWN, GRPC):
        rows[row.name] = (*rows.get(row.name, ()), row)
    return rows


OPERATIONS: Final = _by_name()
"""The rows of each name."""
