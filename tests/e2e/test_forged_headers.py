"""Who a client is, its connection says: no header that claims it gets through, in any guise."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest
from support.forged_headers import FORGED, GUISES, IDENTITY
from support.gateway import Gateway
from support.raw_request import Client, request
from support.site import Site
from support.upstream import ScriptedUpstream

UPSTREAM_KEY = "upstr3am-key"


@pytest.fixture(scope="module")
def gateway(site: Site, shared_upstream: ScriptedUpstream) -> Iterator[Gateway]:
    config = site.write_config(shared_upstream.url, upstream={"api_key": UPSTREAM_KEY}, service={"api_key": FORGED})
    with Gateway(config) as running:
        yield running


def ours(shared_upstream: ScriptedUpstream) -> dict[str, list[str]]:
    """The fields of the last request that arrived, each with all its values; what is ours must be as it should."""
    head = shared_upstream.requests[-1].head
    assert FORGED.encode() not in head
    fields: dict[str, list[str]] = {}
    for line in head.split(b"\r\n")[1:-2]:
        name, _, value = line.decode().partition(": ")
        fields.setdefault(name, []).append(value)
    assert fields["api-key"] == [UPSTREAM_KEY]
    assert fields["x-forwarded-for"] == ["127.0.0.1"]
    assert fields["x-forwarded-proto"] == ["https"]
    assert fields["x-forwarded-host"] == ["localhost"]
    assert fields["host"] == [shared_upstream.url.removeprefix("http://")]
    assert "authorization" not in fields
    return fields


@pytest.mark.parametrize("name", IDENTITY)
def test_in_every_case_and_alias(site: Site, gateway: Gateway, shared_upstream: ScriptedUpstream, name: str) -> None:
    with Client(gateway, site.client("admin")) as client:
        for guise in GUISES:
            before = len(shared_upstream.requests)
            assert client.ask(fields=[(guise(name), FORGED), ("x-harmless", "kept")]).status == 200
            assert len(shared_upstream.requests) == before + 1
            assert ours(shared_upstream)["x-harmless"] == ["kept"]


def test_all_of_them_at_once(site: Site, gateway: Gateway, shared_upstream: ScriptedUpstream) -> None:
    names = {guise(name) for name, guise in itertools.product(IDENTITY, GUISES[3:])}
    with Client(gateway, site.client("admin")) as client:
        assert client.ask(fields=[(name, FORGED) for name in sorted(names)]).status == 200
    ours(shared_upstream)


@pytest.mark.parametrize("name", IDENTITY)
def test_given_twice(site: Site, gateway: Gateway, shared_upstream: ScriptedUpstream, name: str) -> None:
    """Where a proxy and a server could each take another one, neither is passed on."""
    before = len(shared_upstream.requests)
    with Client(gateway, site.client("admin")) as client:
        response = client.ask(fields=[(name, "first"), (name.upper(), FORGED)])
    if name in {"api-key", "authorization"}:
        assert response.status == 400
        assert len(shared_upstream.requests) == before
    else:
        assert response.status == 200
        ours(shared_upstream)


@pytest.mark.parametrize("option", ["x-forwarded-for", "api-key", "x-tlsproxy-role", "x-harmless", "x-forwarded-proto"])
def test_named_by_connection(site: Site, gateway: Gateway, shared_upstream: ScriptedUpstream, option: str) -> None:
    """Naming a header hop-by-hop must not take away the one that we set."""
    with Client(gateway, site.client("admin")) as client:
        assert client.ask(fields=[("connection", f"keep-alive, {option}"), (option, FORGED)]).status == 200
    fields = ours(shared_upstream)
    assert "connection" not in fields
    assert "x-harmless" not in fields


@pytest.mark.parametrize("option", ["host", "content-length", "content-type", "content-encoding", "expect"])
def test_connection_cannot_take_away_what_frames_a_request(
    site: Site, gateway: Gateway, shared_upstream: ScriptedUpstream, option: str
) -> None:
    before = len(shared_upstream.requests)
    with Client(gateway, site.client("admin")) as client:
        assert client.ask("POST", "/collections/docs/points/scroll", [("connection", option)], b"{}").status == 400
    assert len(shared_upstream.requests) == before


@pytest.mark.parametrize("name", [*IDENTITY, "host", "content-length", "transfer-encoding", "x-harmless"])
def test_in_trailers(site: Site, gateway: Gateway, shared_upstream: ScriptedUpstream, name: str) -> None:
    head = request("POST", "/collections/docs/points/scroll", [("transfer-encoding", "chunked"), ("trailer", name)])
    before = len(shared_upstream.requests)
    with Client(gateway, site.client("admin")) as client:
        response = client.send(head + f"2\r\n{{}}\r\n0\r\n{name}: {FORGED}\r\n\r\n".encode(), "POST")
    if response.status == 200:
        assert shared_upstream.requests[-1].body == b"{}"
        assert "trailer" not in ours(shared_upstream)
    else:
        assert response.status == 400
    assert not any(FORGED.encode() in one.head + one.body for one in shared_upstream.requests[before:])


@pytest.mark.parametrize("field", [" api-key", "api-key ", "\tauthorization", "x-forwarded-for\t", "api\x00-key"])
def test_with_white_space_or_worse_in_the_name(
    site: Site, gateway: Gateway, shared_upstream: ScriptedUpstream, field: str
) -> None:
    before = len(shared_upstream.requests)
    with Client(gateway, site.client("admin")) as client:
        assert client.ask(fields=[("x-first", "1"), (field, FORGED)]).status == 400
    assert len(shared_upstream.requests) == before


def test_what_qdrant_is_meant_to_see_passes(site: Site, gateway: Gateway, shared_upstream: ScriptedUpstream) -> None:
    """The keys of inference providers end in `-api-key`, and are none of ours."""
    kept = {
        "openai-api-key": "sk-1",
        "x-qdrant-route-affinity": "r",
        "x-tracing-id": "id-1",
        "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        "accept-encoding": "gzip",
        "range": "bytes=0-1",
        "user-agent": "test",
    }
    with Client(gateway, site.client("admin")) as client:
        assert client.ask(fields=kept.items()).status == 200
    fields = ours(shared_upstream)
    assert {name: fields[name] for name in kept} == {name: [value] for name, value in kept.items()}


def test_no_key_is_sent_where_none_is_configured(
    site: Site, shared_gateway: Gateway, shared_upstream: ScriptedUpstream
) -> None:
    with Client(shared_gateway, site.client("admin")) as client:
        assert client.ask(fields=[("api_key", FORGED)]).status == 200
    assert "api-key" not in shared_upstream.requests[-1].fields


def test_a_method_override_overrides_nothing(site: Site, gateway: Gateway, shared_upstream: ScriptedUpstream) -> None:
    override = [("x-http-method-override", "DELETE"), ("x-method-override", "DELETE"), ("x-http-method", "DELETE")]
    with Client(gateway, site.client("search")) as client:
        assert client.ask("GET", "/collections/docs?_method=DELETE", override).status == 200
    assert shared_upstream.requests[-1].line.startswith("GET ")
