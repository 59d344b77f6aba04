"""Nearness: a caller's requests of both protocols, through all workers, name one replica to a Qdrant that reads it."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
from qdrant_client import grpc as pb
from support.gateway import DEADLINE, Gateway
from support.grpc_channels import channel
from support.grpc_upstream import GrpcUpstream, replying
from support.raw_request import Client
from support.site import Site
from support.upstream import Connection, Received, ScriptedUpstream, plain

from tlsproxy.authz.tokens import mint

HEADER = "x-qdrant-route-affinity"
KEYS = {"api_key": "a" * 32, "jwt_rbac": True, "verify_https_client_certificate": False}


def version(release: str) -> bytes:
    body = f'{{"title":"qdrant - vector search engine","version":"{release}"}}'
    return f"HTTP/1.1 200 OK\r\ncontent-length: {len(body)}\r\n\r\n{body}".encode()


@pytest.fixture
def upstream() -> Iterator[ScriptedUpstream]:
    with ScriptedUpstream(probe=plain(version("1.19.2"))) as running:
        yield running


@pytest.fixture
def calls() -> Iterator[GrpcUpstream]:
    with GrpcUpstream(replying(b"")) as running:
        yield running


def of_points(connection: Connection, request: Received) -> None:
    """A point that is the tenant's alone, in a collection of a Qdrant that has no weighted vectors."""
    answer = b'{"version":"1.19.2","result":{"config":{"params":{"vectors":{}}}}}'
    if " /collections/docs/points/query/batch " in request.line:
        answer = b'{"result":[{"points":[{"id":1}]},{"points":[]}]}'
    plain(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(answer), answer))(connection, request)


def asked_of(upstream: ScriptedUpstream, path: str) -> list[str | None]:
    return [each.fields.get(HEADER) for each in upstream.requests if path in each.line]


def ready(gateway: Gateway) -> None:
    """Every worker has asked the upstream what it is."""
    assert gateway.ask_admin("/readyz")[0] == 200


def test_one_value_over_both_protocols_and_all_workers(
    own_site: Site, upstream: ScriptedUpstream, calls: GrpcUpstream
) -> None:
    tenant = {"access": [{"collection": "docs", "access": "rw"}], "filter": {"tenant": "{cn}"}}
    config = own_site.write_config(upstream.url, grpc=calls.url, workers=2, service=KEYS, roles={"ingest": tenant})
    exists = {"collection": "docs", "matches": [{"key": "name", "value": "alice"}]}
    user = mint(KEYS["api_key"], {"access": "r", "subject": "alice"})
    conditional = mint(KEYS["api_key"], {"access": "r", "subject": "alice", "value_exists": exists})
    found = b'{"result":{"points":[{"id":1}]}}'
    answer = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(found), found)
    with Gateway(config) as gateway:
        ready(gateway)

        def asked(client: str | None, **fields: str) -> list[str | None]:
            """The affinities of the upstream's requests for one over REST and one call over gRPC."""
            before, called = len(upstream.requests), len(calls.calls)
            with Client(gateway, own_site.client(client)) as connection:
                sent = [(name.replace("_", "-"), value) for name, value in fields.items()]
                assert connection.ask("GET", "/collections/docs", sent).status == 200
            with channel(gateway, own_site, client) as opened:
                pb.CollectionsStub(opened).Get(
                    pb.GetCollectionInfoRequest(collection_name="docs"), metadata=sent, timeout=DEADLINE
                )
            heads = [each.fields.get(HEADER) for each in upstream.requests[before:]]
            return [*heads, *(str(call.metadata.get(HEADER)) for call in calls.calls[called:])]

        (alice,) = {one for _ in range(4) for one in asked("admin")}  # by connections of whichever worker
        (search,) = set(asked("search"))
        (key,) = set(asked(None, api_key=KEYS["api_key"]))
        (token,) = set(asked(None, api_key=user))
        assert None not in (alice, search, key, token)
        assert len({alice, search, key, token}) == 4
        assert set(asked("admin", api_key=user)) == {token}
        assert set(asked("admin", x_qdrant_route_affinity="mine")) == {"mine"}
        upstream.answer = plain(answer)
        assert asked(None, api_key=conditional) == [token] * 4, "the question whether the point exists, too"
        assert "alice" not in f"{alice}{token}"
        with Client(gateway, own_site.client("ingest")) as connection:
            connection.ask("POST", "/collections/docs/points/query", (), b'{"query": [0.5]}')
            (tenant,) = asked_of(upstream, "/points/query ")
            upstream.answer = of_points
            connection.ask("POST", "/collections/docs/points/query", (), b'{"query": 1}')
        assert asked_of(upstream, "/points/query/batch ") == [tenant], "whether the example is the tenant's"
        assert asked_of(upstream, "/points/query ") == [tenant] * 2
        assert tenant not in {None, alice, search}


def test_a_qdrant_that_is_upgraded_and_one_that_is_not_to_have_it(own_site: Site, upstream: ScriptedUpstream) -> None:
    asked, release = threading.Semaphore(0), "1.18.1"

    def probe(connection: Connection, request: Received) -> None:
        plain(version(release))(connection, request)
        asked.release()

    upstream.probe = probe
    config = own_site.write_config(upstream.url)
    with Gateway(config) as gateway, Client(gateway, own_site.client()) as client:

        def sent() -> bool:
            assert client.ask("GET", "/collections").status == 200
            return HEADER in upstream.requests[-1].fields

        ready(gateway)
        assert not sent()
        release = "1.20.0"
        while asked.acquire(blocking=False):
            pass
        while not asked.acquire(timeout=0.05):
            ready(gateway)
        ready(gateway)  # that answer is known
        assert sent()
        own_site.edit_config(config, upstream={"rest": upstream.url, "route_affinity": "none"})
        gateway.reloaded()
        assert not sent()
