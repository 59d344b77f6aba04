"""TLS to the upstream: REST, gRPC and mode tcp, with a client certificate that is renewed while requests run."""

from __future__ import annotations

import json
import queue
import re
import ssl
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
import yaml
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID
from support.certificates import certified
from support.gateway import DEADLINE, Gateway
from support.grpc_channels import call, channel
from support.grpc_upstream import GrpcUpstream, echoing, replying
from support.h2_upstream import H2Upstream
from support.raw_connection import GET, connected
from support.site import Site
from support.tls_front import TlsFront
from support.tls_server import server_context
from support.upstream import QDRANT, Connection, Received, ScriptedUpstream, plain

from tlsproxy.tls.client_context import spki_sha256
from tlsproxy.tls.pki import Authority

LIST = "/qdrant.Collections/List"
SPIFFE = "spiffe://example.org/qdrant"


class Bench:
    """A site whose upstreams are reached over TLS alone. ``authority`` issues both sides of it."""

    def __init__(self, directory: Path, closing: ExitStack, workers: int) -> None:
        self.site = Site(directory)
        self.authority = Authority.create("upstream CA")
        self.site.write("up-ca.pem", self.authority.certificate_pem)
        self.serial = self.renew()
        self.upstream = closing.enter_context(ScriptedUpstream(plain(QDRANT)))
        self.grpc_upstream = closing.enter_context(GrpcUpstream())
        self.rest = closing.enter_context(TlsFront(self.server(), self.upstream.bound_port))
        self.grpc = closing.enter_context(TlsFront(self.server(alpn=("h2",)), self.grpc_upstream.port))
        self.tcp = closing.enter_context(TlsFront(self.server(), self.upstream.bound_port))
        self.tls = {"ca_cert": "up-ca.pem", "cert": "up.pem", "key": "up.key"}
        listener = {"port": 0, "mode": "tcp", "upstream": f"127.0.0.1:{self.tcp.port}", "allow": ["admin"]}
        self.config = self.site.write_config(
            self.rest.url,
            grpc=self.grpc.url,
            upstream={"rest": self.rest.url, "grpc": self.grpc.url, "tls": self.tls},
            listeners=[{**listener, "upstream_tls": {**self.tls, "min_version": "1.3"}}],
            workers=workers,
        )
        self.gateway = closing.enter_context(Gateway(self.config))

    def server(self, alpn: tuple[str, ...] = (), **names: Any) -> ssl.SSLContext:
        issued = self.authority.issue(**{"ips": ["127.0.0.1"], "uris": [SPIFFE], "server": True, **names})
        return server_context(self.site.directory, issued, self.authority, alpn)

    def renew(self) -> int:
        """Replaces the client certificate, first the one file and then the other."""
        issued = self.authority.issue(common_name="gateway", client=True)
        self.site.replace("up.pem", issued.chain_pem)
        self.site.replace("up.key", issued.key_pem)
        return issued.serial

    def trust(self, **tls: Any) -> None:
        """Edits `upstream.tls`, and waits until that is in force."""
        self.use(rest=self.rest.url, grpc=self.grpc.url, tls=self.tls | tls)

    def use(self, **upstream: Any) -> None:
        config = yaml.safe_load(self.config.read_text())
        self.site.replace(self.config.name, yaml.dump(config | {"upstream": {"tls": self.tls} | upstream}).encode())
        self.reload()

    def reload(self) -> None:
        code, said = self.gateway.ask_admin("/reload", "POST")
        assert code == 200, said

    def ready(self) -> dict[str, Any]:
        return dict(json.loads(self.gateway.ask_admin("/readyz")[1]))


@pytest.fixture(scope="module", params=[1, 2], ids=["alone", "workers"])
def bench(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Bench]:
    with ExitStack() as closing:
        yield Bench(tmp_path_factory.mktemp("upstream-tls"), closing, request.param)


def test_requests_calls_and_bytes_go_over_tls(bench: Bench) -> None:
    client = bench.site.client()
    with httpx.Client(verify=client) as http:
        assert http.get(bench.gateway.url("/")).json()["title"].startswith("qdrant")
    with channel(bench.gateway, bench.site) as opened:
        assert call(opened, LIST).code is grpc.StatusCode.OK
    with bench.gateway.connect(client, port=bench.gateway.ports["TCP"][0]) as sock:
        sock.sendall(b"GET / HTTP/1.1\r\nhost: h\r\n\r\n")
        assert sock.recv(65536).startswith(b"HTTP/1.1 200 OK")
    for front in (bench.rest, bench.grpc, bench.tcp):
        front.wait(bench.serial)
    assert bench.ready()["ready"]
    series = re.compile(r'handshakes_negotiated_total\{.*side="upstream",version="([^"]*)"\} (.*)')
    counted = series.findall(bench.gateway.ask_admin("/metrics")[1])
    assert [(version, float(number) >= 3) for version, number in counted] == [("TLSv1.3", True)]


def test_a_call_names_the_scheme_of_its_node(bench: Bench) -> None:
    """Whichever node stands first, and also where there is one alone."""
    with H2Upstream() as clear, H2Upstream() as secret:
        with TlsFront(bench.server(alpn=("h2",)), secret.bound_port) as front:
            nodes = [
                {"name": name, "rest": bench.rest.url, "grpc": url}
                for name, url in (("clear", clear.url), ("secret", front.url))
            ]
            for several in (nodes, nodes[::-1], nodes[1:]):
                bench.use(nodes=several, check_interval=0)
                for _ in several:
                    with channel(bench.gateway, bench.site) as opened:
                        assert call(opened, LIST).code is grpc.StatusCode.OK
        for upstream, scheme, authority in ((clear, "http", clear.url), (secret, "https", front.url)):
            said = {
                tuple(dict(stream.fields)[name] for name in (":scheme", ":authority")) for stream in upstream.streams
            }
            assert said == {(scheme, authority.partition("//")[2])}
    bench.trust()


@contextmanager
def load(bench: Bench) -> Iterator[None]:
    """Reads over REST and gRPC meanwhile, of which none fails, and one TCP connection that lasts."""
    stop = threading.Event()
    failures: list[object] = []
    done: list[object] = []

    def ask_rest() -> None:
        with httpx.Client(verify=bench.site.client(), timeout=DEADLINE) as http:
            while not stop.is_set():
                response = http.get(bench.gateway.url("/collections"))
                (done if response.status_code == 200 else failures).append(response)

    def ask_grpc() -> None:
        with channel(bench.gateway, bench.site) as opened:
            while not stop.is_set():
                answered = call(opened, LIST)
                (done if answered.code is grpc.StatusCode.OK else failures).append(answered)

    with bench.gateway.connect(bench.site.client(), port=bench.gateway.ports["TCP"][0]) as tunnel:
        assert ask(tunnel).startswith(b"HTTP/1.1 200")
        threads = [threading.Thread(target=each) for each in (ask_rest, ask_grpc, ask_rest)]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            stop.set()
            for thread in threads:
                thread.join(DEADLINE)
        assert ask(tunnel).startswith(b"HTTP/1.1 200")
    assert not failures
    assert len(done) > 10


def test_a_renewed_client_certificate_loses_no_request(bench: Bench) -> None:
    with load(bench):
        for _ in range(2):
            bench.serial = bench.renew()
            bench.reload()
            bench.rest.wait(bench.serial)
    # The connections by the former certificate are gone where nothing runs on them.
    with channel(bench.gateway, bench.site) as opened:
        assert call(opened, LIST).code is grpc.StatusCode.OK
    bench.grpc.wait(bench.serial)


def test_all_certificates_of_several_nodes_change_without_a_lost_request(bench: Bench) -> None:
    new = Authority.create("new CA")

    def by_new(*alpn: str) -> ssl.SSLContext:
        issued = new.issue(ips=["127.0.0.1"], uris=[SPIFFE], server=True)
        return server_context(bench.site.directory, issued, bench.authority, alpn)

    with (
        TlsFront(bench.server(), bench.upstream.bound_port) as rest,
        TlsFront(bench.server(alpn=("h2",)), bench.grpc_upstream.port) as calls,
    ):
        fronts = {bench.rest: (), rest: (), bench.grpc: ("h2",), calls: ("h2",)}
        nodes = [
            {"name": name, "rest": one.url, "grpc": other.url}
            for name, one, other in (("a", bench.rest, bench.grpc), ("b", rest, calls))
        ]
        with load(bench):
            bench.use(nodes=nodes)
            bench.site.replace("up-ca.pem", bench.authority.certificate_pem + new.certificate_pem)
            bench.reload()
            for front, alpn in fronts.items():
                front.present(by_new(*alpn))
            bench.serial = bench.renew()  # the tunnel's upstream is as it was
            bench.reload()
            for front in (bench.rest, rest, bench.grpc):
                front.wait(bench.serial)
        # Only now the former CA goes, which the tunnel's upstream has.
        bench.site.replace("up-ca.pem", new.certificate_pem)
        bench.reload()
        with httpx.Client(verify=bench.site.client()) as http:
            assert [http.get(bench.gateway.url("/collections")).status_code for _ in range(4)] == [200] * 4
        bench.site.replace("up-ca.pem", bench.authority.certificate_pem)
        bench.rest.present(bench.server())
        bench.grpc.present(bench.server(alpn=("h2",)))
        bench.trust()


def ask(sock: ssl.SSLSocket) -> bytes:
    sock.sendall(GET)
    return sock.recv(65536)


def test_connections_stay_as_long_as_their_server_is_trusted(bench: Bench) -> None:
    entered, go_on = threading.Event(), threading.Event()

    def slow(connection: Connection, request: Received) -> None:
        entered.set()
        assert go_on.wait(DEADLINE)
        plain()(connection, request)

    client, own = bench.site.client(), bench.authority.certificate_pem
    messages: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
    bench.grpc_upstream.answer = echoing
    with ExitStack() as closing:
        raw = closing.enter_context(connected(bench.gateway, client))
        tunnel = closing.enter_context(bench.gateway.connect(client, port=bench.gateway.ports["TCP"][0]))
        opened = closing.enter_context(channel(bench.gateway, bench.site))
        stream = iter(opened.stream_stream(LIST)(iter(messages.get, None), timeout=DEADLINE))
        messages.put(b"before")
        assert next(stream) == b"before"
        assert ask(tunnel).startswith(b"HTTP/1.1 200")
        dialled = len(bench.tcp.serials)

        # One CA more, another client certificate.
        bench.site.replace("up-ca.pem", own + Authority.create("next CA").certificate_pem)
        bench.renew()
        bench.reload()
        messages.put(b"between")
        assert next(stream) == b"between"
        assert ask(tunnel).startswith(b"HTTP/1.1 200")
        assert len(bench.tcp.serials) == dialled

        # The server's CA is gone: what is under way ends as after a move of the upstream, and nothing is begun.
        bench.upstream.answer = slow
        raw.send(GET)
        assert entered.wait(DEADLINE)
        bench.site.replace("up-ca.pem", Authority.create("other CA").certificate_pem)
        bench.reload()
        go_on.set()
        assert raw.response().status == 200
        raw.send(GET)
        assert raw.response().status == 502
        messages.put(b"after")
        assert next(stream) == b"after"
        assert call(opened, LIST, b"new").code is grpc.StatusCode.UNAVAILABLE
        messages.put(None)
        assert list(stream) == []
        assert tunnel.recv(100) == b""
        assert bench.gateway.audited(event="tcp_close", reason="upstream_changed")
    bench.upstream.answer, bench.grpc_upstream.answer = plain(), replying(b"")
    bench.site.replace("up-ca.pem", own)
    bench.reload()


def test_half_a_pair_is_no_renewal(bench: Bench) -> None:
    former = bench.site.directory.joinpath("up.key").read_bytes()
    bench.site.replace("up.key", bench.authority.issue(client=True).key_pem)
    bench.gateway.hang_up()
    record = bench.gateway.reloaded("failed")
    assert "up.key: does not belong to the first certificate of" in record["error"]
    with httpx.Client(verify=bench.site.client()) as http:
        assert http.get(bench.gateway.url("/collections")).status_code == 200
    bench.site.replace("up.key", former)
    bench.reload()


WRONG: dict[str, dict[str, Any]] = {
    "name_mismatch": {"server_name": "other.internal"},
    "spiffe_mismatch": {"spiffe_id": f"{SPIFFE}/other"},
    "pin_mismatch": {"spki_sha256": ["00" * 32]},
    "unknown_ca": {"ca_cert": "ca.pem"},
}


def test_another_server_gets_no_request_and_operators_are_told_why(bench: Bench) -> None:
    asked = len(bench.upstream.requests)
    with httpx.Client(verify=bench.site.client()) as http:
        for reason, tls in WRONG.items():
            bench.trust(**tls)
            response = http.get(bench.gateway.url("/collections"))
            assert response.status_code == 502, reason
            assert "securely" in response.text
            assert bench.gateway.audited(status=502)["reason"] == "upstream_tls"
            assert f"({reason})" in bench.ready()["parts"]["upstream_rest"], bench.ready()
            assert (
                f'tlsproxy_upstream_tls_failures_total{{reason="{reason}"}}' in bench.gateway.ask_admin("/metrics")[1]
            )
        assert [one.line for one in bench.upstream.requests[asked:] if "/collections" in one.line] == []
        bench.trust()
        assert http.get(bench.gateway.url("/collections")).status_code == 200


def test_the_server_may_be_known_by_spiffe_id_or_key(bench: Bench) -> None:
    with httpx.Client(verify=bench.site.client()) as http:
        issued = bench.authority.issue(dns=["any.internal"], uris=[SPIFFE], server=True)
        bench.rest.present(server_context(bench.site.directory, issued, bench.authority))
        pin = spki_sha256(x509.load_pem_x509_certificate(issued.certificate_pem)).hex()
        for known in ({"spiffe_id": SPIFFE}, {"spki_sha256": [pin]}, {"server_name": "any.internal"}):
            bench.trust(**known)
            assert http.get(bench.gateway.url("/collections")).status_code == 200
        bench.rest.present(bench.server())
        bench.trust()


def test_the_servers_ca_may_be_for_servers_alone(bench: Bench) -> None:
    """As intermediates of public CAs are."""
    made = {
        name: certified(bench.authority, bench.authority, extensions=[x509.ExtendedKeyUsage([purpose])])
        for name, purpose in (("s", ExtendedKeyUsageOID.SERVER_AUTH), ("c", ExtendedKeyUsageOID.CLIENT_AUTH))
    }
    for name, authority in made.items():
        bench.site.write(f"{name}.pem", authority.certificate_pem)
    with httpx.Client(verify=bench.site.client()) as http:
        bench.trust(ca_cert="s.pem")
        assert http.get(bench.gateway.url("/collections")).status_code == 200
        bench.site.edit_config(bench.config, upstream={"tls": bench.tls | {"ca_cert": "c.pem"}})
        assert (
            "may not vouch for servers: its extended key usage lacks serverAuth"
            in bench.gateway.ask_admin("/reload", "POST")[1]
        )
        assert http.get(bench.gateway.url("/collections")).status_code == 200
    bench.trust()


def test_lifetimes_of_both_are_reported(bench: Bench) -> None:
    status = json.loads(bench.gateway.ask_admin("/status")[1])
    kinds = {one["kind"]: one for one in status["lifetimes"]}
    assert kinds["client"]["source"].endswith("up.pem")
    assert kinds["server_ca"]["name"] == "CN=upstream CA"
    assert 'kind="client"' in bench.gateway.ask_admin("/metrics")[1]
