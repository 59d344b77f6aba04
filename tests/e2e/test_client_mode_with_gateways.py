"""Client mode in front of real gateways: qdrant-client without a certificate, and Qdrant's cluster port between VMs."""

from __future__ import annotations

import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pytest
from qdrant_client import QdrantClient
from qdrant_client import models as m
from support.connecting import Connecting
from support.gateway import DEADLINE, Gateway
from support.qdrant_clients import EmbeddedUpstream
from support.site import CONFIG, Site
from support.sockets import serving

from tlsproxy.tls.pki import Authority

REST, GRPC, PEER = "127.0.0.1:0", "[::1]:0", "unix:@tlsproxy-test-{}"
HOSTS = ("127.0.0.1", "127.0.0.2")
"""Addresses of a gateway's TCP listeners."""
FRAME = 8
PAUSE = 0.01


class Node:
    """A node of a cluster: sends numbered frames to another one without end, and acknowledges those that it receives.

    ``received`` is the last number of an unbroken row, ``connections`` counts those that it made. A frame that was not
    acknowledged is sent again over the next connection, as Raft does.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.received = self.connections = 0
        self.torn: list[str] = []
        self._acknowledged = 0
        self._progress = threading.Condition()
        self._stop = threading.Event()

    def receive(self, sock: socket.socket) -> None:
        while len(frame := sock.recv(FRAME, socket.MSG_WAITALL)) == FRAME:
            number = int.from_bytes(frame)
            if number > self.received + 1:
                self.torn.append(f"{number} after {self.received}")
            with self._progress:
                self.received = max(number, self.received)
                self._progress.notify_all()
            sock.sendall(frame)

    def wait(self, frames: int = 5) -> None:
        """Until so many more frames have come."""
        with self._progress:
            end = self.received + frames
            assert self._progress.wait_for(lambda: self.received >= end, DEADLINE), f"{self.name}: no more frames"

    def sending(self, connect: Callable[[], socket.socket]) -> _Sending:
        return _Sending(self, connect)

    def send(self, connect: Callable[[], socket.socket]) -> None:
        while not self._stop.is_set():
            try:
                with connect() as sock:
                    self.connections += 1
                    self._send(sock)
            except OSError:
                self._stop.wait(PAUSE)

    def _send(self, sock: socket.socket) -> None:
        while not self._stop.wait(PAUSE):
            frame = (self._acknowledged + 1).to_bytes(FRAME)
            sock.sendall(frame)
            if sock.recv(FRAME, socket.MSG_WAITALL) != frame:
                return
            self._acknowledged += 1

    def stop(self) -> None:
        self._stop.set()


class _Sending:
    def __init__(self, node: Node, connect: Callable[[], socket.socket]) -> None:
        self._node = node
        self._thread = threading.Thread(target=node.send, args=(connect,))

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._node.stop()
        self._thread.join(DEADLINE)


@dataclass
class Cluster:
    """Two VMs, each with a gateway before its node, and client mode for what its own programs reach at the other one.

    The first gateway serves Qdrant too, and the second node's port: it takes over where the second gateway is away.
    """

    site: Site
    gateways: list[Gateway]
    clients: list[Connecting]
    nodes: list[Node]


def gateway(site: Site, upstream: EmbeddedUpstream, *nodes: str) -> Gateway:
    rule = {"name": "peers", "match": {"cn": "peer"}, "role": "peer"}
    return Gateway(
        site.write_config(
            upstream.url,
            grpc=upstream.grpc_url,
            roles={"peer": {"access": "m"}},
            identities=[*CONFIG["identities"], rule],
            listeners=[
                {"host": HOSTS[place], "port": 0, "mode": "tcp", "upstream": node, "allow": ["peer"]}
                for place, node in enumerate(nodes)
            ],
        )
    )


def client(directory: Path, *listeners: tuple[str, str, list[str]]) -> Connecting:
    directory.mkdir()
    files = {"ca_cert": "../ca.pem", "cert": "../peer.pem", "key": "../peer.key"}
    return Connecting(
        directory,
        [{"listen": listen, "alpn": alpn, "targets": targets} for listen, alpn, targets in listeners],
        {**files, "server_name": "localhost", "poll_interval": 0.2},
    )


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    site = Site(tmp_path_factory.mktemp("cluster"))
    site.issue("peer", common_name="peer", client=True)
    nodes = [Node("a"), Node("b")]
    with ExitStack() as stack:
        upstream = stack.enter_context(EmbeddedUpstream())
        a, b = (stack.enter_context(serving(node.receive)) for node in nodes)
        first = stack.enter_context(gateway(site, upstream, a, b))
        second = stack.enter_context(gateway(site, upstream, b))
        to_a, instead = map("{}:{}".format, HOSTS, first.ports["TCP"])
        to_b = f"{HOSTS[0]}:{second.ports['TCP'][0]}"
        peers = [PEER.format(site.directory.name + name) for name in "ab"]
        on_a = client(site.directory / "on-a", (peers[0], "none", [to_b, instead]))
        on_b = client(
            site.directory / "on-b",
            (peers[1], "none", [to_a]),
            (REST, "http/1.1", [f"localhost:{first.port}"]),
            (GRPC, "h2", [f"localhost:{first.grpc_port}"]),
        )
        clients = [stack.enter_context(each) for each in (on_a, on_b)]
        for node, each, peer in zip(nodes, clients, peers, strict=True):
            stack.enter_context(node.sending(lambda each=each, peer=peer: each.connect(peer)))  # type: ignore[misc]
        yield Cluster(site, [first, second], clients, nodes)


@pytest.mark.parametrize("by_grpc", [False, True])
def test_qdrant_client_needs_no_certificate(cluster: Cluster, *, by_grpc: bool) -> None:
    rest, grpc = (cluster.clients[1].addresses[listen].rpartition(":")[2] for listen in (REST, GRPC))
    options: Any = {"prefer_grpc": by_grpc, "grpc_port": int(grpc), "check_compatibility": False, "trust_env": False}
    with closing(QdrantClient(url=f"http://localhost:{rest}", timeout=int(DEADLINE), **options)) as qdrant:
        name = f"by-grpc-{by_grpc}"
        qdrant.create_collection(name, vectors_config=m.VectorParams(size=2, distance=m.Distance.DOT))
        qdrant.upsert(name, [m.PointStruct(id=number, vector=[number, 1.0]) for number in range(100)], wait=True)
        assert qdrant.count(name).count == 100
        assert qdrant.query_points(name, query=[1.0, 0.0]).points[0].id == 99
    written = cluster.gateways[0].audited(operation="upsert_points", protocol="grpc" if by_grpc else "rest")
    assert (written["certificate_subject"], written["role"]) == ("CN=peer", "peer")


class Rotation:
    """Changes of certificates while frames go both ways, and what each has come to."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self._changed = False

    def by_gateways(self) -> None:
        for each in self.cluster.gateways:
            each.reloaded()

    def by_clients(self) -> None:
        for each in self.cluster.clients:
            each.log.wait(lambda line: "new connections use the files as they are now" in line)

    def connections(self) -> list[int]:
        """Those that were made, once frames have gone both ways again."""
        for node in self.cluster.nodes:
            node.wait()
        return [node.connections for node in self.cluster.nodes]


def test_no_frame_is_lost_and_no_connection_cut_by_renewed_certificates(cluster: Cluster) -> None:
    site, rotation, new = cluster.site, Rotation(cluster), Authority.create()
    old = site.authority
    server = {"common_name": "localhost", "dns": ["localhost"], "ips": ["127.0.0.1"], "server": True}
    before = rotation.connections()

    site.issue("peer", common_name="peer", client=True)
    rotation.by_clients()
    site.issue("server", **server)
    rotation.by_gateways()
    site.replace("ca.pem", old.certificate_pem + new.certificate_pem)
    rotation.by_gateways()
    rotation.by_clients()
    site.issue("server", authority=new, **server)
    rotation.by_gateways()
    site.issue("peer", authority=new, common_name="peer", client=True)
    rotation.by_clients()
    assert rotation.connections() == before

    # The right of these ends with the CA that vouched for them. Their successors stand on the new one.
    site.replace("ca.pem", new.certificate_pem)
    rotation.by_gateways()
    rotation.by_clients()
    after = rotation.connections()
    assert all(now > then for now, then in zip(after, before, strict=True))
    assert rotation.connections() == after
    assert [node.torn for node in cluster.nodes] == [[], []]


def test_another_gateway_takes_over_from_one_that_is_killed(cluster: Cluster) -> None:
    before = [node.connections for node in cluster.nodes]
    killed = cluster.gateways[1]
    killed.process.send_signal(signal.SIGKILL)
    killed.process.wait(DEADLINE)
    for node in cluster.nodes:
        node.wait(20)
    assert [node.torn for node in cluster.nodes] == [[], []]
    assert cluster.nodes[0].connections > before[0]
    assert cluster.nodes[1].connections == before[1]
