"""Listings by gRPC hold what the caller may know: fewer entries for a limited one, and no word of the others."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import grpc
import grpc.aio
import pytest
from google.protobuf.message import Message
from hyperframe.frame import DataFrame, WindowUpdateFrame
from qdrant_client import grpc as pb
from support.gateway import DEADLINE, Gateway
from support.grpc_channels import Answered, aio_channel, call, channel
from support.grpc_upstream import GrpcUpstream, failing, never, replying
from support.h2_raw_client import fields, h2
from support.site import Site
from support.upstream import ScriptedUpstream

COLLECTIONS = "/qdrant.Collections/"
GRANTS = [{"collection": "docs", "access": "r"}, {"collection": "logs.*", "access": "rw"}]


def collections(*names: str) -> pb.ListCollectionsResponse:
    return pb.ListCollectionsResponse(collections=[pb.CollectionDescription(name=one) for one in names], time=0.25)


def aliases(*pairs: tuple[str, str]) -> pb.ListAliasesResponse:
    found = [pb.AliasDescription(alias_name=alias, collection_name=real) for alias, real in pairs]
    return pb.ListAliasesResponse(aliases=found, time=0.25)


ALIASES = aliases(("logs.now", "docs"), ("secret", "docs"), ("logs.b", "secret"), ("other", "secret"))
LISTINGS: dict[str, tuple[Message, Message, Message]] = {
    "List": (
        pb.ListCollectionsRequest(),
        collections("docs", "secret", "logs.a", "logs.a.b", "docs2", "", "logs"),
        collections("docs", "logs.a"),
    ),
    "ListAliases": (pb.ListAliasesRequest(), ALIASES, aliases(("logs.now", "docs"))),
    "ListCollectionAliases": (
        pb.ListCollectionAliasesRequest(collection_name="docs"),
        ALIASES,
        aliases(("logs.now", "docs")),
    ),
}
"""Method → what is asked, what the upstream says, what of it a limited caller may know."""


@pytest.fixture(scope="module")
def upstream_of_lists() -> Iterator[GrpcUpstream]:
    with GrpcUpstream() as running:
        yield running


@pytest.fixture(scope="module")
def gateway(site: Site, shared_upstream: ScriptedUpstream, upstream_of_lists: GrpcUpstream) -> Iterator[Gateway]:
    roles = {"admin": {"access": "m"}, "search": {"access": "r"}, "ingest": {"access": GRANTS}}
    with Gateway(site.write_config(shared_upstream.url, grpc=upstream_of_lists.url, roles=roles)) as running:
        yield running


@pytest.fixture
def ingest(site: Site, gateway: Gateway) -> Iterator[grpc.Channel]:
    with channel(gateway, site, "ingest") as opened:
        yield opened


@pytest.mark.parametrize("method", LISTINGS)
def test_what_each_may_know(
    site: Site, gateway: Gateway, ingest: grpc.Channel, upstream_of_lists: GrpcUpstream, method: str
) -> None:
    asked, said, shown = LISTINGS[method]
    upstream_of_lists.answer = replying(said.SerializeToString())
    answered = call(ingest, COLLECTIONS + method, asked.SerializeToString())
    assert answered.code is grpc.StatusCode.OK
    assert type(said).FromString(answered.message) == shown
    assert upstream_of_lists.calls[-1].messages == [asked.SerializeToString()]
    record = gateway.audited(role="ingest")
    assert (record["result"], record["grpc_status"]) == ("ok", 0)
    for client in ("admin", "search"):
        with channel(gateway, site, client) as opened:
            whole = call(opened, COLLECTIONS + method, asked.SerializeToString())
        assert whole.message == said.SerializeToString()


def test_the_aliases_of_another_collection(ingest: grpc.Channel, upstream_of_lists: GrpcUpstream) -> None:
    upstream_of_lists.calls.clear()
    message = pb.ListCollectionAliasesRequest(collection_name="secret").SerializeToString()
    assert call(ingest, f"{COLLECTIONS}ListCollectionAliases", message) == Answered(
        grpc.StatusCode.PERMISSION_DENIED, "Forbidden: Access to collection secret is required"
    )
    assert not [one for one in upstream_of_lists.calls if one.messages]


@pytest.mark.parametrize("method", LISTINGS)
def test_errors_lose_their_text(
    site: Site, gateway: Gateway, ingest: grpc.Channel, upstream_of_lists: GrpcUpstream, method: str
) -> None:
    asked = LISTINGS[method][0].SerializeToString()
    upstream_of_lists.answer = failing(
        grpc.StatusCode.INTERNAL, "shard of secret is down", [("x-secret", "secret"), ("retry-after", "3")]
    )
    with pytest.raises(grpc.RpcError) as refused:
        ingest.unary_unary(COLLECTIONS + method)(asked, timeout=DEADLINE)
    told = refused.value
    assert told.code() is grpc.StatusCode.INTERNAL
    assert told.details() == "The upstream refused; its reason may name what you may not know"
    assert "secret" not in str(told.trailing_metadata())
    assert gateway.audited(role="ingest", grpc_status=13)["result"] == "ok"
    with channel(gateway, site, "admin") as admin:
        assert call(admin, COLLECTIONS + method, asked).text == "shard of secret is down"


UNREADABLE = {
    "cut off": collections("docs", "secret").SerializeToString()[:-3],
    "a group": b"\x0b\x0c",
    "no message": None,
}


@pytest.mark.parametrize("answer", UNREADABLE)
def test_an_answer_that_is_none(ingest: grpc.Channel, upstream_of_lists: GrpcUpstream, answer: str) -> None:
    said = UNREADABLE[answer]
    upstream_of_lists.answer = replying() if said is None else replying(said)
    answered = call(ingest, f"{COLLECTIONS}List")
    assert answered.code is grpc.StatusCode.UNAVAILABLE
    assert "secret" not in answered.text


def test_two_messages_are_no_answer(ingest: grpc.Channel, upstream_of_lists: GrpcUpstream) -> None:
    upstream_of_lists.answer = replying(collections("docs").SerializeToString(), collections("x").SerializeToString())
    assert call(ingest, f"{COLLECTIONS}List").code is grpc.StatusCode.UNAVAILABLE


def test_the_upstream_is_not_asked_to_compress(ingest: grpc.Channel, upstream_of_lists: GrpcUpstream) -> None:
    """What is to be read comes plain: grpcio offers gzip by itself, and none of that is passed on."""
    upstream_of_lists.answer = replying(collections("docs", "secret").SerializeToString())
    answered = call(ingest, f"{COLLECTIONS}List", b"", compression=grpc.Compression.Gzip)
    assert pb.ListCollectionsResponse.FromString(answered.message) == collections("docs")
    assert "grpc-accept-encoding" not in upstream_of_lists.calls[-1].metadata


LARGE = collections(*(f"{'logs.' if n % 2 else 'secret-'}{n:0200}" for n in range(6_000)))
"""More than a megabyte: sixteen times a connection's first window, on either side."""


def test_a_listing_that_is_larger_than_the_windows(ingest: grpc.Channel, upstream_of_lists: GrpcUpstream) -> None:
    upstream_of_lists.answer = replying(LARGE.SerializeToString())
    answered = call(ingest, f"{COLLECTIONS}List")
    shown = pb.ListCollectionsResponse.FromString(answered.message)
    assert [one.name for one in shown.collections] == [f"logs.{n:0200}" for n in range(1, 6_000, 2)]


def test_many_at_once(site: Site, gateway: Gateway, upstream_of_lists: GrpcUpstream) -> None:
    """On one connection, among calls that pass as they are: every answer is whole, and every window is given back."""
    upstream_of_lists.answer = replying(LARGE.SerializeToString())

    async def ask() -> None:
        async with aio_channel(gateway, site, "ingest") as opened:
            listed, counted = opened.unary_unary(f"{COLLECTIONS}List"), opened.unary_unary("/qdrant.Points/Count")
            message = pb.CountPoints(collection_name="docs").SerializeToString()
            for _ in range(2):
                calls = [counted(message) if n % 2 else listed(b"") for n in range(10)]
                for n, answer in enumerate(await asyncio.gather(*calls)):
                    got = len(pb.ListCollectionsResponse.FromString(answer).collections)
                    assert got == (6_000 if n % 2 else 3_000)

    asyncio.run(asyncio.wait_for(ask(), 40))


def test_a_client_that_takes_it_in_small_pieces(site: Site, gateway: Gateway, upstream_of_lists: GrpcUpstream) -> None:
    """Its windows are its own: the gateway sends no more than they say."""
    upstream_of_lists.answer = replying(LARGE.SerializeToString())
    with h2(gateway, site, "ingest", INITIAL_WINDOW_SIZE=7) as client:
        stream = client.call(b"", fields(f"{COLLECTIONS}List"))
        client.fields(stream)
        received, granted = 0, 7
        for frame in client.frames():
            if isinstance(frame, DataFrame):
                received += len(frame.data)
                assert received <= granted
                client.send(WindowUpdateFrame(stream, 4_000), WindowUpdateFrame(0, 4_000))
                granted += 4_000
            elif frame.stream_id == stream:
                break
    shown = [one.name for one in LARGE.collections if one.name.startswith("logs.")]
    assert received == 5 + len(collections(*shown).SerializeToString())


def test_a_call_that_is_given_up_while_it_waits(
    ingest: grpc.Channel, gateway: Gateway, upstream_of_lists: GrpcUpstream
) -> None:
    upstream_of_lists.answer = never
    upstream_of_lists.calls.clear()
    waiting = ingest.unary_unary(f"{COLLECTIONS}List").future(b"")
    (begun,) = upstream_of_lists.wait()
    waiting.cancel()
    assert begun.ended.wait(DEADLINE)
    assert begun.cancelled
    assert gateway.audited(reason="client_cancelled")["method"] == "list_collections"


def test_a_client_that_leaves_the_connection_no_room(
    site: Site, gateway: Gateway, ingest: grpc.Channel, upstream_of_lists: GrpcUpstream
) -> None:
    """A listing that could come a byte at a time only is given up, and costs the others nothing."""
    upstream_of_lists.answer = replying(bytes(65_535 - 6))
    scroll = pb.ScrollPoints(collection_name="docs").SerializeToString()
    with h2(gateway, site, "ingest", INITIAL_WINDOW_SIZE=1 << 20) as client:
        stream = client.call(scroll, fields("/qdrant.Points/Scroll"))
        taken = 0
        while taken < 65_534:
            taken += len(client.until(DataFrame, lambda frame: frame.stream_id == stream).data)
        upstream_of_lists.answer = replying(LARGE.SerializeToString())
        listing = client.call(b"", fields(f"{COLLECTIONS}List"))
        assert client.status(listing) == grpc.StatusCode.UNAVAILABLE.value[0]
        assert call(ingest, f"{COLLECTIONS}List").code is grpc.StatusCode.OK
        client.lives()
