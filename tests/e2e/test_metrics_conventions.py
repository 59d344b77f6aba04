"""`/metrics` of a gateway that has seen all kinds of traffic, under the eyes of Prometheus' own linter."""

from __future__ import annotations

import re
import socket
import subprocess
from collections.abc import Iterator

import pytest
from prometheus_client.parser import text_string_to_metric_families
from qdrant_client import grpc as pb
from support.documented import labels_of
from support.gateway import DEADLINE, Gateway
from support.grpc_channels import call, channel
from support.grpc_upstream import GrpcUpstream
from support.operator_tools import tool
from support.raw_request import Client, alert
from support.site import Site
from support.upstream import ScriptedUpstream

OTHER = pb.ScrollPoints(collection_name="other").SerializeToString()


@pytest.fixture(scope="module")
def exposition(site_of_all: Site) -> Iterator[str]:
    """After a request of each outcome, of each protocol, and reloads good and bad."""
    site = site_of_all
    with ScriptedUpstream() as upstream, GrpcUpstream() as grpc_upstream:
        tcp = {"port": 0, "mode": "tcp", "upstream": upstream.url.removeprefix("http://"), "allow": ["admin"]}
        config = site.write_config(
            upstream.url, grpc=grpc_upstream.url, listeners=[tcp], limits={"connections_per_address": 4}
        )
        with Gateway(config) as gateway:
            for name in ("admin", "ingest", "stranger"):
                with Client(gateway, site.client(name)) as client:
                    client.ask()
                    client.ask("GET", "/nothing")
                    client.ask("POST", "/collections/docs/points/query", (), b'{"lookup_from":{"collection":"x"}}')
                with Client(gateway, site.client(name)) as client:
                    client.send(b"NONSENSE\r\n\r\n")
                with channel(gateway, site, name) as opened:
                    call(opened, "/qdrant.Collections/List")
                    call(opened, "/qdrant.Points/Scroll", OTHER)
                    call(opened, "/qdrant.Nothing/At")
            with gateway.connect(site.client(), port=gateway.ports["TCP"][0]) as sock:
                sock.sendall(b"GET /collections HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\n")
                assert sock.recv(100)
            alert(gateway, site.client(None))
            held = [socket.create_connection(("127.0.0.1", gateway.port)) for _ in range(6)]
            gateway.audited(reason="address_limit")
            for one in held:
                one.close()
            site.replace("server.key", b"no key")
            gateway.reloaded("failed")
            site.issue("server", common_name="localhost", dns=["localhost"], ips=["127.0.0.1"], server=True)
            gateway.reloaded()
            upstream.answer = lambda connection, _: connection.sock.close()
            with Client(gateway, site.client()) as client:
                assert client.ask().status == 502
            yield gateway.ask_admin("/metrics")[1]


@pytest.fixture(scope="module")
def site_of_all(tmp_path_factory: pytest.TempPathFactory) -> Site:
    return Site(tmp_path_factory.mktemp("all"))


def test_promtool_has_nothing_to_say(exposition: str) -> None:
    done = subprocess.run(
        [tool("promtool"), "check", "metrics"],
        input=exposition,
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize(
    "series",
    [
        'tlsproxy_requests_total{operation="list_collections",outcome="allowed",role="admin"} 2.0',
        'tlsproxy_requests_total{operation="list_collections",outcome="failed",role="admin"} 1.0',
        'tlsproxy_requests_total{operation="scroll",outcome="denied",role="ingest"} 1.0',
        'tlsproxy_requests_total{operation="unreadable",outcome="denied",role=""} 1.0',
        'tlsproxy_decisions_total{reason="upstream_broken"}',
        'tlsproxy_request_duration_seconds_count{operation="list_collections"} 7.0',
        'tlsproxy_handshakes_total{outcome="no_certificate"} 1.0',
        'tlsproxy_connections_total{outcome="address_limit"}',
        'tlsproxy_reloads_total{result="failed",trigger="',
        "tlsproxy_reload_last_attempt_failed 0.0",
        "tlsproxy_generation 2.0",
        "tlsproxy_connections_limit 10000.0",
        "tlsproxy_upstream_connections_limit 256.0",
        "tlsproxy_audit_queue_limit 65536.0",
        'tlsproxy_upstream_connects_total{outcome="ok"}',
        "process_open_fds",
        "process_max_fds",
    ],
)
def test_the_linter_has_seen_it(exposition: str, series: str) -> None:
    assert [line for line in exposition.splitlines() if line.startswith(series)], exposition


def test_every_family_says_what_it_is(exposition: str) -> None:
    for family in text_string_to_metric_families(exposition):
        assert family.documentation, family.name
        assert family.type != "unknown", family.name
        assert family.name.startswith(("tlsproxy_", "process_")), family.name
        assert re.fullmatch(r"[a-z][a-z0-9_]*", family.name)


def test_every_label_is_described(exposition: str) -> None:
    """In docs/observability.md; `le` and `process` are of all histograms, and of all series of several workers."""
    for family in text_string_to_metric_families(exposition):
        labels = {label for sample in family.samples for label in sample.labels}
        if family.samples and family.name.startswith("tlsproxy_"):
            name = family.name + "_total" * (family.type == "counter")
            assert labels - {"le"} == labels_of(name), name
