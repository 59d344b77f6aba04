"""Invalid HTTP/2, messages and bodies are refused as their RFC says, at once, and do not reach the upstream.

The upstream is the h2 library's and sees every frame: a call that it was given the end of was given to it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from hyperframe.frame import DataFrame, HeadersFrame, PriorityFrame, RstStreamFrame, SettingsFrame
from qdrant_client import grpc as pb
from support.gateway import Gateway
from support.h2_raw_client import PREFACE, H2Client, fields, h2, message, raw
from support.h2_upstream import H2Upstream
from support.raw_connection import UPSERT, connected
from support.site import Site
from support.upstream import ScriptedUpstream

PROTOCOL, FLOW_CONTROL, STREAM_CLOSED, FRAME_SIZE, CALM = 1, 3, 5, 6, 11
INVALID = 3
MARK = "x-mark"


@pytest.fixture(scope="module")
def upstream() -> Iterator[H2Upstream]:
    with H2Upstream() as running:
        yield running


@pytest.fixture(scope="module")
def gateway(site: Site, shared_upstream: ScriptedUpstream, upstream: H2Upstream) -> Iterator[Gateway]:
    with Gateway(site.write_config(shared_upstream.url, grpc=upstream.url)) as running:
        yield running


@pytest.fixture
def client(site: Site, gateway: Gateway) -> Iterator[H2Client]:
    with h2(gateway, site) as speaking:
        yield speaking


def completed(upstream: H2Upstream, mark: str) -> bool:
    """Whether the upstream was given the end of the call that has this mark."""
    return any(seen.ended and (MARK, mark) in seen.fields for seen in upstream.streams)


# A content-length is what the DATA of the call is (RFC 9113 §8.1.1)

Call = Callable[[H2Client, int], None]
CONTENT = message(pb.CountPoints(collection_name="docs", exact=True, timeout=1).SerializeToString())
assert len(CONTENT) == 15


def _data(client: H2Client, stream: int, *parts: bytes, end: bool = True, pad: int | None = None) -> None:
    for index, part in enumerate(parts):
        flags = ["END_STREAM"] if end and index == len(parts) - 1 else []
        if pad is None:
            client.send(DataFrame(stream, part, flags=flags))
        else:
            client.send(DataFrame(stream, part, flags=[*flags, "PADDED"], pad_length=pad))


BELIED: dict[str, tuple[int, Call]] = {
    "one too few": (16, lambda c, s: _data(c, s, CONTENT)),
    "one too many": (14, lambda c, s: _data(c, s, CONTENT)),
    "one too many, with no end": (14, lambda c, s: _data(c, s, CONTENT, end=False)),
    "too many in the second frame": (14, lambda c, s: _data(c, s, CONTENT[:10], CONTENT[10:])),
    "too few by an empty last frame": (16, lambda c, s: _data(c, s, CONTENT, b"")),
    "none at all": (15, lambda c, s: _data(c, s, b"")),
    "some where there are none": (0, lambda c, s: _data(c, s, CONTENT)),
    "padding counts for nothing": (22, lambda c, s: _data(c, s, CONTENT, pad=6)),
    "in ten digits": (4_294_967_311, lambda c, s: _data(c, s, CONTENT)),
}


@pytest.mark.parametrize("who", ["admin", "ingest"])
@pytest.mark.parametrize("case", BELIED)
def test_a_length_that_the_data_belies(site: Site, gateway: Gateway, upstream: H2Upstream, case: str, who: str) -> None:
    """Whether its message has a say or not."""
    length, says = BELIED[case]
    with h2(gateway, site, who) as client:
        stream = client.open(fields("/qdrant.Points/Count", ("content-length", str(length)), (MARK, case + who)))
        says(client, stream)
        assert client.reset(stream) == PROTOCOL
        client.lives()
    assert not completed(upstream, case + who)
    assert gateway.audited(reason="content_length")["method"] == "count"


def test_a_length_without_any_data(client: H2Client, gateway: Gateway) -> None:
    client.send(client.headers(fields("/qdrant.Points/Count", ("content-length", "5")), None, "END_STREAM"))
    assert client.reset(1) == PROTOCOL
    gateway.audited(reason="malformed_stream")


@pytest.mark.parametrize("value", ["", "+15", "-15", "15,15", "15, 15", "1 5", "0xf", "15.0", "fifteen", "9" * 40])
def test_a_length_that_is_no_number(client: H2Client, upstream: H2Upstream, value: str) -> None:
    stream = client.open(fields("/qdrant.Points/Count", ("content-length", value), (MARK, "no number")))
    client.send(DataFrame(stream, CONTENT, flags=["END_STREAM"]))
    assert client.reset(stream) == PROTOCOL
    client.lives()
    assert not any((MARK, "no number") in seen.fields for seen in upstream.streams)


def test_two_lengths(client: H2Client) -> None:
    """Refused in words, as whatever is there twice and counts once."""
    twice = [("content-length", "15")] * 2
    assert client.status(client.call(b"0123456789", fields("/qdrant.Points/Count", *twice))) == INVALID


@pytest.mark.parametrize(
    "says",
    [
        lambda c, s: _data(c, s, CONTENT),
        lambda c, s: _data(c, s, CONTENT[:3], CONTENT[3:], b""),
        lambda c, s: _data(c, s, CONTENT, pad=200),
    ],
    ids=["in one frame", "in three", "padded"],
)
def test_a_length_that_is_right(client: H2Client, upstream: H2Upstream, says: Call) -> None:
    stream = client.open(fields("/qdrant.Points/Count", ("content-length", "15"), (MARK, "right")))
    says(client, stream)
    assert client.status(stream) == 0
    assert completed(upstream, "right")
    upstream.streams.clear()


def test_the_length_of_an_answer_goes_no_further(client: H2Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever it promises, the gateway may have to end the answer before that."""
    wrong = [(":status", "200"), ("content-type", "application/grpc"), ("content-length", "5"), ("x-answer", "1")]
    monkeypatch.setattr("support.h2_upstream.OK", wrong)
    answered = client.fields(client.call(b"", fields("/qdrant.Points/Count")))
    assert answered["x-answer"] == "1"
    assert "content-length" not in answered


# Streams that are over (§5.1)


@pytest.mark.parametrize(
    "frame",
    [
        lambda c, s: c.headers(fields(), s, "END_STREAM"),
        lambda c, s: c.headers(fields(), s),
        lambda c, s: c.headers([("trailer", "1")], s, "END_STREAM"),
        lambda _c, s: DataFrame(s, b"x"),
        lambda _c, s: DataFrame(s, b"", flags=["END_STREAM"]),
    ],
    ids=["a whole call", "a call", "trailers", "DATA", "an end"],
)
def test_who_resets_a_stream_says_nothing_more_on_it(
    client: H2Client, upstream: H2Upstream, frame: Callable[[H2Client, int], HeadersFrame | DataFrame]
) -> None:
    stream = client.open(fields("/qdrant.Points/Count", (MARK, "reset")))
    client.send(RstStreamFrame(stream, 8), frame(client, stream))
    assert client.goaway() == STREAM_CLOSED
    assert client.ended()
    assert not completed(upstream, "reset")


@pytest.mark.parametrize("refused", [False, True], ids=["of its own", "after a refusal"])
def test_nor_on_one_that_was_over_before(client: H2Client, *, refused: bool) -> None:
    stream = client.open(fields("/nobody.Knows/This")) if refused else client.call()
    assert client.status(stream) == (12 if refused else 0)
    client.send(RstStreamFrame(stream, 8), DataFrame(stream, b"x"))
    assert client.goaway() == STREAM_CLOSED


def test_what_may_still_come_on_one(client: H2Client) -> None:
    """PRIORITY always; a RST_STREAM or WINDOW_UPDATE that was on its way changes nothing."""
    stream = client.open()
    client.send(RstStreamFrame(stream, 8), PriorityFrame(stream, stream_weight=3), RstStreamFrame(stream, 8))
    client.grant(stream, 1)
    assert client.status(client.call()) == 0
    client.lives()


MANY = 10_000
ENDLESS: dict[str, bytes] = {
    "RST_STREAM": raw(3, 0, 1, bytes(4)),
    "WINDOW_UPDATE": raw(8, 0, 1, b"\0\0\0\1"),
    "PRIORITY": raw(2, 0, 1, bytes(5)),
    "an unknown type": raw(0xBE, 0, 1, b""),
    "PING ACK": raw(6, 1, 0, bytes(8)),
    "SETTINGS ACK": raw(4, 1, 0),
    "GOAWAY": raw(7, 0, 0, bytes(8)),
}


@pytest.mark.parametrize("kind", ENDLESS)
def test_no_frame_that_changes_nothing_comes_without_end(client: H2Client, kind: str) -> None:
    """Here: on a stream that is over, or on none, and nobody has asked for it."""
    assert client.status(client.call()) == 0
    client.send(ENDLESS[kind] * MANY)
    assert client.goaway() == CALM


@pytest.mark.parametrize("content", [b"x", b""])
def test_nor_data_after_a_refusal(client: H2Client, content: bytes) -> None:
    stream = client.open(fields("/nobody.Knows/This"))
    client.send(*[DataFrame(stream, content)] * MANY)
    assert client.goaway() == CALM


# Frames that cannot hold what they say they do (§4.2), and those that are padded beyond their end (§6.1, §6.2)

PADDED, PRIORITISED, WHOLE = 8, 32, 4
SIZES: dict[str, tuple[bytes, int]] = {
    "HEADERS without its pad length": (raw(1, WHOLE | PADDED, 1, b""), FRAME_SIZE),
    "HEADERS with half a priority": (raw(1, WHOLE | PRIORITISED, 1, bytes(4)), FRAME_SIZE),
    "HEADERS without its priority": (raw(1, WHOLE | PRIORITISED, 1, b""), FRAME_SIZE),
    "HEADERS without its priority beside a pad length": (raw(1, WHOLE | PADDED | PRIORITISED, 1, b"\xff"), FRAME_SIZE),
    "HEADERS one byte short of both": (raw(1, WHOLE | PADDED | PRIORITISED, 1, bytes(5)), FRAME_SIZE),
    "HEADERS all padding and more": (raw(1, WHOLE | PADDED, 1, b"\x05" + bytes(4)), PROTOCOL),
    "HEADERS padded into its priority": (raw(1, WHOLE | PADDED | PRIORITISED, 1, b"\x02" + bytes(6)), PROTOCOL),
    "DATA without its pad length": (raw(0, PADDED, 1, b""), FRAME_SIZE),
    "DATA that is its padding": (raw(0, PADDED, 1, b"\x01"), PROTOCOL),
    "DATA padded beyond its end": (raw(0, PADDED, 1, b"\xff" + bytes(254)), PROTOCOL),
    "an empty RST_STREAM": (raw(3, 0, 1, b""), FRAME_SIZE),
    "a RST_STREAM of 5": (raw(3, 0, 1, bytes(5)), FRAME_SIZE),
    "an empty WINDOW_UPDATE": (raw(8, 0, 1, b""), FRAME_SIZE),
    "an empty PING": (raw(6, 0, 0, b""), FRAME_SIZE),
    "a PING of 9": (raw(6, 1, 0, bytes(9)), FRAME_SIZE),
    "an empty GOAWAY": (raw(7, 0, 0, b""), FRAME_SIZE),
    "SETTINGS of 7": (raw(4, 0, 0, bytes(7)), FRAME_SIZE),
    "SETTINGS ACK of 1": (raw(4, 1, 0, bytes(1)), FRAME_SIZE),
    "PRIORITY of 4 on no stream": (raw(2, 0, 9, bytes(4)), FRAME_SIZE),
    "an unknown type of 16385": (raw(0xBE, 0, 0, b"", length=16_385), FRAME_SIZE),
    "CONTINUATION of 16385": (raw(9, 4, 1, b"", length=16_385), FRAME_SIZE),
}


@pytest.mark.parametrize("case", SIZES)
def test_a_frame_of_a_wrong_size(client: H2Client, case: str) -> None:
    frame, code = SIZES[case]
    if not case.startswith("HEADERS"):
        client.open()
    client.send(frame)
    assert client.goaway() == code
    assert client.ended()


@pytest.mark.parametrize("size", [0, 4, 6])
def test_a_priority_of_a_wrong_size_ends_its_stream(client: H2Client, size: int) -> None:
    """§6.3."""
    stream = client.open()
    client.send(raw(2, 0, stream, bytes(size)))
    assert client.reset(stream) == FRAME_SIZE
    assert client.status(client.call()) == 0


def test_settings_do_not_begin_with_an_acknowledgement(site: Site, gateway: Gateway) -> None:
    """§3.4."""
    context = site.client()
    context.set_alpn_protocols(["h2"])
    with gateway.connect(context, port=gateway.grpc_port) as sock:
        client = H2Client(sock)
        client.send(PREFACE, SettingsFrame(0, flags=["ACK"]))
        assert client.goaway() == PROTOCOL


# Windows that are larger than windows are (§6.9)


@pytest.mark.parametrize("path", ["/qdrant.Points/Count", "/qdrant.Collections/List"])
def test_a_streams_window_has_an_end(site: Site, gateway: Gateway, path: str) -> None:
    """Of an answer that passes, and of one that is reduced."""
    with h2(gateway, site, "ingest") as client:
        stream = client.open(fields(path))
        client.grant(stream, (1 << 31) - 1 - 65_535)
        client.lives()
        client.grant(stream, 1)
        assert client.reset(stream) == FLOW_CONTROL
        assert client.status(client.call(CONTENT[5:], fields("/qdrant.Points/Count"))) == 0


def test_nor_do_settings_make_one_larger(client: H2Client) -> None:
    client.grant(client.open(), (1 << 31) - 1 - 65_535)
    client.send(SettingsFrame(0, settings={SettingsFrame.INITIAL_WINDOW_SIZE: 65_536}))
    assert client.goaway() == FLOW_CONTROL


# Messages within messages: prost refuses the 101st (a limited caller's are read)


def _filters(depth: int) -> bytes:
    """A count with a filter of two messages for each two levels."""
    condition = pb.Filter()
    for _ in range(depth // 2):
        condition = pb.Filter(must=[pb.Condition(filter=condition)])
    return pb.CountPoints(collection_name="docs", filter=condition).SerializeToString()


def _of(number: int, content: bytes) -> bytes:
    size, length = len(content), b""
    while size > 0x7F:
        length += bytes((size & 0x7F | 0x80,))
        size >>= 7
    return bytes((number << 3 | 2,)) + length + bytes((size,)) + content


def _nested(depth: int, *cycle: int, within: tuple[int, ...] = ()) -> bytes:
    """A message for ``docs``: ``depth`` messages, by the fields that lead from one to the next, over and over."""
    numbers = [*within, *cycle * (depth // len(cycle) + 1)][:depth]
    content = b""
    for number in reversed(numbers):
        content = _of(number, content)
    return b"\x0a\x04docs" + content


DEEP: dict[str, tuple[str, Callable[[int], bytes]]] = {
    "filters in must": ("Count", lambda depth: _nested(depth, 2, 4, within=(2,))),
    "filters in min_should": ("Count", lambda depth: _nested(depth, 4, 1, 4, within=(2,))),
    "nested filters": ("Scroll", lambda depth: _nested(depth, 1, 6, 2, within=(2,))),
    "payload lists": ("Upsert", lambda depth: _nested(depth, 7, 1, within=(3, 3, 2))),
    "payload structs": ("SetPayload", lambda depth: _nested(depth, 6, 1, 2, within=(3, 2))),
    "formulas": ("Query", lambda depth: _nested(depth, 10, within=(3, 8, 1))),
    "prefetches": ("Query", lambda depth: _nested(depth, 1, within=(2,))),
    "a prefetch's filters": ("QueryBatch", lambda depth: _nested(depth, 2, 4, within=(2, 2, 4))),
    "an operation's filters": ("UpdateBatch", lambda depth: _nested(depth, 2, 4, within=(3, 9, 1, 2))),
}


@pytest.mark.parametrize("case", DEEP)
def test_messages_nested_too_deeply(site: Site, gateway: Gateway, upstream: H2Upstream, case: str) -> None:
    method, nested = DEEP[case]
    with h2(gateway, site, "ingest") as client:
        for depth, status in ((100, 0), (101, INVALID), (2_000, INVALID)):
            mark = f"{case} {depth}"
            stream = client.open(fields(f"/qdrant.Points/{method}", (MARK, mark)))
            content = message(nested(depth))
            for at in range(0, len(content), 1000):
                client.send(DataFrame(stream, content[at : at + 1000]))
            client.send(DataFrame(stream, b"", flags=["END_STREAM"]))
            assert client.status(stream) == status, depth
            assert completed(upstream, mark) == (status == 0)


def test_as_the_client_library_writes_them(site: Site, gateway: Gateway) -> None:
    with h2(gateway, site, "ingest") as client:
        assert client.status(client.call(_filters(98), fields("/qdrant.Points/Count"))) == 0
        assert client.status(client.call(_filters(100), fields("/qdrant.Points/Count"))) == INVALID


# A chunked body that a bare LF or CR ends (RFC 9112 §7.1)

LAST = b"2\r\n{}\r\n0\r\n"
NO_BODY = {
    "the last chunk": b"2\r\n{}\r\n0\n",
    "the end": LAST + b"\n",
    "a trailer": LAST + b"x: y\n",
    "the end after a trailer": LAST + b"x: y\r\n\n",
    "a chunk's size": b"2\n",
    "a chunk": b"2\r\n{}\n",
    "a bare CR": LAST + b"\rx",
    "a bare CR in a trailer": LAST + b"x: y\rz",
    "CR CR LF": LAST + b"\r\r",
    "no trailer": LAST + b"x\r",
    "a folded trailer": LAST + b"x: y\r\n ",
    "a size that is none": b"g",
    "an extension": b"2;",
}


@pytest.mark.parametrize("pieces", [1, 1_000], ids=["whole", "byte by byte"])
@pytest.mark.parametrize("case", NO_BODY)
def test_what_is_no_chunked_body_is_refused_at_once(site: Site, gateway: Gateway, case: str, pieces: int) -> None:
    """With the byte that makes it so: nothing comes after it, and no deadline passes."""
    with connected(gateway, site.client()) as client:
        body = NO_BODY[case]
        client.send(UPSERT + b"transfer-encoding: chunked\r\n\r\n")
        step = max(1, len(body) // pieces)
        for at in range(0, len(body), step):
            client.send(body[at : at + step])
        response = client.response()
        assert response.status == 400
        assert client.ended()
    record = gateway.audited(status=400)
    assert record["duration_ms"] < 10_000


@pytest.mark.parametrize(
    "head", [b"GET / HTTP/1.1\r\nhost: h\n", b"GET / HTTP/1.1\rx", b"GET / HTTP/1.1\r\nhost: h\r\r"]
)
def test_nor_is_the_rest_of_a_head_waited_for_that_is_none(site: Site, gateway: Gateway, head: bytes) -> None:
    with connected(gateway, site.client()) as client:
        for at in range(len(head)):
            client.send(head[at : at + 1])
        assert client.response().status == 400
        assert client.ended()
    assert gateway.audited(status=400)["duration_ms"] < 10_000
