"""Client mode in front of real gateways: qdrant-client without a certificate, and Qdrant's cluster port between VMs."""

from __future__ import annotations

import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from qdrant_client import QdrantClient
from qdrant_client import models as m
from support.connecting import Connecting
from support.gateway import DEADLINE, Gateway
from support.qdrant_clients import EmbeddedUpstream
from support.site import CONFIG, Site
from support.sockets import serving

from tlsproxy.tls.pki import Authority

REST, GRPC = "127.0.0.1:0", "[::1]:0"
HOSTS = ("127.0.0.1", "127.0.0.2")
"""Addresses of a gateway's TCP listeners."""
FRAME = 8
PAUSE = 0.01


class Node:
    """A node of a cluster: sends numbered frames to another one without end, and acknowledges those that it receives.

    ``received`` is the last number of an unbroken row, ``connections`` counts those that it made. A frame that was not
    acknowledged is sent again over the next connection, as Raft does.
    """

    def __init__(self) -> None:
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

    @contextmanager
    def sending(self, connect: Callable[[], socket.socket]) -> Iterator[None]:
        thread = threading.Thread(target=self._send, args=(connect,))
        thread.start()
        yield
        self._stop.set()
        thread.join(DEADLINE)

    def wait(self, reached: Callable[[], bool]) -> None:
        """Asked after each frame that comes, and each connection that it makes."""
        with self._progress:
            assert self._progress.wait_for(reached, DEADLINE)

    def hear(self, frames: int = 5) -> None:
        end = self.received + frames
        self.wait(lambda: self.received >= end)

    def _send(self, connect: Callable[[], socket.socket]) -> None:
        while not self._stop.is_set():
            try:
                with connect() as sock:
                    with self._progress:
                        self.connections += 1
                        self._progress.notify_all()
                    self._send_over(sock)
            except OSError:
                self._stop.wait(PAUSE)

    def _send_over(self, sock: socket.socket) -> None:
        while not self._stop.wait(PAUSE):
            frame = (self._acknowledged + 1).to_bytes(FRAME)
            sock.sendall(frame)
            if sock.recv(FRAME, socket.MSG_WAITALL) != frame:
                return
            self._acknowledged += 1


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
    nodes = [Node(), Node()]
    with ExitStack() as stack:
        upstream = stack.enter_context(EmbeddedUpstream())
        a, b = (stack.enter_context(serving(node.receive)) for node in nodes)
        first = stack.enter_context(gateway(site, upstream, a, b))
        second = stack.enter_context(gateway(site, upstream, b))
        to_a, instead = map("{}:{}".format, HOSTS, first.ports["TCP"])
        to_b = f"{HOSTS[0]}:{second.ports['TCP'][0]}"
        peers = [f"unix:{site.directory}/peer-of-{name}.sock" for name in "ab"]
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
    written = cluster.gateways[0].audited(method="upsert_points")
    assert (written["certificate_subject"], written["role"]) == ("CN=peer", "peer")
    assert written["api"].startswith("/qdrant.Points/" if by_grpc else "/collections/")


def test_no_frame_is_lost_and_no_connection_cut_by_renewed_certificates(cluster: Cluster) -> None:
    """But for those whose right ends with their CA."""
    site, nodes, new = cluster.site, cluster.nodes, Authority.create()
    old = site.authority
    server = {"common_name": "localhost", "dns": ["localhost"], "ips": list(HOSTS), "server": True}

    def by_gateways() -> None:
        for each in cluster.gateways:
            each.reloaded()

    def by_clients() -> None:
        for each in cluster.clients:
            each.log.wait(lambda line: "new connections use other files" in line)

    def connections() -> list[int]:
        """Numbers that were made, once frames have gone both ways again."""
        for node in nodes:
            node.hear()
        return [node.connections for node in nodes]

    before = connections()
    site.issue("peer", common_name="peer", client=True)
    by_clients()
    site.issue("server", **server)
    by_gateways()
    site.replace("ca.pem", old.certificate_pem + new.certificate_pem)
    by_gateways()
    by_clients()
    site.issue("server", authority=new, **server)
    by_gateways()
    site.issue("peer", authority=new, common_name="peer", client=True)
    by_clients()
    assert connections() == before

    site.replace("ca.pem", new.certificate_pem)
    by_gateways()
    by_clients()
    for node, count in zip(nodes, before, strict=True):
        node.wait(lambda node=node, count=count: node.connections > count)  # type: ignore[misc]
    after = connections()
    assert connections() == after
    assert [node.torn for node in nodes] == [[], []]


def test_another_gateway_takes_over_from_one_that_is_killed(cluster: Cluster) -> None:
    (sender, other), killed = cluster.nodes, cluster.gateways[1]
    before = sender.connections, other.connections
    killed.process.send_signal(signal.SIGKILL)
    killed.process.wait(DEADLINE)
    sender.wait(lambda: sender.connections > before[0])
    other.hear()
    sender.hear()
    assert [node.torn for node in cluster.nodes] == [[], []]
    assert other.connections == before[1]
