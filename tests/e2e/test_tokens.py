"""Tokens (JWT) as Qdrant takes them: what each gives, and every refusal to the byte."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest
from support.gateway import Gateway
from support.raw_request import Client, Response
from support.site import Site
from support.upstream import ScriptedUpstream, plain

from tlsproxy.authz.tokens import mint

KEY, ALT, READER = "manage-k3y", "alternative-k3y", "reading-k3y"
INVALID = "Invalid API key or JWT"
LIST = ("GET", "/collections")
READ = ("GET", "/collections/docs")
WRITE = ("POST", "/collections/docs/points/delete")
MANAGE = ("DELETE", "/collections/docs")
DOCS = {"collection": "docs", "access": "rw"}


@pytest.fixture(scope="module")
def gateway(site: Site, shared_upstream: ScriptedUpstream) -> Iterator[Gateway]:
    service = {
        "verify_https_client_certificate": False,
        "jwt_rbac": True,
        "api_key": KEY,
        "alt_api_key": ALT,
        "read_only_api_key": READER,
    }
    shared_upstream.answer = plain(b'HTTP/1.1 200 OK\r\ncontent-length: 13\r\n\r\n{"result":{}}')
    with Gateway(site.write_config(shared_upstream.url, service=service)) as running:
        yield running


def ask(
    gateway: Gateway, site: Site, token: str, what: tuple[str, str] = READ, *, client: str | None = None
) -> Response:
    with Client(gateway, site.client(client)) as connection:
        return connection.ask(*what, [("api-key", token)])


@pytest.mark.parametrize("key", [KEY, ALT])
@pytest.mark.parametrize(
    ("access", "allowed"),
    [
        ("m", {LIST, READ, WRITE, MANAGE}),
        ("r", {LIST, READ}),
        ([DOCS], {LIST, READ, WRITE}),
        ([DOCS | {"access": "prw"}], {LIST, READ, WRITE}),
        ([DOCS | {"access": "r"}], {LIST, READ}),
        ([DOCS | {"collection": "do*"}], {LIST, READ, WRITE}),
        ([DOCS | {"collection": "other"}], {LIST}),
        ([], set()),
        ({"collections": {"docs": ["read", "write"]}}, {LIST, READ, WRITE}),
    ],
)
def test_what_a_token_gives(site: Site, gateway: Gateway, key: str, access: Any, allowed: set[tuple[str, str]]) -> None:
    token = mint(key, {"access": access, "exp": int(time.time()) + 60, "subject": "alice"})
    with Client(gateway, site.client(None)) as connection:
        for what in (LIST, READ, WRITE, MANAGE):
            assert connection.ask(*what, [("authorization", f"Bearer {token}")]).status == (
                200 if what in allowed else 403
            )
            record = gateway.audited(auth_type="Jwt")
            assert record["subject"] == "alice"
            assert record["key"] == ("api_key" if key == KEY else "alt_api_key")
            assert record["result"] == ("ok" if what in allowed else "denied")
            assert token.rsplit(".", 1)[1] not in str(record)


def now(offset: int) -> int:
    return int(time.time()) + offset


@pytest.mark.parametrize(
    ("token", "status", "text"),
    [
        (lambda: mint(KEY, {"access": "r", "exp": now(-32)}), 403, "ExpiredSignature"),
        (lambda: mint("other", {"access": "m"}), 403, "InvalidSignature"),
        (lambda: mint(ALT, {"access": "r", "exp": now(-32)}), 403, "InvalidSignature"),
        (lambda: mint(READER, {"access": "r"}), 403, "InvalidSignature"),
        (lambda: "a.b.c", 401, INVALID),
        (lambda: "eyJhbGciOiJub25lIn0.eyJhY2Nlc3MiOiJtIn0.", 401, INVALID),
        (lambda: mint(KEY, {"access": "r"}) + "=", 401, INVALID),
        (lambda: mint(KEY, {"access": [DOCS, DOCS]}), 401, "access: Collection name should be unique"),
        (
            lambda: mint(KEY, {"access": [DOCS | {"payload": {"a": 1}}]}),
            401,
            "access: The 'payload' constraint is deprecated and should not be used",
        ),
    ],
)
def test_refused_as_qdrant_does(
    site: Site, gateway: Gateway, shared_upstream: ScriptedUpstream, token: Any, status: int, text: str
) -> None:
    before = len(shared_upstream.requests)
    response = ask(gateway, site, token())
    assert (response.status, response.body.decode()) == (status, text)
    assert "content-type" not in response.fields
    assert "www-authenticate" not in response.fields
    record = gateway.audited(status=status)
    assert (record["auth_type"], record["result"]) == ("None", "denied")
    assert record["error"] == f"{'Unauthorized' if status == 401 else 'Forbidden'}: {text}"
    assert len(shared_upstream.requests) == before


def test_within_the_leeway_a_token_counts(site: Site, gateway: Gateway) -> None:
    assert ask(gateway, site, mint(KEY, {"access": "r", "exp": now(-27)})).status == 200


def test_a_token_beside_a_certificate_only_narrows(site: Site, gateway: Gateway) -> None:
    manage, read = mint(KEY, {"access": "m"}), mint(KEY, {"access": "r"})
    docs = mint(KEY, {"access": [DOCS]})
    for client, token, what, status in (
        ("admin", manage, MANAGE, 200),
        ("admin", read, MANAGE, 403),
        ("admin", docs, LIST, 200),
        ("admin", docs, ("GET", "/cluster"), 403),
        ("admin", docs, WRITE, 200),
        ("search", manage, MANAGE, 403),
        ("search", docs, READ, 200),
        ("search", docs, WRITE, 403),
        ("ingest", read, READ, 200),
        ("ingest", read, WRITE, 403),
        ("ingest", manage, ("GET", "/collections/other"), 403),
        ("stranger", manage, READ, 403),
    ):
        assert ask(gateway, site, token, what, client=client).status == status, (client, token, what)
    record = gateway.audited(certificate_subject="CN=ingest-7", status=200)
    assert (record["auth_type"], record["role"], record["key"], record["key_rights"]) == (
        "Jwt", "ingest", "api_key", "r",
    )  # fmt: skip


def test_a_token_that_runs_out_on_an_open_connection(site: Site, gateway: Gateway) -> None:
    """What was decided once on the same head is not remembered beyond the token."""
    token = mint(KEY, {"access": "r", "exp": now(-29)})
    with Client(gateway, site.client(None)) as connection:
        seen = [connection.ask(*READ, [("api-key", token)]).status]
        end = time.monotonic() + 10
        while seen[-1] == 200 and time.monotonic() < end:
            seen.append(connection.ask(*READ, [("api-key", token)]).status)
    assert seen[-1] == 403


def test_tokens_are_wrong_keys_where_they_are_not_enabled(site: Site, shared_upstream: ScriptedUpstream) -> None:
    service = {"verify_https_client_certificate": False, "api_key": KEY}
    with Gateway(site.write_config(shared_upstream.url, service=service)) as gateway:
        assert ask(gateway, site, mint(KEY, {"access": "r"})).body.decode() == INVALID


def test_a_token_without_access(own_site: Site, upstream: ScriptedUpstream) -> None:
    service = {"verify_https_client_certificate": False, "api_key": KEY, "jwt_rbac": True}
    config = own_site.write_config(upstream.url, service=service)
    with Gateway(config) as gateway:
        refused = ask(gateway, own_site, mint(KEY, {}), MANAGE)
        assert refused.status == 401
        assert b"jwt_full_access_without_claim" in refused.body
        own_site.edit_config(config, service={"jwt_full_access_without_claim": True})
        gateway.reloaded()
        assert ask(gateway, own_site, mint(KEY, {}), MANAGE).status == 200


def test_a_new_api_key_ends_the_tokens_of_the_old_one(own_site: Site, upstream: ScriptedUpstream) -> None:
    service = {"verify_https_client_certificate": False, "api_key": KEY, "jwt_rbac": True}
    config = own_site.write_config(upstream.url, service=service)
    old, new = mint(KEY, {"access": "r"}), mint("another-k3y", {"access": "r"})
    with Gateway(config) as gateway, Client(gateway, own_site.client(None)) as kept:
        assert kept.ask(*READ, [("api-key", old)]).status == 200
        own_site.edit_config(config, service={"alt_api_key": "another-k3y"})
        gateway.reloaded()
        assert [kept.ask(*READ, [("api-key", token)]).status for token in (old, new)] == [200, 200]
        own_site.edit_config(config, service={"api_key": "another-k3y", "alt_api_key": None})
        gateway.reloaded()
        assert [kept.ask(*READ, [("api-key", token)]).status for token in (old, new)] == [403, 200]
