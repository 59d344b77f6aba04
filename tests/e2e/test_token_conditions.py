"""A token that counts only as long as a point exists (`value_exists`): the upstream is asked for each request."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from support.gateway import Gateway
from support.raw_request import Client, request
from support.site import Site
from support.upstream import OK, Connection, Received, ScriptedUpstream

from tlsproxy.authz.tokens import mint

KEY = "manage-k3y"
SERVICE = {"verify_https_client_certificate": False, "api_key": KEY, "jwt_rbac": True}
TEXT = "Invalid JWT, stateful validation failed"
SCROLL = "POST /collections/users/points/scroll HTTP/1.1"
READ = ("GET", "/collections/docs")


def token(collection: str = "users", value: Any = "alice") -> str:
    matches = [{"key": "name", "value": value}]
    return mint(KEY, {"access": "r", "value_exists": {"collection": collection, "matches": matches}})


def response(status: int, body: object) -> bytes:
    data = json.dumps(body).encode()
    return b"HTTP/1.1 %d X\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (
        status,
        len(data),
        data,
    )


FOUND = response(200, {"result": {"points": [{"id": 1}], "next_page_offset": None}, "status": "ok"})
EMPTY = response(200, {"result": {"points": [], "next_page_offset": None}, "status": "ok"})
BROKEN = "Service internal error: no shard answered"
MISSING = response(404, {"status": {"error": "Not found: Collection `users` doesn't exist!"}})


@pytest.fixture(scope="module")
def gateway(site: Site, shared_upstream: ScriptedUpstream) -> Iterator[Gateway]:
    with Gateway(site.write_config(shared_upstream.url, service=SERVICE)) as running:
        yield running


@pytest.fixture
def upstream(shared_upstream: ScriptedUpstream) -> ScriptedUpstream:
    shared_upstream.requests.clear()
    return shared_upstream


def scripted(upstream: ScriptedUpstream, scroll: bytes) -> None:
    def answer(connection: Connection, received: Received) -> None:
        received.body = connection.read_body(received)
        connection.sock.sendall(scroll if "/scroll " in received.line else OK)

    upstream.answer = answer


@pytest.mark.parametrize(
    ("scroll", "status", "text"),
    [
        (FOUND, 200, None),
        (EMPTY, 401, TEXT),
        (MISSING, 403, TEXT),
        (response(500, {"status": {"error": BROKEN}}), 500, None),
        (response(429, {"status": {"error": "Rate limit exceeded: later"}}), 429, None),
        (response(500, {}), 502, None),
        (response(200, {"result": None}), 502, None),
    ],
)
def test_the_upstream_is_asked(
    site: Site, gateway: Gateway, upstream: ScriptedUpstream, scroll: bytes, status: int, text: str | None
) -> None:
    scripted(upstream, scroll)
    with Client(gateway, site.client(None)) as connection:
        answered = connection.ask(*READ, [("api-key", token())])
        assert answered.status == status
        if text is not None:
            assert answered.body.decode() == text
            assert "content-type" not in answered.fields
        assert connection.ask("GET", "/healthz", [("api-key", token())]).status == 200
    record = gateway.audited(request_id=answered.fields["x-request-id"])
    assert record["status"] == status
    assert record["result"] == ("ok" if status in {200, 502} else "denied")
    assert record["auth_type"] == "Jwt"
    assert upstream.requests[0].line == SCROLL
    assert json.loads(upstream.requests[0].body)["filter"] == {"must": [{"key": "name", "match": {"value": "alice"}}]}
    asked = [each.line for each in upstream.requests]
    assert asked.count("GET /collections/docs HTTP/1.1") == (status == 200)


def test_qdrants_error_is_the_answer_in_its_words_and_is_not_remembered(
    site: Site, gateway: Gateway, upstream: ScriptedUpstream
) -> None:
    scripted(upstream, response(500, {"status": {"error": BROKEN}, "time": 0.1}))
    with Client(gateway, site.client(None)) as connection:
        answered = connection.ask(*READ, [("api-key", token())])
        assert (answered.status, answered.body.decode()) == (500, BROKEN)
        assert answered.fields["content-type"] == "text/plain; charset=utf-8"
        record = gateway.audited(request_id=answered.fields["x-request-id"])
        assert record["error"] == f"Storage error: {BROKEN}"
        assert (record["result"], record["reason"]) == ("denied", "token_storage_error")
        scripted(upstream, FOUND)
        assert connection.ask(*READ, [("api-key", token())]).status == 200


def test_an_answer_in_chunks(site: Site, gateway: Gateway, upstream: ScriptedUpstream) -> None:
    body = FOUND.split(b"\r\n\r\n", 1)[1]
    chunks = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in (body[:9], body[9:]))
    scripted(upstream, b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n" + chunks + b"0\r\nx-t: 1\r\n\r\n")
    with Client(gateway, site.client(None)) as connection:
        assert connection.ask(*READ, [("api-key", token())]).status == 200


def test_the_question_goes_where_the_caller_is_routed(site: Site, gateway: Gateway, upstream: ScriptedUpstream) -> None:
    scripted(upstream, FOUND)
    with Client(gateway, site.client(None)) as connection:

        def ask(*affinity: str) -> list[str | None]:
            """The affinities that the upstream was asked with."""
            before = len(upstream.requests)
            fields = [("X-Qdrant-Route-Affinity", each) for each in affinity]
            assert connection.ask(*READ, [("api-key", token()), *fields]).status == 200
            asked = [each for each in upstream.requests[before:] if each.line == SCROLL]
            return [each.fields.get("x-qdrant-route-affinity") for each in asked]

        assert ask("peer-1") == ["peer-1"]
        assert ask() == [None]
        assert ask("peer-2", "peer-1") == ["peer-2"]
        assert ask("x" * 257) == ask("caf\xe9") == ask("a\tb") == ask("") == [None]  # as without one
        assert "affinity: " + "x" * 257 in upstream.requests[-7].head.decode("latin-1")


def test_an_answer_counts_for_its_own_request(site: Site, gateway: Gateway, upstream: ScriptedUpstream) -> None:
    scripted(upstream, FOUND)
    with Client(gateway, site.client(None)) as connection:
        assert [connection.ask(*READ, [("api-key", token())]).status for _ in range(5)] == [200] * 5
        assert [each.line for each in upstream.requests].count(SCROLL) == 5
        scripted(upstream, EMPTY)
        assert connection.ask(*READ, [("api-key", token())]).status == 401
        assert [each.line for each in upstream.requests].count(SCROLL) == 6


def test_a_body_that_waits_for_the_answer(site: Site, gateway: Gateway, upstream: ScriptedUpstream) -> None:
    scripted(upstream, FOUND)
    body = b'{"limit": 3, "x": "' + b"y" * 100_000 + b'"}'
    with Client(gateway, site.client(None)) as connection:
        answered = connection.ask("POST", "/collections/docs/points/search", [("api-key", token())], body)
        assert answered.status == 200
    assert upstream.requests[-1].body == body


def test_hundreds_of_pipelined_refusals(site: Site, gateway: Gateway, upstream: ScriptedUpstream) -> None:
    scripted(upstream, EMPTY)
    with gateway.connect(site.client(None)) as sock:
        sock.sendall(request(*READ, [("api-key", token())]) * 200)
        received = b""
        while received.count(b"HTTP/1.1 401") < 200:
            data = sock.recv(65536)
            assert data
            received += data
    assert [each.line for each in upstream.requests] == [SCROLL] * 200


@pytest.mark.parametrize("collection", ["", ".", "..", "a\x00b", "x" * 300])
def test_a_collection_that_would_lead_elsewhere(
    site: Site, gateway: Gateway, upstream: ScriptedUpstream, collection: str
) -> None:
    scripted(upstream, FOUND)
    with Client(gateway, site.client(None)) as connection:
        assert connection.ask(*READ, [("api-key", token(collection))]).status == 403
    assert not upstream.requests


@pytest.mark.parametrize(
    ("collection", "sent"),
    [("a/b", "a%2Fb"), ("docs/points/1#", "docs%2Fpoints%2F1%23"), ("%2e%2e", "%252e%252e")],
)
def test_a_collection_with_characters_of_a_path(
    site: Site, gateway: Gateway, upstream: ScriptedUpstream, collection: str, sent: str
) -> None:
    scripted(upstream, FOUND)
    with Client(gateway, site.client(None)) as connection:
        assert connection.ask(*READ, [("api-key", token(collection))]).status == 200
    assert upstream.requests[0].line == SCROLL.replace("users", sent)


def test_an_upstream_that_is_down(site: Site) -> None:
    config = site.write_config("http://127.0.0.1:1", service=SERVICE)
    with Gateway(config) as gateway, Client(gateway, site.client(None)) as connection:
        assert connection.ask(*READ, [("api-key", token())]).status == 502


def test_answers_of_the_gateways_own_need_the_point_too(site: Site, upstream: ScriptedUpstream) -> None:
    bearer = mint(KEY, {"access": "m", "value_exists": {"collection": "users", "matches": []}})
    config = site.write_config(upstream.url, service=SERVICE, audit={"enabled": True, "dir": str(site.directory / "a")})
    with Gateway(config) as gateway, Client(gateway, site.client(None)) as connection:
        for scroll, status in [(EMPTY, 401), (MISSING, 403), (FOUND, 200)]:
            scripted(upstream, scroll)
            upstream.requests.clear()
            for method, path, body in [("GET", "/_tlsproxy/whoami", b""), ("POST", "/audit/logs", b"{}")]:
                assert connection.ask(method, path, [("api-key", bearer)], body).status == status, path
                assert connection.ask("GET", "/healthz", [("api-key", bearer)]).status == 200
            assert [each.line for each in upstream.requests].count(SCROLL) == 2
