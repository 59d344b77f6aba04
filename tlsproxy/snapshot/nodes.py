"""Nodes of Qdrant behind the gateway, as they are dialled: of one generation, with resolved addresses."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Self

from tlsproxy.config.endpoints import upstream_url
from tlsproxy.config.listeners import ALPN
from tlsproxy.config.upstream import nodes_of
from tlsproxy.snapshot.name_resolution import node_name

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from tlsproxy.config.locks import LockFile
    from tlsproxy.config.model import Config, HttpProtocol
    from tlsproxy.snapshot.name_resolution import Address, Resolved
    from tlsproxy.snapshot.server_tls import ServerTls
    from tlsproxy.tls.client_context import ClientTls


@dataclass(frozen=True, slots=True)
class Upstream:
    """One server to dial. ``authority``: its `Host` or `:authority`. ``addresses``: (family, sockaddr), in the order to
    try; none while its name does not resolve. ``tls``: None for plaintext.
    """

    url: str
    authority: bytes
    addresses: tuple[Address, ...]
    tls: ClientTls | None = None

    @classmethod
    def of(cls, resolved: Resolved, tls: ClientTls | None) -> Self:
        return cls(resolved.url, upstream_url(resolved.url).authority.encode(), resolved.addresses, tls)


@dataclass(frozen=True, slots=True)
class Node:
    """``grpc`` is None where no gRPC is served. ``drained``: it gets nothing new. ``max_connections``: most connections
    to it at a time, of each process.
    """

    name: str
    rest: Upstream
    grpc: Upstream | None
    drained: bool
    max_connections: int | None

    def api(self, protocol: HttpProtocol) -> Upstream:
        """Its server of ``protocol``, which must be served."""
        upstream: Upstream = getattr(self, protocol)
        return upstream


def nodes_in(config: Config, names: Mapping[str, Resolved], tls: ServerTls) -> tuple[Node, ...]:
    """Nodes of a configuration. ``names`` has the addresses of those APIs that are served. Raises MaterialError."""

    def upstream(name: str, protocol: HttpProtocol) -> Upstream | None:
        resolved = names.get(node_name(config, name, protocol))
        if resolved is None:
            return None
        return Upstream.of(resolved, tls.of(config.upstream.tls, upstream_url(resolved.url), ALPN[protocol]))

    nodes = []
    for one in nodes_of(config.upstream):
        rest = upstream(one.name, "rest")
        if rest is None:
            raise AssertionError(f"no state of the REST API of {one.name}")
        nodes.append(Node(one.name, rest, upstream(one.name, "grpc"), one.drain, one.max_connections))
    return tuple(nodes)


def drained_by(nodes: Sequence[Node], config: Config, file: LockFile) -> tuple[Node, ...]:
    """The same nodes, drained by the configuration or by the lock ``file``; that one is of `upstream.nodes` alone."""
    named = {one.name for one in config.upstream.nodes if one.drain}
    if config.upstream.nodes:
        named.update(entry.node for entry in file.drained)
    return tuple(replace(one, drained=one.name in named) for one in nodes)


def drain_warnings(nodes: Sequence[Node]) -> Iterator[str]:
    """Warning where all are drained: configuration and lock file may each leave some, and together none."""
    if all(node.drained for node in nodes):
        names = ", ".join(node.name for node in nodes)
        yield f"every node is drained ({names}): nothing is served until `tlsproxy node NAME up`, or a reload"
