"""A caller that is limited to collections: its gRPC messages are read, and no server has one before it is decided."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator

import grpc
import pytest
from google.protobuf.message import Message
from hyperframe.frame import DataFrame, Frame, HeadersFrame
from qdrant_client import grpc as pb
from support import h2_raw_client
from support.gateway import Gateway
from support.grpc_channels import call, channel
from support.grpc_upstream import GrpcUpstream
from support.h2_raw_client import fields, h2
from support.h2_upstream import H2Upstream
from support.raw_connection import memory
from support.site import Site
from support.upstream import ScriptedUpstream

POINTS = "/qdrant.Points/"
INVALID, DENIED = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.PERMISSION_DENIED
CANCEL = 8
ROLES = {
    "ingest": {
        "access": [
            {"collection": "docs", "access": "rw"},
            {"collection": "logs", "access": "r"},
        ]
    }
}


@pytest.fixture(scope="module")
def frames_of() -> Iterator[H2Upstream]:
    """The upstream of `raw_gateway`."""
    with H2Upstream() as running:
        yield running


@pytest.fixture(scope="module")
def raw_gateway(site: Site, shared_upstream: ScriptedUpstream, frames_of: H2Upstream) -> Iterator[Gateway]:
    with Gateway(site.write_config(shared_upstream.url, grpc=frames_of.url)) as running:
        yield running


@pytest.fixture(scope="module")
def messages() -> Iterator[GrpcUpstream]:
    """The upstream of `gateway`."""
    with GrpcUpstream() as running:
        yield running


@pytest.fixture(scope="module")
def gateway(site: Site, shared_upstream: ScriptedUpstream, messages: GrpcUpstream) -> Iterator[Gateway]:
    roles = {"admin": {"access": "m"}, "search": {"access": "r"}} | ROLES
    with Gateway(site.write_config(shared_upstream.url, grpc=messages.url, roles=roles)) as running:
        yield running


@pytest.fixture
def ingest(site: Site, gateway: Gateway, messages: GrpcUpstream) -> Iterator[grpc.Channel]:
    messages.calls.clear()
    with channel(gateway, site, "ingest") as opened:
        yield opened


def arrived(upstream: GrpcUpstream) -> list[bytes]:
    return [message for one in upstream.calls for message in one.messages]


def lookup(name: str) -> pb.LookupLocation:
    return pb.LookupLocation(collection_name=name)


def nested(name: str, depth: int) -> pb.PrefetchQuery:
    inner = pb.PrefetchQuery(lookup_from=lookup(name))
    for _ in range(depth):
        inner = pb.PrefetchQuery(prefetch=[inner])
    return inner


def varint(value: int) -> bytes:
    return bytes((value,)) if value < 128 else bytes((value & 127 | 128, value >> 7))


def below(depth: int) -> bytes:
    """Prefetches in prefetches, deeper than the library writes them."""
    content = b""
    for _ in range(depth):
        content = b"\x0a" + varint(len(content)) + content
    return b"\x12" + varint(len(content)) + content


# The frame that completes a message


QUERY = pb.QueryPoints(collection_name="docs", lookup_from=lookup("other"), limit=10)
"""What tells that it is not the caller's to ask stands behind its collection."""


@pytest.mark.parametrize("pieces", [1, 2, 3, 7, 1000])
@pytest.mark.parametrize("ends", ["with the message", "after it", "never"])
def test_the_frame_that_completes_a_message_is_withheld_until_the_decision(
    site: Site, raw_gateway: Gateway, frames_of: H2Upstream, pieces: int, ends: str
) -> None:
    content = h2_raw_client.message(QUERY.SerializeToString())
    size = max(1, len(content) // pieces)
    parts = [content[begin : begin + size] for begin in range(0, len(content), size)]
    frames_of.streams.clear()
    with h2(raw_gateway, site, "ingest") as client:
        stream = client.open(fields(f"{POINTS}Query"))
        sent = b""
        for part in parts[:-1]:
            client.send(DataFrame(stream, part))
            sent += part
        if sent:
            frames_of.wait(lambda seen: seen.data == sent)
        client.send(DataFrame(stream, parts[-1], flags=["END_STREAM"] if ends == "with the message" else []))
        if ends == "after it":
            client.send(DataFrame(stream, b"", flags=["END_STREAM"]))
        told = client.fields(stream)
        assert (told["grpc-status"], told["grpc-message"]) == (
            "7",
            "Forbidden: Access to collection other is required",
        )
        client.lives()
        allowed = client.call(pb.QueryPoints(collection_name="docs").SerializeToString(), fields(f"{POINTS}Query"))
        assert client.status(allowed) == 0
    frames_of.wait(lambda seen: seen.ended)
    refused, good = frames_of.streams if len(frames_of.streams) == 2 else (None, *frames_of.streams)
    if refused is not None:
        assert refused.data == sent
        assert (refused.ended, refused.reset) == (False, CANCEL)
    else:
        assert len(parts) == 1, "what had begun was cancelled; what had not was never heard of"
    assert good.data == h2_raw_client.message(pb.QueryPoints(collection_name="docs").SerializeToString())


def test_what_the_collection_alone_refuses_is_refused_at_once(
    site: Site, raw_gateway: Gateway, frames_of: H2Upstream
) -> None:
    """Of an upload of 64 MB to somebody else's collection, nothing goes upstream, and little is taken."""
    frames_of.streams.clear()
    first = pb.UpsertPoints(collection_name="other").SerializeToString()
    with h2(raw_gateway, site, "ingest") as client:
        stream = client.open(fields(f"{POINTS}Upsert"))
        client.send(DataFrame(stream, b"\0" + (64 << 20).to_bytes(4, "big") + first))
        assert client.fields(stream)["grpc-message"] == "Forbidden: Access to collection other is required"
        assert client.reset(stream) == 0, "RFC 9113 §8.1: the rest is not wanted"
        client.lives()
    record = raw_gateway.audited(method="upsert_points")
    assert (record["collection"], record["result"], record["grpc_status"]) == ("other", "denied", 7)
    assert all(seen.data == b"" and seen.reset == CANCEL for seen in frames_of.streams)


def test_refused_calls_that_came_whole_are_nothing_to_the_upstream(
    site: Site, raw_gateway: Gateway, frames_of: H2Upstream
) -> None:
    """A server counts the streams that its client resets at once (CVE-2023-44487), and would end the connection."""
    frames_of.streams.clear()
    foreign = h2_raw_client.message(pb.ScrollPoints(collection_name="other").SerializeToString())
    with h2(raw_gateway, site, "ingest") as client:
        frames: list[Frame] = []
        for _ in range(100):
            head = client.headers(fields(f"{POINTS}Scroll"))
            frames += [head, DataFrame(head.stream_id, foreign, flags=["END_STREAM"])]
        client.send(*frames)
        refused = [
            client.until(HeadersFrame, lambda frame: frame.stream_id == one.stream_id)  # noqa: B023 - used at once
            for one in frames
            if isinstance(one, HeadersFrame)
        ]
        assert len(refused) == 100
        stream = client.call(pb.ScrollPoints(collection_name="docs").SerializeToString(), fields(f"{POINTS}Scroll"))
        client.until(HeadersFrame, lambda frame: frame.stream_id == stream)
    assert len(frames_of.wait(lambda seen: seen.ended).data) > 5
    began = [seen for seen in frames_of.streams if not seen.ended]
    assert len(began) < 5, "those whose fields were written before their message had come"


# What messages name


NAMED: dict[str, tuple[Message, str]] = {
    "lookup_from": (QUERY, "Query"),
    "prefetch": (pb.QueryPoints(collection_name="docs", prefetch=[nested("other", 0)]), "Query"),
    "prefetch below prefetches": (
        pb.QueryPoints(collection_name="docs", prefetch=[nested("docs", 3), nested("other", 20)]),
        "Query",
    ),
    "batch": (
        pb.QueryBatchPoints(
            collection_name="docs",
            query_points=[pb.QueryPoints(), pb.QueryPoints(prefetch=[nested("other", 2)])],
        ),
        "QueryBatch",
    ),
    "groups": (
        pb.QueryPointGroups(collection_name="docs", group_by="a", with_lookup=pb.WithLookup(collection="other")),
        "QueryGroups",
    ),
    "search groups": (
        pb.SearchPointGroups(collection_name="docs", group_by="a", with_lookup=pb.WithLookup(collection="other")),
        "SearchGroups",
    ),
    "recommend": (pb.RecommendPoints(collection_name="docs", lookup_from=lookup("other")), "Recommend"),
    "recommend batch": (
        pb.RecommendBatchPoints(
            collection_name="docs", recommend_points=[pb.RecommendPoints(lookup_from=lookup("other"))]
        ),
        "RecommendBatch",
    ),
    "recommend groups": (
        pb.RecommendPointGroups(collection_name="docs", group_by="a", with_lookup=pb.WithLookup(collection="other")),
        "RecommendGroups",
    ),
    "discover": (pb.DiscoverPoints(collection_name="docs", lookup_from=lookup("other")), "Discover"),
    "discover batch": (
        pb.DiscoverBatchPoints(
            collection_name="docs", discover_points=[pb.DiscoverPoints(lookup_from=lookup("other"))]
        ),
        "DiscoverBatch",
    ),
}


@pytest.mark.parametrize("where", NAMED)
def test_another_collection_anywhere(
    ingest: grpc.Channel, gateway: Gateway, messages: GrpcUpstream, where: str
) -> None:
    message, method = NAMED[where]
    content = message.SerializeToString()
    answered = call(ingest, POINTS + method, content)
    assert (answered.code, answered.text) == (DENIED, "Forbidden: Access to collection other is required")
    record = gateway.audited(result="denied")
    assert (record["collection"], record["reason"]) == ("docs", "collection")
    assert arrived(messages) == []
    own = type(message).FromString(content)
    _rename(own)
    assert call(ingest, POINTS + method, own.SerializeToString()).code is grpc.StatusCode.OK
    assert arrived(messages) == [own.SerializeToString()]


def _rename(message: Message) -> None:
    """`other` becomes `logs`, which any mode of access is enough for, wherever it stands."""
    for descriptor, value in message.ListFields():
        if descriptor.message_type is not None:
            for one in value if descriptor.is_repeated else [value]:
                _rename(one)
        elif value == "other":
            setattr(message, descriptor.name, "logs")


STRANGE: dict[str, tuple[bytes, str]] = {
    "unknown field": (b"\x0a\x04docs\xea\x03\x05other", "field 61 of QueryPoints is not known"),
    "collection twice": (b"\x0a\x04docs\x0a\x05other", "field 1 of QueryPoints"),
    "collection twice the same": (b"\x0a\x04docs\x0a\x04docs", "field 1 of QueryPoints"),
    "lookup twice": (b"\x0a\x04docs\x72\x06\x0a\x04docs\x72\x07\x0a\x05other", "field 14 of QueryPoints"),
    "collection as a number": (b"\x08\x01", "field 1 of QueryPoints has another type"),
    "no collection": (b"\x50\x0a", "no collection is named"),
    "empty collection": (b"\x0a\x00", "no collection is named"),
    "nothing": (b"", "no collection is named"),
    "cut off": (b"\x0a\x09docs", "the message ends within a field"),
    "group": (b"\x0a\x04docs\x0b\x0c", "field 1"),
    "no text": (b"\x0a\x02\xc3\x28", "not UTF-8"),
    "too long a name": (b"\x0a\x80\x02" + b"a" * 256, "more than 255 bytes"),
    "too deep": (b"\x0a\x04docs" + below(120), "nested too deeply"),
    "batch that disagrees": (b"\x0a\x04docs\x12\x07\x0a\x05other", "another collection than the batch"),
}


@pytest.mark.parametrize("what", STRANGE)
def test_what_two_readers_could_read_differently(
    ingest: grpc.Channel, gateway: Gateway, messages: GrpcUpstream, what: str
) -> None:
    content, text = STRANGE[what]
    answered = call(ingest, f"{POINTS}{'QueryBatch' if 'batch' in what else 'Query'}", content)
    assert answered.code is INVALID
    assert text in answered.text
    record = gateway.audited(grpc_status=INVALID.value[0])
    assert (record["result"], record["reason"], record["error"]) == ("denied", "bad_request", answered.text)
    assert arrived(messages) == []


def test_a_caller_with_global_rights_is_not_looked_at(site: Site, gateway: Gateway, messages: GrpcUpstream) -> None:
    messages.calls.clear()
    with channel(gateway, site, "admin") as admin:
        for content, _ in STRANGE.values():
            assert call(admin, f"{POINTS}Query", content).code is grpc.StatusCode.OK
    assert arrived(messages) == [content for content, _ in STRANGE.values()]


# Compression


CODINGS = {"gzip": gzip.compress, "deflate": zlib.compress}
GOOD = pb.ScrollPoints(collection_name="docs", limit=3).SerializeToString()
FOREIGN = pb.ScrollPoints(collection_name="other", limit=3).SerializeToString()


def compressed(coding: str, content: bytes, flag: int = 1) -> tuple[list[tuple[str, str]], bytes]:
    return fields(f"{POINTS}Scroll", ("grpc-encoding", coding)), h2_raw_client.message(content, flag)


@pytest.mark.parametrize("coding", CODINGS)
def test_compressed_messages_are_read_and_sent_on_as_they_came(
    site: Site, raw_gateway: Gateway, frames_of: H2Upstream, coding: str
) -> None:
    frames_of.streams.clear()
    with h2(raw_gateway, site, "ingest") as client:
        for content, status in ((GOOD, 0), (FOREIGN, 7)):
            head, message = compressed(coding, CODINGS[coding](content))
            stream = client.open(head)
            client.send(DataFrame(stream, message[:9]), DataFrame(stream, message[9:], flags=["END_STREAM"]))
            assert client.status(stream) == status
    (good,) = (seen for seen in frames_of.streams if seen.ended)
    assert good.data == h2_raw_client.message(CODINGS[coding](GOOD), 1)
    assert dict(good.fields)["grpc-encoding"] == coding


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
def test_by_the_clients_own_library(site: Site, gateway: Gateway, messages: GrpcUpstream, coding: str) -> None:
    messages.calls.clear()
    algorithm = {"gzip": grpc.Compression.Gzip, "deflate": grpc.Compression.Deflate}[coding]
    large = pb.UpsertPoints(
        collection_name="docs",
        points=[pb.PointStruct(id=pb.PointId(num=1), payload={"text": pb.Value(string_value="abc" * 100_000)})],
    ).SerializeToString()
    with channel(gateway, site, "ingest") as opened:
        assert call(opened, f"{POINTS}Upsert", large, compression=algorithm).code is grpc.StatusCode.OK
        refused = call(opened, f"{POINTS}Scroll", FOREIGN, compression=algorithm)
    assert arrived(messages) == [large]
    assert refused.code is DENIED


def test_codings_that_are_not_read_here(site: Site, raw_gateway: Gateway, frames_of: H2Upstream) -> None:
    bomb = gzip.compress(GOOD + bytes(65 << 20))
    cases = [
        (compressed("snappy", GOOD), 12),
        (compressed("identity", GOOD), 3),
        ((fields(f"{POINTS}Scroll"), h2_raw_client.message(gzip.compress(GOOD), 1)), 3),
        (compressed("gzip", b"no gzip"), 3),
        (compressed("gzip", gzip.compress(GOOD)[:-1]), 3),
        (compressed("gzip", gzip.compress(GOOD) + b"more"), 3),
        (compressed("gzip", gzip.compress(GOOD) + gzip.compress(FOREIGN)), 3),
        (compressed("gzip", bomb), 8),
        (compressed("gzip", GOOD, flag=2), 3),
    ]
    before = len([seen for seen in frames_of.streams if seen.ended])
    with h2(raw_gateway, site, "ingest", INITIAL_WINDOW_SIZE=1 << 20) as client:
        for (head, message), status in cases:
            stream = client.open(head)
            pieces = [message[begin : begin + 16_000] for begin in range(0, len(message), 16_000)]
            for number, piece in enumerate(pieces[:-1], start=1):
                client.send(DataFrame(stream, piece))
                if number % 4 == 0:  # there is no room for a fifth until there is more
                    client.room(0)
                    client.room(stream)
            client.send(DataFrame(stream, pieces[-1], flags=["END_STREAM"]))
            assert client.status(stream) == status, head
            record = raw_gateway.audited(grpc_status=status)
            reason = {3: "bad_request", 8: "body_too_large", 12: "content_coding"}[status]
            assert (record["result"], record["reason"]) == ("denied", reason)
            assert "must be read before" not in record["error"]
        client.lives()
    assert len([seen for seen in frames_of.streams if seen.ended]) == before


# Framing


def test_a_message_that_is_not_exactly_one(site: Site, raw_gateway: Gateway, frames_of: H2Upstream) -> None:
    whole = h2_raw_client.message(GOOD)
    longer = b"\0" + (len(GOOD) + 1).to_bytes(4, "big") + GOOD
    shorter = b"\0" + (len(GOOD) - 1).to_bytes(4, "big") + GOOD
    before = len([seen for seen in frames_of.streams if seen.ended])
    with h2(raw_gateway, site, "ingest") as client:
        for parts in (
            [whole + whole],
            [whole + b"\0"],
            [longer],
            [shorter],
            [whole[:4]],
            [b""],
            [whole[:-1], b""],
            [whole[:9], whole[9:] + h2_raw_client.message(FOREIGN)],
        ):
            stream = client.open(fields(f"{POINTS}Scroll"))
            client.send(
                *(DataFrame(stream, part) for part in parts[:-1]), DataFrame(stream, parts[-1], flags=["END_STREAM"])
            )
            assert client.status(stream) == 3, parts
        client.lives()
        client.send(client.headers(fields(f"{POINTS}Scroll"), None, "END_STREAM"))
        assert client.status(client.next(None) - 2) == 3
    assert len([seen for seen in frames_of.streams if seen.ended]) == before


@pytest.mark.parametrize("flag", [0x20, 0x02, 0x04, 0x40, 0x80])
def test_a_flag_that_data_has_not_hides_nothing(
    site: Site, raw_gateway: Gateway, frames_of: H2Upstream, flag: int
) -> None:
    """RFC 9113 §4.1: it is ignored. Taken for that of HEADERS, 0x20 would hide five bytes of each frame from us."""
    frames_of.streams.clear()
    docs, hidden, seen_instead = b"\x0a\x04docs", b"\x0a\x03foo", b"\x20\x81\x80\x80\x00"
    with h2(raw_gateway, site, "ingest") as client:
        stream = client.open(fields(f"{POINTS}Scroll"))
        client.send(
            DataFrame(stream, h2_raw_client.message(docs + hidden)[: 5 + len(docs)]),
            h2_raw_client.raw(0, flag, stream, hidden),
            DataFrame(stream, seen_instead, flags=["END_STREAM"]),
        )
        assert client.fields(stream)["grpc-message"] == "Malformed message: field 1 of ScrollPoints is there twice"
        client.lives()
    assert not any(hidden in seen.data for seen in frames_of.streams)


def test_a_second_message_after_a_good_one_ends_the_call(
    site: Site, raw_gateway: Gateway, frames_of: H2Upstream
) -> None:
    """The first may be on its way to the upstream by then; the second goes nowhere."""
    frames_of.streams.clear()
    with h2(raw_gateway, site, "ingest") as client:
        stream = client.open(fields(f"{POINTS}Scroll"))
        client.send(DataFrame(stream, h2_raw_client.message(GOOD)))
        frames_of.wait(lambda seen: seen.data == h2_raw_client.message(GOOD))
        client.send(DataFrame(stream, h2_raw_client.message(FOREIGN), flags=["END_STREAM"]))
        assert client.status(stream) == 3
    (seen,) = frames_of.streams
    assert (seen.data, seen.ended) == (h2_raw_client.message(GOOD), False)


def test_64_megabytes_of_a_limited_writer_in_little_memory(
    gateway: Gateway, messages: GrpcUpstream, ingest: grpc.Channel
) -> None:
    vectors = pb.Vectors(vector=pb.Vector(dense=pb.DenseVector(data=[0.5] * 4096)))
    points = [pb.PointStruct(id=pb.PointId(num=n), vectors=vectors) for n in range(4090)]
    content = pb.UpsertPoints(collection_name="docs", points=points).SerializeToString()
    assert len(content) > 64_000_000
    assert call(ingest, f"{POINTS}Scroll", GOOD).code is grpc.StatusCode.OK
    messages.calls.clear()
    before = memory(gateway)
    assert call(ingest, f"{POINTS}Upsert", content).code is grpc.StatusCode.OK
    assert arrived(messages) == [content]
    assert memory(gateway) - before < 16 << 20
    assert gateway.audited(bytes_in=len(content) + 5)["result"] == "ok"
