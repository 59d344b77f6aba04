"""Two gateways behind a balancer, before three nodes, with a store of shared limits: everything dies or is drained in
turn under load, and no read fails, limits hold for the whole, and each request has one audit line.
"""

from __future__ import annotations

import json
import os
import socket
import ssl
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final, TypeVar

import grpc
import pytest
from qdrant_client import grpc as pb
from support.balancers import HOST, balancer, free_ports
from support.gateway import DEADLINE, Gateway
from support.grpc_channels import call, certificates
from support.grpc_upstream import GrpcCall, GrpcUpstream
from support.load import Load
from support.raw_request import read_response, request
from support.redis_server import RedisServer, needs_store
from support.site import Site
from support.upstream import Connection, Received, ScriptedUpstream, plain

from tlsproxy.tls.pki import Authority

pytestmark = needs_store

LONG: Final = bool(os.environ.get("TLSPROXY_SOAK"))
ROUNDS: Final = 40 if LONG else 1
PACE: Final = 0.1
"""Seconds between two requests of one client."""
KEPT: Final = 10
"""Requests of a client's connection."""
RATE, BURST = 10, 10
METERED: Final = {"access": "r", "limits": {"requests_per_second": RATE, "burst": BURST}}
READ, WRITE = ("POST", "/collections/docs/points/query", b'{"limit":1}'), ("PUT", "/collections/docs/points", b"{}")
LIST = ("/qdrant.Collections/List", b"")
UPSERT = ("/qdrant.Points/Upsert", pb.UpsertPoints(collection_name="docs").SerializeToString())
BALANCERS: Final = {"HAProxy": "127.0.0.7", "nginx": "127.0.0.8"}
"""Each has clients, whose name is its name, and whose REST comes from its address."""
MARK: Final = "x-request-id"
LOST: Final = ("UNAVAILABLE", "CANCELLED")
"""Ends of a call at a node that dies: the gateway's, and the node's own."""
READS: Final = "POST 200"


class NodeTls:
    """TLS of a node, for the gateways' certificate alone, by the files of the moment."""

    def __init__(self, site: Site) -> None:
        self._files = [site.directory / name for name in ("node.key", "node.pem", "ca.pem")]

    @property
    def context(self) -> ssl.SSLContext:
        key, certificate, authorities = self._files
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=authorities)
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_cert_chain(certificate, key)
        return context

    @property
    def credentials(self) -> grpc.ServerCredentials:
        """Read anew for each connection."""
        return grpc.dynamic_ssl_server_credentials(self._read(), self._read, require_client_authentication=True)

    def _read(self) -> grpc.ServerCertificateConfiguration:
        key, certificate, authorities = (file.read_bytes() for file in self._files)
        return grpc.ssl_server_certificate_configuration([(key, certificate)], authorities)


class Node:
    """A node with both APIs, at ports which stay its own. ``tls``: None for plaintext."""

    def __init__(self, name: str, stack: ExitStack, tls: NodeTls | None = None) -> None:
        self._tls = tls
        self.serves = {"rest": threading.Event(), "grpc": threading.Event()}
        self.life = stack.enter_context(ExitStack())
        self.ports = free_ports(2)
        rest, calls = (f"{'http' if tls is None else 'https'}://{HOST}:{port}" for port in self.ports)
        self.entry = {"name": name, "rest": rest, "grpc": calls}
        self.start()

    def answer(self, connection: Connection, received: Received) -> None:
        plain()(connection, received)
        self.serves["rest"].set()

    async def reply(self, call: GrpcCall) -> None:
        while await call.receive() is not None:
            pass
        await call.send(b"")
        self.serves["grpc"].set()

    def start(self) -> None:
        rest, calls = self.ports
        context, credentials = (None, None) if self._tls is None else (self._tls.context, self._tls.credentials)
        self.rest = self.life.enter_context(ScriptedUpstream(answer=self.answer, port=rest, tls=context))
        self.life.enter_context(GrpcUpstream(self.reply, address=f"{HOST}:{calls}", tls=credentials))

    def renewed(self) -> None:
        """Its files were replaced."""
        if self._tls is not None:
            self.rest.tls = self._tls.context

    def die(self) -> None:
        self.life.close()

    def come_back(self) -> None:
        for event in self.serves.values():
            event.clear()
        self.start()
        assert self.serves["rest"].wait(DEADLINE)


C = TypeVar("C", ssl.SSLSocket, grpc.Channel)


class Callers:
    """Clients of the balancers. ``asked`` has the marks of their requests, each of which is to have one audit line.

    ``lost``: those of calls whose connection ended, perhaps before the gateway had read them.
    """

    def __init__(self, site: Site) -> None:
        self.site = site
        self.asked: list[str] = []
        self.lost: set[str] = set()
        self.files = threading.Condition()
        """Held while the clients' files are replaced, which ``turn`` counts."""
        self.turn = 0
        self.turns: list[int] = []
        """For each client, that of the files which its connection was made with."""

    def renew(self, replace: Callable[[], None]) -> None:
        """Replaces the clients' files; each then makes a new connection."""
        with self.files:
            replace()
            self.turn += 1
            assert self.files.wait_for(lambda: set(self.turns) == {self.turn}, DEADLINE), "all have new connections"

    def _number(self) -> int:
        self.turns.append(-1)
        return len(self.turns) - 1

    @contextmanager
    def _renewed(self, number: int) -> Iterator[None]:
        with self.files:
            yield
            self.turns[number] = self.turn
            self.files.notify_all()

    def _marked(self, name: str) -> str:
        mark = f"{name}-{len(self.asked)}-{time.monotonic_ns()}"
        self.asked.append(mark)
        return mark

    def _connected(self, number: int, source: str, port: int, client: str) -> ssl.SSLSocket:
        with self._renewed(number):
            context = self.site.client(client)
        sock = socket.create_connection((HOST, port), DEADLINE, source_address=(source, 0))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return context.wrap_socket(sock, server_hostname="localhost")

    def _client(
        self, stack: ExitStack, connect: Callable[[int], C], exchange: Callable[[C], tuple[str, bool]]
    ) -> Callable[[], str]:
        """A client that connects anew after :data:`KEPT` requests, for replaced files, and where ``exchange`` says so.

        ``connect`` is given the client's number.
        """
        held: list[C] = []
        number = self._number()
        stack.callback(lambda: [connection.close() for connection in held])
        used = 0

        def ask() -> str:
            nonlocal used
            time.sleep(PACE)
            if held and (used == KEPT or self.turns[number] != self.turn):
                held.pop().close()
            if not held:
                held.append(connect(number))
                used = 0
            used += 1
            outcome, closing = exchange(held[0])
            if closing:
                held.pop().close()
            return outcome

        return ask

    def rest_client(
        self, stack: ExitStack, source: str, port: int, operation: tuple[str, str, bytes], client: str
    ) -> Callable[[], str]:
        method, target, body = operation

        def exchange(sock: ssl.SSLSocket) -> tuple[str, bool]:
            sock.sendall(request(method, target, [(MARK, self._marked(client))], body))
            response = read_response(sock, method)
            return f"{'metered ' * (client == 'metered')}{method} {response.status}", response.closing

        return self._client(stack, lambda number: self._connected(number, source, port, client), exchange)

    def grpc_client(self, stack: ExitStack, port: int, operation: tuple[str, bytes], client: str) -> Callable[[], str]:
        method, message = operation

        def connect(number: int) -> grpc.Channel:
            options = (("grpc.enable_retries", 0), ("grpc.use_local_subchannel_pool", 1))
            with self._renewed(number):
                credentials = grpc.ssl_channel_credentials(**certificates(self.site, client))
            return grpc.secure_channel(f"localhost:{port}", credentials, options)

        def exchange(channel: grpc.Channel) -> tuple[str, bool]:
            mark = self._marked(client)
            answered = call(channel, method, message, (MARK, mark), wait_for_ready=True)
            if answered.code.name in LOST:
                self.lost.add(mark)
            return f"{method} {answered.code.name}", False

        return self._client(stack, connect, exchange)


class Stage:
    """All of it, in its usual state: `metered` is a client with limits of its role."""

    def __init__(self, site: Site, stack: ExitStack) -> None:
        self.site = site
        self._renew()
        site.issue("gateway", client=True, common_name="gateway")
        for name in ("store", "node"):
            site.issue(name, common_name=name, ips=[HOST], server=True)
        ports = [free_ports(3) for _ in range(2)]
        self.nodes = [Node("a", stack), Node("b", stack), Node("c", stack, NodeTls(site))]
        files = {name: str(site.directory / name) for name in ("store.pem", "store.key", "ca.pem")}
        options = ["--tls-cert-file", files["store.pem"], "--tls-key-file", files["store.key"]]
        self.store = RedisServer(site.directory, *options, "--tls-ca-cert-file", files["ca.pem"], tls=True)
        stack.enter_context(self.store)
        self.configs = [self._configured(number, *one) for number, one in enumerate(ports)]
        self.records: list[dict[str, Any]] = []
        self.gateways = [Gateway(path) for path in self.configs]
        for gateway in self.gateways:
            stack.enter_context(gateway)
        self.callers = Callers(site)
        self.clients: list[Callable[[], str]] = []
        for name, source in BALANCERS.items():
            rest, calls = stack.enter_context(balancer(name, site.directory, ports))
            operations = [(READ, "metered"), (READ, "metered"), (READ, name), (WRITE, name)]
            self.clients += [self.callers.rest_client(stack, source, rest, *one) for one in operations]
            self.clients += [self.callers.grpc_client(stack, calls, one, name) for one in (LIST, UPSERT)]
        self.until(reached=True)

    def _configured(self, number: int, rest: int, calls: int, health: int) -> Path:
        (self.site.directory / str(number)).mkdir()
        return self.site.write_config(
            [node.entry for node in self.nodes],
            service={"http_port": rest, "grpc_port": calls, "proxy_protocol": {"from": [HOST]}},
            upstream={
                "check_interval": 0.5,
                "tls": {"ca_cert": "ca.pem", "cert": "gateway.pem", "key": "gateway.key"},
            },
            limits={"drain_grace": 1},
            health={"listen": f"{HOST}:{health}"},
            shared={"url": self.store.url, "ca_cert": "ca.pem", "cert": "gateway.pem", "key": "gateway.key"},
            roles={"metered": METERED},
            identities=[
                {"name": "platform", "match": {"ou": "platform"}, "role": "admin"},
                {"name": "metered", "match": {"cn": "metered"}, "role": "metered"},
            ],
            workers=number + 1 if LONG else 1,
        )

    def until(self, *, reached: bool) -> None:
        """Both gateways say that the store is so, and that they are two."""
        end = time.monotonic() + DEADLINE
        for gateway in self.gateways:
            while True:
                shared = json.loads(gateway.ask_admin("/status")[1])["shared"]
                if shared["reached"] is reached and shared["gateways"] == 2:
                    break
                assert time.monotonic() < end, shared
                time.sleep(0.05)

    def drain(self, number: int) -> None:
        """Stops a gateway well, and starts it again; returns once each balancer uses it again."""
        self.records += self.gateways[number].stop()
        self.gateways[number] = Gateway(self.configs[number]).__enter__()
        for name, source in BALANCERS.items():
            self.gateways[number].audited(remote=source, grpc_status=None)
            self.gateways[number].audited(subject=f"CN={name},OU=platform", grpc_status=0)

    def rotate(self) -> None:
        """Another CA, and new certificates of everybody; the former CA goes last."""
        former, authority = self.site.authority, Authority.create()
        self._trust(former, authority)
        self.site.authority = authority
        self._issue("server", common_name="localhost", dns=["localhost"], ips=[HOST], server=True)
        for gateway in self.gateways:
            gateway.reloaded()
        for name in ("store", "node"):
            self._issue(name, common_name=name, ips=[HOST], server=True)
        for node in self.nodes:
            node.renewed()
        self._issue("gateway", client=True, common_name="gateway")
        self.store.kill()
        self.store.start()
        self.callers.renew(self._renew)
        self._trust(authority)
        self.until(reached=True)

    def _renew(self) -> None:
        self._issue("metered", client=True, common_name="metered")
        for name in BALANCERS:
            self._issue(name, client=True, common_name=name, organizational_unit="platform")

    def _issue(self, name: str, **names: Any) -> None:
        issued = self.site.authority.issue(**names)
        self.site.replace(f"{name}.key", issued.key_pem)
        self.site.replace(f"{name}.pem", issued.chain_pem)

    def _trust(self, *authorities: Authority) -> None:
        self.site.replace("ca.pem", b"".join(one.certificate_pem for one in authorities))
        for gateway in self.gateways:
            gateway.reloaded()


@pytest.mark.soak
@pytest.mark.timeout(3600 if LONG else 120)
def test_everything_goes_and_comes_back(own_site: Site) -> None:
    load = Load()
    with ExitStack() as stack:
        stage = Stage(own_site, stack)
        stack.callback(load.stop)
        begun = time.monotonic()
        load.start(stage.clients)
        for _ in range(ROUNDS):
            for node in stage.nodes:
                node.die()
                load.until(READS)
                node.come_back()
            for number in range(2):
                stage.drain(number)
            stage.until(reached=True)
            stage.store.kill()
            stage.until(reached=False)
            load.until(READS)
            stage.store.start()
            stage.until(reached=True)
            stage.rotate()
            load.until(READS)
        load.stop()
        allowed = BURST + RATE * (time.monotonic() - begun)
        for gateway in stage.gateways:
            stage.records += gateway.stop()
    seen, deaths = load.seen, len(stage.nodes) * ROUNDS
    admitted, refused = seen.pop("metered POST 200"), seen.pop("metered POST 429")
    assert 0.9 * min(allowed, admitted + refused) <= admitted <= 1.1 * allowed
    calls = (LIST[0], UPSERT[0])
    lost = ["PUT 502", *(f"{one} {code}" for one in calls for code in LOST)]
    assert seen.keys() <= {READS, "PUT 200", *(f"{one} OK" for one in calls), *lost}, "no read failed"
    for outcome in lost:
        assert seen[outcome] <= len(BALANCERS) * deaths, "only those in flight at a node that died, over gRPC reads too"
    lines = Counter(record["tracing_id"] for record in stage.records if "tracing_id" in record)
    asked = Counter(stage.callers.asked)
    assert not lines - asked, "no request has two lines"
    assert (asked - lines).keys() <= stage.callers.lost, "each request that was read has one line"
