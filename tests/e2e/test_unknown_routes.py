"""What Qdrant has no route for does not exist: 404 without a body, and before that the question who asks."""

from __future__ import annotations

import pytest
from support.gateway import Gateway
from support.operator_tools import curl
from support.raw_request import Client
from support.site import Site
from support.upstream import ScriptedUpstream

UNKNOWN = [
    ("GET", "/nothing"),
    ("GET", "/collections/docs/nothing"),
    ("GET", "/collections/docs/points"),  # POST or PUT
    ("POST", "/collections/docs"),
    ("PUT", "/collections"),
    ("DELETE", "/collections"),
    ("POST", "/healthz"),
    ("HEAD", "/collections"),  # Qdrant does not answer HEAD where it answers GET
    ("HEAD", "/healthz"),
    ("TRACE", "/collections"),
    ("OPTIONS", "/collections"),
    ("PATCH", "/collections/docs/points"),
    ("get", "/collections"),  # methods are case-sensitive (RFC 9110 §9.1)
    ("Post", "/collections/docs/points/scroll"),
    ("PROPFIND", "/collections"),
    ("GET", "/Collections"),
    ("GET", "/collections/docs/Points/1"),
    ("GET", "/healthz/x"),
    ("GET", "/metrics/x"),
    ("POST", "/collections/docs/points/search/matrix"),
]


def test_404_for_who_has_a_role(site: Site, shared_gateway: Gateway, shared_upstream: ScriptedUpstream) -> None:
    for role in ("admin", "search", "ingest"):
        with Client(shared_gateway, site.client(role)) as client:
            for method, target in UNKNOWN:
                response = client.ask(method, target)
                assert (response.status, response.body) == (404, b""), (method, target)
                assert "content-type" not in response.fields
                record = shared_gateway.audited(status=404)
                assert (record["result"], record["reason"], record["api"]) == ("denied", "unknown_operation", target)
                assert "method" not in record
    assert not shared_upstream.requests


def test_403_for_who_has_none(site: Site, shared_gateway: Gateway, shared_upstream: ScriptedUpstream) -> None:
    with Client(shared_gateway, site.client("stranger")) as client:
        for method, target in UNKNOWN:
            assert client.ask(method, target).status == 403, (method, target)
    assert not shared_upstream.requests


def test_401_for_who_is_nobody(site: Site, shared_upstream: ScriptedUpstream) -> None:
    service = {"verify_https_client_certificate": False, "api_key": "k3y"}
    config = site.write_config(shared_upstream.url, service=service)
    with Gateway(config) as gateway, Client(gateway, site.client(None)) as client:
        for method, target in UNKNOWN:
            assert client.ask(method, target).status == 401, (method, target)
            assert client.ask(method, target, [("api-key", "k3y")]).status == 404, (method, target)
    assert not shared_upstream.requests


@pytest.mark.parametrize("target", ["*", "localhost:443", "http://localhost/collections", "//", "/?"])
def test_targets_that_are_no_path(
    site: Site, shared_gateway: Gateway, shared_upstream: ScriptedUpstream, target: str
) -> None:
    """Only origin-form is served; an absolute-form target could name another host than Host does."""
    before = len(shared_upstream.requests)
    with Client(shared_gateway, site.client("admin")) as client:
        response = client.ask("GET", target)
    if target in {"//", "/?"}:
        assert response.status == 200
        assert shared_upstream.requests[-1].line == "GET / HTTP/1.1"
    else:
        assert response.status == 400
        assert len(shared_upstream.requests) == before


def test_connect_and_upgrade_are_not_offered(
    site: Site, shared_gateway: Gateway, shared_upstream: ScriptedUpstream
) -> None:
    before = len(shared_upstream.requests)
    with Client(shared_gateway, site.client("admin")) as client:
        assert client.ask("CONNECT", "/collections").status == 400
        assert client.ask("GET", "/collections", [("connection", "upgrade"), ("upgrade", "h2c")]).status == 400
        assert client.ask("GET", "/collections", [("upgrade", "websocket")]).status == 400
    assert len(shared_upstream.requests) == before


def test_curl_head(site: Site, shared_gateway: Gateway) -> None:
    assert curl(shared_gateway, site, "admin", "/collections", "--head")[:2] == (0, 404)
