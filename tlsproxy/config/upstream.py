"""The section `upstream`, and the nodes of Qdrant that it names: one by `rest` and `grpc`, or several by `nodes`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import Field, SecretStr, StrictFloat

from tlsproxy.config.callers import Label, Section
from tlsproxy.config.limits import Count, Seconds
from tlsproxy.config.positions import Path as KeyPath
from tlsproxy.config.upstream_tls import UpstreamTls

ONLY: Final = "upstream"
"""Name of the node that `rest` and `grpc` are of."""


class NodeConfig(Section):
    """One node of Qdrant."""

    name: Label
    """Name of the node in metrics, status and commands."""
    rest: str
    """The node's REST API: `http://host:port`, `https://host:port` with `upstream.tls`, `unix:/path` or
    `unix:@name`."""
    grpc: str | None = None
    """The node's gRPC API, in the same forms. Required where gRPC is served."""
    drain: bool = False
    """true: the node gets no new requests and calls; those under way end there."""
    max_connections: Count | None = None
    """Most connections to this node at a time (each worker); null for as many as `upstream.max_connections` allows."""


class UpstreamConfig(Section):
    """The Qdrant behind the gateway: on loopback, or over TLS."""

    rest: str = "http://127.0.0.1:16333"
    """Qdrant's REST API: `http://host:port`; `https://host:port` with `tls`; or `unix:/path`, `unix:@name` (abstract):
    a unix socket of a proxy beside it."""
    grpc: str = "http://127.0.0.1:16334"
    """Qdrant's gRPC API, in the same forms. It must be the same Qdrant. Must be set if gRPC is served and `rest` is
    not the default."""
    tls: UpstreamTls | None = None
    """TLS with the upstreams whose URL is `https://`: `{ca_cert: ca.pem}`, and a client certificate if Qdrant, or the
    proxy before it, wants one."""
    nodes: Annotated[tuple[NodeConfig, ...], Field(max_length=64)] = ()
    """Nodes of one Qdrant cluster, in place of `rest` and `grpc`: each request goes to the one with the fewest under
    way. See docs/operations.md."""
    check_interval: Annotated[StrictFloat, Field(ge=0, le=3600)] = 2.0
    """Seconds between two checks of each node (`/readyz`, over gRPC its health service), by each worker; 0 for none. A
    node is out after two failures, and back after two successes. Only where there are several nodes."""
    affinity: Literal["none", "identity"] = "none"
    """Choice among several nodes. none: the one with the fewest requests under way. identity: one for all requests of a
    caller, while it serves."""
    api_key: SecretStr | None = None
    """API key that Qdrant itself asks for; clients never see it. Prefer `api_key_file`."""
    api_key_file: Path | None = None
    """File that holds the upstream's `api_key`, or `credential:NAME`."""
    max_connections: Count = 256
    """Most connections to Qdrant at a time, both protocols together (each worker); a request beyond waits for one. A
    gRPC client has one of its own while it makes calls; beyond as many clients, one without calls has it anew with its
    next call."""
    connect_timeout: Seconds = 5.0
    """Seconds to wait for a connection."""
    response_timeout: Seconds = 300.0
    """Seconds to wait for the head of a response, and between two pieces of its body. Longer where the client says so
    (`limits.max_response_timeout`) and for snapshots (`limits.snapshot_timeout`)."""
    idle_timeout: Seconds = 4.0
    """Seconds that an unused connection is kept. Qdrant closes one after 5 s, so this must be less."""
    resolve_interval: Annotated[StrictFloat, Field(ge=1, le=86400)] = 30.0
    """Seconds after which the names of upstreams (`rest`, `grpc`, `listeners.upstream`) are resolved again; also at
    once, but at most every second, where a connection fails. Other addresses are published as by a reload. While a
    name does not resolve, its former addresses serve; without any, it is tried every 2 s."""
    route_affinity: Literal["identity", "none"] = "identity"
    """Replicas that a caller reads from, in a Qdrant of several nodes, 1.19 or later. identity: the same for all of its
    requests, as `x-qdrant-route-affinity` is set from the token's subject, the certificate or the key, where the client
    sends none. none: those that Qdrant chooses; also for one caller whose reads are to be spread."""
    on_change: Literal["drain", "keep"] = "drain"
    """Treatment of relayed TCP connections and gRPC calls whose upstream is another after a reload. drain: they end
    within `limits.drain_timeout` (a TCP connection once it is silent for `limits.drain_grace`). keep: they stay
    until they end. New ones go to the new upstream, also the next call of an open gRPC connection; requests that run
    end where they began."""


def nodes_of(upstream: UpstreamConfig) -> tuple[NodeConfig, ...]:
    return upstream.nodes or (NodeConfig(name=ONLY, rest=upstream.rest, grpc=upstream.grpc),)


def urls_of(upstream: UpstreamConfig) -> Iterator[tuple[KeyPath, str]]:
    """URLs with the key that each stands in, of APIs that are not served too."""
    for index, node in enumerate(nodes_of(upstream)):
        base: KeyPath = ("upstream", "nodes", index) if upstream.nodes else ("upstream",)
        yield (*base, "rest"), node.rest
        if node.grpc is not None:
            yield (*base, "grpc"), node.grpc
