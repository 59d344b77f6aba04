"""The table of metric families: name, type, unit, sentence and labels. Code, `/metrics` and docs/metrics.md read it.

Names follow prometheus.io/docs/practices/naming. A label's values are from a table or from the configuration, never
from a client's request.
"""

from __future__ import annotations

from typing import Final

from tlsproxy.metrics.prometheus import Family


def _counter(name: str, unit: str, text: str, *labels: str) -> Family:
    return Family("counter", f"tlsproxy_{name}_total", unit, text, labels)


def _gauge(name: str, unit: str, text: str, *labels: str) -> Family:
    return Family("gauge", f"tlsproxy_{name}", unit, text, labels)


def _histogram(name: str, unit: str, text: str, bounds: tuple[float, ...], *labels: str) -> Family:
    return Family("histogram", f"tlsproxy_{name}", unit, text, labels, bounds)


REQUEST_BUCKETS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0)
"""Upper bounds in seconds: from a point lookup to a snapshot."""

HANDSHAKE_BUCKETS: Final = (0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


BUILD_INFO: Final = _gauge(
    "build_info", "always 1", "Version of the program, and its form: compiled or plain.", "version", "form"
)

REQUESTS: Final = _counter(
    "requests",
    "requests",
    "Requests and calls that ended; outcome: allowed, denied, failed (allowed, then something broke).",
    "operation",
    "role",
    "outcome",
)
REQUEST_DURATION: Final = _histogram(
    "request_duration_seconds",
    "seconds",
    "Time from the first byte of a request to the end of its response.",
    REQUEST_BUCKETS,
    "operation",
)
DECISIONS: Final = _counter(
    "decisions", "requests", "The same requests, and relayed TCP connections, by reason of the decision.", "reason"
)
LIMIT_OVERFLOWS: Final = _counter(
    "limit_overflows",
    "requests",
    "Requests counted in the shared overflow row of the limit table: possibly too strict, never unlimited.",
)
LIMIT_UNLOCKED: Final = _counter(
    "limit_unlocked", "requests", "Requests counted without the limit table's lock, whose holder was stopped."
)
SHARE_REFUSALS: Final = _counter(
    "share_refusals",
    "requests",
    "Refusals for want of a shared resource (upstream connections, memory); reason: full, gave_way.",
    "resource",
    "reason",
)
INSPECTION_WAITING: Final = _gauge("inspection_waiting", "requests", "Requests that wait for inspection memory.")
INSPECTION_MEMORY: Final = _gauge("inspection_memory_bytes", "bytes", "Inspection memory in use.")
INSPECTION_MEMORY_LIMIT: Final = _gauge(
    "inspection_memory_limit_bytes", "bytes", "Most inspection memory: limits.inspection_memory_mb of each worker."
)

HANDSHAKES: Final = _counter(
    "handshakes", "handshakes", "TLS handshakes that ended; outcome: ok, or a reason.", "outcome"
)
HANDSHAKE_DURATION: Final = _histogram(
    "handshake_duration_seconds", "seconds", "Time of a TLS handshake.", HANDSHAKE_BUCKETS
)
NEGOTIATED: Final = _counter(
    "handshakes_negotiated",
    "handshakes",
    "TLS handshakes that succeeded, by what they agreed on; side: client, upstream (in client mode: target). Python "
    "before 3.15 does not tell the group, which is empty then.",
    "side",
    "version",
    "cipher",
    "group",
)
CONNECTIONS_OPEN: Final = _gauge("connections", "connections", "Open client connections.")
CONNECTIONS_LIMIT: Final = _gauge(
    "connections_limit", "connections", "Most open client connections: limits.connections of all workers together."
)
CONNECTIONS: Final = _counter(
    "connections",
    "connections",
    "Client connections; outcome: accepted, limit, address_limit, handshake_rate, too_many_failures, "
    "proxy_protocol_missing, proxy_protocol_malformed, proxy_protocol_untrusted, never_asked.",
    "outcome",
)
CONNECTIONS_ENDED: Final = _counter(
    "connections_ended",
    "connections",
    "Connections ended by the gateway, and requests that lost their right on others.",
    "reason",
)
ACCEPT_ERRORS: Final = _counter("accept_errors", "errors", "Failed accepts: no descriptor left.")

UPSTREAM_CONNECTIONS: Final = _gauge(
    "upstream_connections", "connections", "Connections to Qdrant; state: idle, busy.", "state"
)
UPSTREAM_CONNECTIONS_LIMIT: Final = _gauge(
    "upstream_connections_limit",
    "connections",
    "Most busy connections to Qdrant: upstream.max_connections of each worker.",
)
UPSTREAM_WAITING: Final = _gauge("upstream_waiting", "requests", "Requests that wait for a connection to Qdrant.")
UPSTREAM_CONNECTS: Final = _counter(
    "upstream_connects", "connections", "Connects to Qdrant; outcome: ok, timeout, failed.", "outcome"
)
UPSTREAM_TLS: Final = _counter(
    "upstream_tls_failures",
    "connections",
    "Connections to an upstream over TLS that failed, by reason.",
    "reason",
)
UPSTREAM_RETRIES: Final = _counter("upstream_retries", "requests", "Reads sent a second time, on a fresh connection.")
UPSTREAM_RETRIES_REFUSED: Final = _counter(
    "upstream_retries_refused",
    "requests",
    "Reads that failed and were not sent to another node, since the budget of retries was spent.",
)
NODE_SERVING: Final = _gauge(
    "node_serving",
    "workers",
    "Processes for which a node serves; this and the next three with upstream.nodes only.",
    "node",
)
NODE_IN_FLIGHT: Final = _gauge(
    "node_in_flight", "requests", "Requests and gRPC calls under way at a node; calls are counted each second.", "node"
)
NODE_CONNECTIONS: Final = _gauge("node_connections", "connections", "Connections to a node that are in use.", "node")
NODE_EJECTIONS: Final = _counter(
    "node_ejections", "ejections", "Times that a node was left out since requests had failed there.", "node"
)

RELOADS: Final = _counter(
    "reloads", "reloads", "Reloads; result: ok, unchanged, partial, failed, held.", "result", "trigger"
)
RELOAD_LAST_SUCCESS: Final = _gauge(
    "reload_last_success_timestamp_seconds", "seconds since 1970", "Time at which the files were last found good."
)
RELOAD_FAILED: Final = _gauge("reload_last_attempt_failed", "0 or 1", "1 if some of the files are not in force.")
RELOAD_HELD: Final = _gauge("reload_held", "0 or 1", "1 while limits.mass_cut holds a publication back.")
GENERATION: Final = _gauge("generation", "number", "Number of the generation that serves.")
INPUTS: Final = _gauge(
    "inputs",
    "inputs",
    "Inputs by kind and state: published, waits (for a date), refused, retried.",
    "input",
    "state",
)
LOCKS: Final = _gauge("locks", "locks", "Locks in force, by what they hold.", "kind")
SHARED_STORE: Final = _gauge(
    "shared_store_up",
    "0 or 1",
    "1 while the store of shared limits answers; as the next two, with shared.url only.",
)
SHARED_GATEWAYS: Final = _gauge(
    "shared_gateways", "gateways", "Gateways that share limits, as last told by the store, else shared.gateways."
)
SHARED_ROUND_TRIPS: Final = _counter(
    "shared_round_trips",
    "round trips",
    "Questions to the store; outcome: ok, or the reason of a failure (timeout, unreachable, loading, credentials, tls,"
    " files, read_only, full, cluster, busy, error).",
    "outcome",
)
BUNDLE_VERSION: Final = _gauge(
    "bundle_version",
    "number",
    "Version of the last good bundle of the configuration; this and the next with bundle only.",
)
BUNDLE_CREATED: Final = _gauge("bundle_created_timestamp_seconds", "seconds since 1970", "Time at which it was signed.")
BUNDLE_LAST_SUCCESS: Final = _gauge(
    "bundle_last_success_timestamp_seconds",
    "seconds since 1970",
    "Time of the last good fetch since the start, of an unchanged bundle too.",
)
BUNDLE_FAILED: Final = _gauge(
    "bundle_last_fetch_failed", "0 or 1", "1 if the bundle could not be fetched the last time, or was refused."
)
EXPIRY: Final = _gauge(
    "expiry_timestamp_seconds",
    "seconds since 1970",
    "End of all that ends: server certificate, its intermediate, client ca, crl, certificate and ca towards upstreams, "
    "named key, last key of a token issuer, bundle of the configuration; of several of one name the first.",
    "kind",
    "name",
)
EXPIRY_START: Final = _gauge(
    "expiry_start_timestamp_seconds",
    "seconds since 1970",
    "Beginning of that lifetime; of a key without one, 90 days before its end.",
    "kind",
    "name",
)
CERTIFICATE_NOT_AFTER: Final = _gauge(
    "certificate_not_after_seconds",
    "seconds since 1970",
    "Expiry of the server's certificate and of each CA in use, by digest.",
    "role",
    "sha256",
)
CRL_NEXT_UPDATE: Final = _gauge(
    "crl_next_update_seconds", "seconds since 1970", "Next update of each CRL in use.", "issuer"
)
CLOCK_JUMPS: Final = _counter("clock_jumps", "jumps", "Jumps of the wall clock; direction: forward, back.", "direction")

AUDIT_LINES: Final = _counter("audit_lines", "lines", "Audit lines written.")
AUDIT_DROPPED: Final = _counter("audit_dropped", "lines", "Audit lines lost.")
AUDIT_QUEUE: Final = _gauge("audit_queue_length", "lines", "Audit lines that are not written yet.")
AUDIT_QUEUE_LIMIT: Final = _gauge(
    "audit_queue_limit", "lines", "Most audit lines that wait: audit.queue_size of each process."
)

READY: Final = _gauge(
    "ready", "0 or 1", "1 where a part of readiness is good, 0 where it is degraded or not ready.", "part"
)

WORKERS: Final = _gauge("workers", "workers", "Workers that serve; as the next three, with workers > 1 only.")
WORKER_RESTARTS: Final = _counter("worker_restarts", "workers", "Workers that ended and were replaced.")
WORKER_GENERATION: Final = _gauge(
    "worker_generation", "number", "Number of the generation that a worker serves, 0 while it serves none.", "worker"
)
WORKER_SILENT: Final = _gauge(
    "worker_silent_seconds", "seconds", "Time for which a worker has not answered its supervisor.", "worker"
)

CONNECT_CONNECTIONS: Final = _counter(
    "connect_connections",
    "connections",
    "As all `connect_*`, of client mode (`tlsproxy connect`). Connections of clients that ended; result: ended, cut, "
    "idle, no_target, drained, full.",
    "listener",
    "result",
)
CONNECT_OPEN: Final = _gauge("connect_open_connections", "connections", "Open connections of clients.", "listener")
CONNECT_BYTES: Final = _counter(
    "connect_bytes", "bytes", "Relayed bytes; direction: out (to the target), in.", "listener", "direction"
)
CONNECT_FAILURES: Final = _counter(
    "connect_failures",
    "connections",
    "Failed connections to an address of a target; reason: refused, timeout, unresolved, unreachable, or that of TLS.",
    "listener",
    "target",
    "reason",
)
CONNECT_TARGET_UP: Final = _gauge(
    "connect_target_up", "0 or 1", "Whether the last connection to a target stood.", "listener", "target"
)

FAMILIES: Final = tuple(each for each in list(globals().values()) if isinstance(each, Family))
"""All of ours, in this order."""

PROCESS: Final = (
    Family("gauge", "process_virtual_memory_bytes", "bytes", "Virtual memory size in bytes.", ()),
    Family("gauge", "process_resident_memory_bytes", "bytes", "Resident memory size in bytes.", ()),
    Family(
        "gauge",
        "process_start_time_seconds",
        "seconds since 1970",
        "Start time of the process since unix epoch in seconds.",
        (),
    ),
    Family("counter", "process_cpu_seconds_total", "seconds", "Total user and system CPU time spent in seconds.", ()),
    Family("gauge", "process_open_fds", "descriptors", "Number of open file descriptors.", ()),
    Family("gauge", "process_max_fds", "descriptors", "Maximum number of open file descriptors.", ()),
)
"""Families of each process, by the names that all of Prometheus' client libraries have."""
