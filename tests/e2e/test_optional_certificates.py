"""Where certificates are optional an API key stands alone; beside a certificate it narrows, and never widens."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from support.gateway import Gateway
from support.operator_tools import curl
from support.raw_request import Client, Fields, Response, alert, request
from support.site import CLIENTS, Site
from support.upstream import ScriptedUpstream

from tlsproxy.tls.pki import Authority

KEYS = {"api_key": "manage-k3y", "alt_api_key": "alternative-k3y", "read_only_api_key": "reading-k3y"}
READ = ("GET", "/collections/docs")
WRITE = ("DELETE", "/collections/docs")
MUST = "Must provide an API key or an Authorization bearer token"
INVALID = "Invalid API key or JWT"
NEEDS_MANAGE = "Forbidden: Global manage access is required"


@pytest.fixture(scope="module")
def gateway(site: Site, shared_upstream: ScriptedUpstream) -> Iterator[Gateway]:
    service = {"verify_https_client_certificate": False, **KEYS}
    with Gateway(site.write_config(shared_upstream.url, service=service)) as running:
        yield running


def bare(response: Response, status: int, text: str) -> bool:
    """As Qdrant's authentication layer answers: the text, and no word of what it is."""
    return (response.status, response.body.decode()) == (status, text) and "content-type" not in response.fields


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ([], MUST),
        ([("authorization", "Basic bWFuYWdlLWszeQ==")], MUST),
        ([("authorization", "bearer manage-k3y")], MUST),
        ([("cookie", "api-key=manage-k3y"), ("x-api-key", "manage-k3y")], MUST),
        ([("api-key", "wrong")], INVALID),
        ([("api-key", "")], INVALID),
        ([("api-key", "manage-k3")], INVALID),
        ([("api-key", "manage-k3yy")], INVALID),
        ([("authorization", "Bearer wrong")], INVALID),
        ([("authorization", "Bearer  manage-k3y")], INVALID),
        ([("api-key", "wrong"), ("authorization", "Bearer manage-k3y")], INVALID),
        ([("api_key", "manage-k3y")], MUST),
    ],
)
def test_refused_as_qdrant_does(
    site: Site, gateway: Gateway, shared_upstream: ScriptedUpstream, fields: Fields, text: str
) -> None:
    before = len(shared_upstream.requests)
    with Client(gateway, site.client(None)) as client:
        for target in ("/collections", "/no/such/route", "/collections?api-key=manage-k3y"):
            assert bare(client.ask("GET", target, fields), 401, text)
            record = gateway.audited(status=401)
            assert record["auth_type"] == "None"
            assert record["error"] == f"Unauthorized: {text}"
    assert len(shared_upstream.requests) == before


@pytest.mark.parametrize("name", KEYS)
@pytest.mark.parametrize("form", ["api-key: {}", "API-Key:{}", "Authorization: Bearer {}"])
def test_a_key_alone(site: Site, gateway: Gateway, shared_upstream: ScriptedUpstream, name: str, form: str) -> None:
    field, _, value = form.format(KEYS[name]).partition(":")
    before = len(shared_upstream.requests)
    with Client(gateway, site.client(None)) as client:
        assert client.ask(*READ, [(field, value)]).status == 200
        assert gateway.audited(status=200)["auth_type"] == "ApiKey"
        response = client.ask(*WRITE, [(field, value)])
    if name == "read_only_api_key":
        assert response.status == 403
        assert response.json["status"]["error"] == NEEDS_MANAGE
    else:
        assert response.status == 200
    arrived = shared_upstream.requests[before:]
    assert len(arrived) == 1 + (response.status == 200)
    assert not any(KEYS[name].encode() in one.head for one in arrived)


@pytest.mark.parametrize(
    ("client", "key", "reads", "writes"),
    [
        ("admin", None, 200, 200),
        ("admin", "manage-k3y", 200, 200),
        ("admin", "reading-k3y", 200, 403),
        ("admin", "wrong", 401, 401),
        ("search", "manage-k3y", 200, 403),
        ("search", "reading-k3y", 200, 403),
        ("ingest", "manage-k3y", 200, 403),
        ("stranger", "manage-k3y", 403, 403),
        ("stranger", "wrong", 403, 403),
    ],
)
def test_a_key_beside_a_certificate(
    site: Site, gateway: Gateway, client: str, key: str | None, reads: int, writes: int
) -> None:
    fields = [("api-key", key)] if key is not None else []
    with Client(gateway, site.client(client)) as connection:
        assert connection.ask(*READ, fields).status == reads
        assert connection.ask(*WRITE, fields).status == writes


def test_a_key_narrows_a_collection_role(site: Site, gateway: Gateway) -> None:
    point = b'{"points":[]}'
    with Client(gateway, site.client("ingest")) as connection:
        assert connection.ask("PUT", "/collections/docs/points", (), point).status == 200
        refused = connection.ask("PUT", "/collections/docs/points", [("api-key", "reading-k3y")], point)
        assert refused.status == 403
        assert refused.json["status"]["error"] == NEEDS_MANAGE
        assert connection.ask("GET", "/collections/other", [("api-key", "manage-k3y")]).status == 403


@pytest.mark.parametrize(
    "fields",
    [
        [("api-key", "manage-k3y"), ("api-key", "wrong")],
        [("api-key", "wrong"), ("API-KEY", "manage-k3y")],
        [("api-key", "manage-k3y"), ("api-key", "manage-k3y")],
        [("authorization", "Bearer wrong"), ("authorization", "Bearer manage-k3y")],
    ],
)
def test_two_of_one_kind_are_refused(
    site: Site, gateway: Gateway, shared_upstream: ScriptedUpstream, fields: Fields
) -> None:
    before = len(shared_upstream.requests)
    with Client(gateway, site.client(None)) as client:
        assert client.ask(*READ, fields).status == 400
    assert len(shared_upstream.requests) == before


def test_a_certificate_that_is_sent_is_verified(site: Site, gateway: Gateway) -> None:
    site.issue("foreign", authority=Authority.create("another CA"), client=True, **CLIENTS["admin"])
    assert alert(gateway, site.client("foreign")) == "TLSV1_ALERT_UNKNOWN_CA"
    assert gateway.audited(event="handshake")["reason"] == "unknown_ca"


def test_health_and_version_need_nobody(site: Site, gateway: Gateway) -> None:
    with Client(gateway, site.client(None)) as client:
        assert [client.ask("GET", path).status for path in ("/", "/healthz", "/livez", "/readyz")] == [200] * 4


def test_curl(site: Site, gateway: Gateway) -> None:
    assert curl(gateway, site, None, "/collections") == (0, 401, MUST)
    assert curl(gateway, site, None, "/collections", "-H", "api-key: nope") == (0, 401, INVALID)
    assert curl(gateway, site, None, "/collections", "--oauth2-bearer", "reading-k3y")[1] == 200


def test_without_a_key_nobody_comes_in_without_a_certificate(site: Site, shared_upstream: ScriptedUpstream) -> None:
    config = site.write_config(shared_upstream.url, service={"verify_https_client_certificate": False})
    with Gateway(config) as open_gateway, Client(open_gateway, site.client(None)) as client:
        for fields in ((), [("authorization", "Bearer ")]):
            assert bare(client.send(request(*READ, list(fields))), 401, MUST)
        for field in (("api-key", ""), ("api-key", "anything"), ("authorization", "Bearer x")):
            assert bare(client.send(request(*READ, [field])), 401, INVALID)
