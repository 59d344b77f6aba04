"""`GET /_tlsproxy/whoami`: who the gateway thinks its caller is, what each credential gave, until when."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from support.gateway import Gateway
from support.raw_request import Client
from support.site import Site
from support.upstream import ScriptedUpstream

from tlsproxy.authz.tokens import mint

KEY = "manage-k3y"
WHOAMI = ("GET", "/_tlsproxy/whoami")


@pytest.fixture(scope="module")
def gateway(site: Site, shared_upstream: ScriptedUpstream) -> Iterator[Gateway]:
    service = {"verify_https_client_certificate": False, "api_key": KEY, "jwt_rbac": True}
    with Gateway(site.write_config(shared_upstream.url, service=service)) as running:
        yield running


def test_a_certificate(site: Site, gateway: Gateway, shared_upstream: ScriptedUpstream) -> None:
    with Client(gateway, site.client("ingest")) as connection:
        response = connection.ask(*WHOAMI)
        assert response.status == 200
        assert response.fields["content-type"] == "application/json"
        told = response.json
        assert connection.ask("GET", "/collections/docs").status == 200
    assert told["identity"]["subject"] == "CN=ingest-7"
    assert told["identity"]["serial"] == f"{site.serial('ingest'):x}"
    assert (told["rule"], told["role"], told["rights"]) == ("ingest-jobs", "ingest", ["docs rw"])
    assert told["credential"] is None
    assert told["expires"] == told["identity"]["not_after"]
    record = gateway.audited(method="whoami")
    assert (record["api"], record["status"], record["bytes_out"]) == (WHOAMI[1], 200, len(response.body))
    assert not any("whoami" in request.line for request in shared_upstream.requests)


def test_a_certificate_and_a_token(site: Site, gateway: Gateway) -> None:
    token = mint(KEY, {"access": "r", "subject": "alice", "exp": 4_000_000_000})
    with Client(gateway, site.client("admin")) as connection:
        told = connection.ask(*WHOAMI, [("api-key", token)]).json
    assert told["rights"] == ["m", "r"]
    assert told["certificate"] == {"role": "admin", "rights": "m"}
    credential = told["credential"]
    assert (credential["kind"], credential["name"], credential["subject"]) == ("Jwt", "api_key", "alice")
    assert credential["expires"] == "2096-10-02T07:07:11Z"
    assert token.rsplit(".")[1] not in str(told)


def test_a_key_alone(site: Site, gateway: Gateway) -> None:
    with Client(gateway, site.client(None)) as connection:
        told = connection.ask(*WHOAMI, [("api-key", KEY)]).json
    assert (told["identity"], told["rights"], told["expires"]) == (None, ["m"], None)
    assert KEY not in str(told)


def test_nobody_and_what_is_not_this_route(site: Site, gateway: Gateway, shared_upstream: ScriptedUpstream) -> None:
    before = len(shared_upstream.requests)
    with Client(gateway, site.client(None)) as connection:
        assert connection.ask(*WHOAMI).status == 401
        assert connection.ask(*WHOAMI, [("api-key", "wrong")]).status == 401
    with Client(gateway, site.client("stranger")) as connection:
        assert connection.ask(*WHOAMI).status == 403
    with Client(gateway, site.client("admin")) as connection:
        for method, path in (("POST", WHOAMI[1]), ("GET", "/_tlsproxy"), ("GET", "/_tlsproxy/whoami/x")):
            assert connection.ask(method, path).status == 404
    assert len(shared_upstream.requests) == before


def test_a_body_that_nobody_asked_for_does_not_become_a_request(site: Site, gateway: Gateway) -> None:
    with Client(gateway, site.client("admin")) as connection:
        assert connection.ask(*WHOAMI, (), b"GET /collections HTTP/1.1\r\nhost: h\r\n\r\n").status == 200
        assert connection.ask(*WHOAMI).json["role"] == "admin"
