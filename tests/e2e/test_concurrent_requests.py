"""How many requests may go on at a time, of a role and of each identity: a slow one counts until its end."""

from __future__ import annotations

from contextlib import ExitStack

import grpc
from support.gated_answers import GatedAnswer
from support.gateway import DEADLINE, Gateway
from support.grpc_channels import call, channel
from support.grpc_traffic import LIST
from support.grpc_upstream import GrpcUpstream, never
from support.limit_answers import role
from support.raw_connection import GET, UPSERT, RawClient, connected
from support.raw_request import Client
from support.site import Site
from support.upstream import ScriptedUpstream


def test_so_many_of_a_role_at_a_time(own_site: Site, upstream: ScriptedUpstream) -> None:
    upstream.answer = held = GatedAnswer()
    config = own_site.write_config(upstream.url, roles={"search": role(concurrent_requests=2)})
    with Gateway(config) as gateway, ExitStack() as stack:
        first, second, third = (stack.enter_context(connected(gateway, own_site.client("search"))) for _ in range(3))
        for client in (first, second):
            client.send(GET)
        held.wait(2)
        third.send(GET)
        refused = third.response()
        assert refused.status == 429
        assert refused.fields["retry-after"] == "1"
        assert b'Rate limiting exceeded: role \\"search\\" has 2 requests at a time' in refused.body
        assert gateway.audited(status=429)["reason"] == "too_many_requests_in_flight"
        # One whose client goes away has ended, and so has one that was answered.
        first.sock.close()
        assert gateway.audited(status=499)
        third.send(GET)
        held.wait(1)
        held.release.set()
        assert [client.response().status for client in (second, third)] == [200, 200]
        for client in (second, third, second, third):
            client.send(GET)
            assert client.response().status == 200


def too_many(client: RawClient) -> bool:
    client.send(b"GET /collections/docs HTTP/1.1\r\nhost: h\r\n\r\n")
    return client.response().status == 429


def test_a_body_that_comes_slowly_counts(own_site: Site, upstream: ScriptedUpstream) -> None:
    upstream.answer = held = GatedAnswer()
    config = own_site.write_config(upstream.url, limits={"per_identity": {"concurrent_requests": 1}})
    with Gateway(config) as gateway, ExitStack() as stack:
        slow, other = (stack.enter_context(connected(gateway, own_site.client("ingest"))) for _ in range(2))
        slow.send(UPSERT, b"content-type: application/json\r\ncontent-length: 70001\r\n\r\n{")
        held.wait(1)
        assert too_many(other)
        held.release.set()
        slow.send(b" " * 70_000)
        assert slow.response().status == 200
        assert not too_many(other)


def test_calls_and_requests_are_counted_together(
    own_site: Site, upstream: ScriptedUpstream, grpc_upstream: GrpcUpstream
) -> None:
    grpc_upstream.answer = never
    config = own_site.write_config(
        upstream.url, grpc=grpc_upstream.url, limits={"per_identity": {"concurrent_requests": 2}}
    )
    with (
        Gateway(config) as gateway,
        Client(gateway, own_site.client()) as client,
        channel(gateway, own_site) as opened,
        channel(gateway, own_site, "search") as of_another,
    ):
        waiting = [opened.unary_unary(LIST).future(b"", timeout=DEADLINE) for _ in range(2)]
        grpc_upstream.wait(2)
        assert client.ask().status == 429
        refused = call(opened, LIST)
        assert refused.code is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "has 2 requests at a time" in refused.text
        other = of_another.unary_unary(LIST).future(b"", timeout=DEADLINE)
        assert len(grpc_upstream.wait(3)) == 3, "another identity has its own"
        other.cancel()
        waiting[0].cancel()
        assert gateway.audited(reason="client_cancelled")
        assert gateway.audited(reason="client_cancelled")
        assert client.ask().status == 200
        waiting[1].cancel()
