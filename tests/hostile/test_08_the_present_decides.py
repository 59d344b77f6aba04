"""The present decides, to the last byte: what a client cannot do with a right that it had a moment ago."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass

import grpc
import pytest
from hyperframe.frame import DataFrame
from support.client import Client
from support.gateway import Gateway
from support.grpc_client import call, channel
from support.grpc_upstream import GrpcUpstream
from support.h2raw import fields, h2, message
from support.held import Held
from support.site import Site
from support.upstream import OK, Connection, Received, ScriptedUpstream

from tlsproxy.authz.tokens import mint

KEY = "a key that is long enough to sign with"
LIST = "/qdrant.Collections/List"
READ = ("GET", "/collections/docs")

# A token that counts while a point exists


@dataclass
class Points:
    """An upstream in which there is the point, or not. ``asked`` counts the questions."""

    exists: bool = True
    asked: int = 0

    def __call__(self, connection: Connection, request: Received) -> None:
        request.body = connection.read_body(request)
        if "/scroll " not in request.line:
            connection.sock.sendall(OK)
            return
        self.asked += 1
        body = json.dumps({"result": {"points": [{"id": 1}] if self.exists else []}}).encode()
        connection.sock.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body))


@pytest.fixture(scope="module")
def conditional(
    site: Site, shared_upstream: ScriptedUpstream
) -> Iterator[tuple[Gateway, ScriptedUpstream, GrpcUpstream]]:
    service = {"verify_https_client_certificate": False, "api_key": KEY, "jwt_rbac": True}
    with (
        GrpcUpstream() as calls,
        Gateway(site.write_config(shared_upstream.url, grpc=calls.url, service=service)) as gateway,
    ):
        yield gateway, shared_upstream, calls


def token() -> tuple[str, str]:
    exists = {"collection": "users", "matches": [{"key": "name", "value": "alice"}]}
    return "api-key", mint(KEY, {"access": "m", "value_exists": exists})


def test_a_token_ends_with_its_point(site: Site, conditional: tuple[Gateway, ScriptedUpstream, GrpcUpstream]) -> None:
    """As Qdrant's own test has it: create the point, use the token, delete the point, expect refusal at once."""
    gateway, upstream, _ = conditional
    upstream.answer = points = Points()
    with Client(gateway, site.client(None)) as client, channel(gateway, site, None) as calls:
        for exists in (True, False, True, False):
            points.exists = exists
            assert client.ask(*READ, [token()]).status == (200 if exists else 401)
            code = grpc.StatusCode.OK if exists else grpc.StatusCode.UNAUTHENTICATED
            assert call(calls, LIST, b"", token()).code is code
    assert points.asked == 8


def test_a_request_never_shares_the_answer_to_a_question_that_was_sent_before_it_came(
    site: Site, conditional: tuple[Gateway, ScriptedUpstream, GrpcUpstream]
) -> None:
    """That answer may be from before the point was deleted. It waits for the next one, and so do all others."""
    gateway, upstream, _ = conditional
    points = Points()
    upstream.answer = first = Held()
    with h2(gateway, site, None) as one, h2(gateway, site, None) as two:
        early = one.call(b"", fields(LIST, token()))
        first.wait(1)
        points.exists = False
        upstream.answer = points
        late = []
        for _ in range(50):
            opened = two.headers(fields(LIST, token()))
            late.append(opened.stream_id)
            two.send(opened, DataFrame(opened.stream_id, message(), flags=["END_STREAM"]))
        two.lives()  # all have come by now
        assert points.asked == 0
        first.release.set()
        assert one.status(early) == grpc.StatusCode.UNAVAILABLE.value[0]  # a plain answer says nothing of a point
        assert set(two.statuses(late).values()) == {grpc.StatusCode.UNAUTHENTICATED.value[0]}
    assert points.asked == 1
