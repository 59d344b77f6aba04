"""Allowed health checks and scrapes have no audit line, as in Qdrant, unless `audit.probes` asks for it; refused ones
always have.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from support.gateway import Gateway
from support.grpc_channels import call, channel
from support.grpc_upstream import GrpcUpstream, replying
from support.raw_request import Client, Response
from support.site import Site
from support.upstream import ScriptedUpstream, plain

REST = (
    "/",
    "/healthz",
    "/livez",
    "/readyz",
    "/metrics",
    "/telemetry",
    "/cluster/telemetry",
    "//metrics",
    "/healthz?a=1",
)
GRPC = ("/qdrant.Qdrant/HealthCheck", "/grpc.health.v1.Health/Check")


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Site:
    return Site(tmp_path_factory.mktemp("probes"))


@pytest.fixture(scope="module")
def gateway(own: Site, shared_upstream: ScriptedUpstream) -> Iterator[Gateway]:
    with GrpcUpstream(replying(b"")) as grpc:
        config = own.write_config(shared_upstream.url, grpc=grpc.url, admin={"listen": "127.0.0.1:0"})
        with Gateway(config) as running:
            yield running


def ask(gateway: Gateway, site: Site, target: str, client: str = "admin", method: str = "GET") -> Response:
    with Client(gateway, site.client(client)) as connection:
        return connection.ask(method, target)


def requests_until_mark(gateway: Gateway, site: Site) -> list[dict[str, Any]]:
    """Lines of requests since the last mark: those of one connection's process are in the order of their ends."""
    assert ask(gateway, site, "/collections/mark").status == 200
    before = len(gateway._audit.seen)
    gateway.audited(collection="mark")
    records = (json.loads(line) for line in gateway._audit.seen[before:-1])
    return [record for record in records if "event" not in record]


def test_what_is_allowed_has_no_line_and_is_counted(own: Site, gateway: Gateway) -> None:
    for target in REST:
        assert ask(gateway, own, target).status == 200
    with channel(gateway, own) as opened:
        for path in GRPC:
            call(opened, path)
    assert requests_until_mark(gateway, own) == []
    lines = gateway.ask_admin("/metrics")[1].splitlines()
    assert any(line.startswith("tlsproxy_requests_total") and 'operation="metrics"' in line for line in lines)


def test_what_is_refused_or_fails_has_a_line(own: Site, gateway: Gateway, shared_upstream: ScriptedUpstream) -> None:
    assert ask(gateway, own, "/metrics", "ingest").status == 403
    assert ask(gateway, own, "/telemetry", "stranger").status == 403
    assert ask(gateway, own, "/healthz", method="POST").status == 404
    assert ask(gateway, own, "/metrics/x").status == 404

    shared_upstream.answer = plain(b"no HTTP at all\r\n\r\n")
    try:
        assert ask(gateway, own, "/healthz").status == 502
    finally:
        shared_upstream.answer = plain()
    found = [(record["status"], record["reason"]) for record in requests_until_mark(gateway, own)]
    assert [status for status, _ in found] == [403, 403, 404, 404, 502]
    assert found[-1] == (502, "upstream_broken")


def test_a_log_on_standard_output_says_why_it_cannot_be_searched(own: Site, gateway: Gateway) -> None:
    with Client(gateway, own.client()) as connection:
        response = connection.ask("POST", "/audit/logs", (), b"{}")
    assert response.status == 400
    assert "audit.dir is '-'" in response.json["status"]["error"]
    assert "set audit.dir to a directory" in response.json["status"]["error"]


def test_probes_are_written_down_where_that_is_wanted(own: Site, gateway: Gateway) -> None:
    own.edit_config(gateway.config, audit={"probes": True})
    gateway.hang_up()
    gateway.reloaded()
    for target in REST:
        assert ask(gateway, own, target).status == 200
        assert gateway.audited(status=200)["api"] == "/" + target.strip("/").partition("?")[0]
    with channel(gateway, own) as opened:
        for path in GRPC:
            call(opened, path)
            assert gateway.audited(status=200)["api"] == path
