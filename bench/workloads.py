"""What is measured: one row for each kind of work."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from bench.site import DOWNLOAD_SIZE

Kind = Literal["http", "grpc", "tcp"]
Mode = Literal["keep", "new"]
Unit = Literal["request", "MB"]

SMALL_ANSWER = 200
SEARCH_ANSWER = 2048
GRPC_ANSWER = 205
CLASSIC, HYBRID = "X25519", "X25519MLKEM768"
"""Groups of a key exchange. P-256 and X25519 cost differently, so all contenders use the same."""


@dataclass(frozen=True, slots=True)
class Workload:
    """``length`` is that of each answer's body; another one is an error. ``seconds``: times the run's."""

    name: str
    title: str
    request: str
    length: int
    kind: Kind = "http"
    mode: Mode = "keep"
    connections: int = 64
    client: str = "client"
    unit: Unit = "request"
    seconds: float = 1.0
    group: str = CLASSIC
    fields: str = "fixed"
    depth: int = 1

    def arguments(self) -> list[str]:
        """Of the load generator, but for where and for how long."""
        return [
            *("--mode", self.mode, "--protocol", "grpc" if self.kind == "grpc" else "http"),
            *("--connections", str(self.connections), "--length", str(self.length)),
            *("--groups", self.group, "--fields", self.fields, "--depth", str(self.depth)),
        ]


_GET = Workload("get", "small GET", "get", SMALL_ANSWER)
_HANDSHAKE = replace(_GET, name="handshake", title="full mTLS handshake", mode="new", connections=16)
_SEARCH = Workload("search", "search, 12 KB, global role", "search", SEARCH_ANSWER)
_DOWNLOAD = Workload("download", "download, 64 MB", "download", DOWNLOAD_SIZE, connections=4, unit="MB", seconds=2)
_GRPC = Workload("grpc", "gRPC search, 8 streams", "grpc-search", GRPC_ANSWER, kind="grpc", connections=8)

WORKLOADS: tuple[Workload, ...] = (
    _GET,
    replace(_GET, name="get-varying", title="small GET, a new head each", request="get-varying"),
    replace(_GET, name="pipelined", title="small GET, 8 pipelined", connections=8, depth=8),
    _SEARCH,
    replace(_SEARCH, name="search-chunked", title="search, answer in chunks", request="search-chunked"),
    replace(_SEARCH, name="search-inspected", title="search, body inspected", client="limited"),
    replace(_SEARCH, name="search-claims", title="search, role by a token's claims", request="search-token"),
    replace(_SEARCH, name="search-policy", title="search, query policy", client="bounded"),
    replace(
        _SEARCH, name="search-hidden", title="search, payload key hidden", request="search-payload", client="blinded"
    ),
    Workload("upsert", "upsert, 4 MB", "upsert", SMALL_ANSWER, connections=8, unit="MB", seconds=2),
    _DOWNLOAD,
    _HANDSHAKE,
    replace(_HANDSHAKE, name="handshake-hybrid", title=f"full mTLS handshake, {HYBRID}", group=HYBRID),
    _GRPC,
    replace(_GRPC, name="grpc-varying", title="gRPC, varying metadata", fields="varying"),
    replace(_GRPC, name="grpc-huffman", title="gRPC, varying, Huffman-coded", fields="huffman"),
    replace(_GRPC, name="grpc-inspected", title="gRPC, message inspected", client="limited"),
    replace(_GRPC, name="grpc-policy", title="gRPC, query policy", client="bounded"),
    replace(
        _GRPC, name="grpc-hidden", title="gRPC, payload key hidden", request="grpc-search-payload", client="blinded"
    ),
    replace(_GET, name="tcp", title="TCP, small messages", kind="tcp"),
    replace(_DOWNLOAD, name="tcp-download", title="TCP, download 64 MB", kind="tcp"),
    replace(_GET, name="tcp-handshake", title="TCP, full mTLS handshake", kind="tcp", mode="new", connections=16),
)
BY_NAME = {workload.name: workload for workload in WORKLOADS}
QUICK = (
    *("get", "get-varying", "search", "search-inspected", "search-claims", "search-policy", "search-hidden"),
    *("upsert", "download", "handshake", "handshake-hybrid", "grpc", "grpc-varying", "grpc-inspected", "tcp"),
)
"""Those of `make bench-quick`."""
IDLE_CONNECTIONS = (2_000, 10_000)
