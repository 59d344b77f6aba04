"""RFC 9113's MUSTs, to frames that break them: the right error, nothing of it upstream, and nobody else disturbed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import grpc
import pytest
from hyperframe.frame import (
    ContinuationFrame,
    DataFrame,
    HeadersFrame,
    PingFrame,
    PriorityFrame,
    RstStreamFrame,
    SettingsFrame,
    WindowUpdateFrame,
)
from support.gateway import Gateway
from support.grpc_channels import channel
from support.grpc_upstream import GrpcUpstream
from support.h2_raw_client import PREFACE, SEARCH, H2Client, fields, h2, message, raw
from support.site import Site
from support.upstream import ScriptedUpstream

PROTOCOL, FLOW_CONTROL, STREAM_CLOSED, FRAME_SIZE, COMPRESSION = 1, 3, 5, 6, 9
CALM = 11
BAD = "/qdrant.Points/Bad"
"""Nothing of this name may ever be seen upstream."""


@dataclass(slots=True)
class Served:
    gateway: Gateway
    upstream: GrpcUpstream
    other: grpc.Channel

    def undisturbed(self) -> None:
        """Another client's call succeeds, and nothing bad has come through."""
        assert self.other.unary_unary(SEARCH)(b"fine", timeout=20) == b""
        assert {call.method for call in self.upstream.calls} <= {SEARCH}
        self.upstream.calls.clear()


@pytest.fixture(scope="module")
def served(site: Site, shared_upstream: ScriptedUpstream) -> Iterator[Served]:
    with (
        GrpcUpstream() as upstream,
        Gateway(site.write_config(shared_upstream.url, grpc=upstream.url)) as gateway,
        channel(gateway, site) as other,
    ):
        yield Served(gateway, upstream, other)


def bad(*more: tuple[str, str], **pseudo: str) -> list[tuple[str, str]]:
    return fields(BAD, *more, **pseudo)


def opened(client: H2Client) -> int:
    """A stream on which nothing but its fields has come."""
    return client.open()


def done(client: H2Client) -> int:
    """A stream whose client has ended it, and whose answer is here."""
    stream = client.call()
    assert client.status(stream) == 0
    return stream


Break = Callable[[H2Client], None]

CONNECTION_ERRORS: dict[str, tuple[Break, int]] = {
    # §4.2: a frame that is too large, or too small for what it is
    "a frame beyond 16384": (lambda c: c.send(raw(0, 0, opened(c), b"", length=16_385)), FRAME_SIZE),
    "a SETTINGS of 16 MB": (lambda c: c.send(raw(4, 0, 0, b"", length=0xFFFFFF)), FRAME_SIZE),
    "PING of 7": (lambda c: c.send(raw(6, 0, 0, bytes(7))), FRAME_SIZE),
    "WINDOW_UPDATE of 5": (lambda c: c.send(raw(8, 0, 0, bytes(5))), FRAME_SIZE),
    "RST_STREAM of 3": (lambda c: c.send(raw(3, 0, opened(c), bytes(3))), FRAME_SIZE),
    "SETTINGS of 5": (lambda c: c.send(raw(4, 0, 0, bytes(5))), FRAME_SIZE),
    "SETTINGS ACK with a payload": (lambda c: c.send(raw(4, 1, 0, bytes(6))), FRAME_SIZE),
    "GOAWAY of 7": (lambda c: c.send(raw(7, 0, 0, bytes(7))), FRAME_SIZE),
    # §5.1, §5.1.1: streams
    "DATA on an idle stream": (lambda c: c.send(DataFrame(5, b"x")), PROTOCOL),
    "RST_STREAM on an idle stream": (lambda c: c.send(RstStreamFrame(5, 8)), PROTOCOL),
    "WINDOW_UPDATE on an idle stream": (lambda c: c.send(WindowUpdateFrame(5, 1)), PROTOCOL),
    "an even stream": (lambda c: c.send(HeadersFrame(2, c.block(bad()), flags=["END_HEADERS"])), PROTOCOL),
    "HEADERS on a stream that is over": (
        lambda c: c.send(HeadersFrame(done(c), c.block(bad()), flags=["END_HEADERS", "END_STREAM"])),
        STREAM_CLOSED,
    ),
    "DATA on a stream that is over": (lambda c: c.send(DataFrame(done(c), b"x")), STREAM_CLOSED),
    "a lower stream": (
        lambda c: (c.next(7), done(c), c.send(HeadersFrame(3, c.block(bad()), flags=["END_HEADERS"])), None)[-1],
        STREAM_CLOSED,
    ),
    # §6: what belongs on a stream, and what does not
    "DATA on the connection": (lambda c: c.send(raw(0, 0, 0, b"x")), PROTOCOL),
    "HEADERS on the connection": (lambda c: c.send(raw(1, 4, 0, c.block(bad()))), PROTOCOL),
    "RST_STREAM on the connection": (lambda c: c.send(raw(3, 0, 0, bytes(4))), PROTOCOL),
    "PRIORITY on the connection": (lambda c: c.send(raw(2, 0, 0, bytes(5))), PROTOCOL),
    "SETTINGS on a stream": (lambda c: c.send(raw(4, 0, 1, b"")), PROTOCOL),
    "PING on a stream": (lambda c: c.send(raw(6, 0, 1, bytes(8))), PROTOCOL),
    "GOAWAY on a stream": (lambda c: c.send(raw(7, 0, 1, bytes(8))), PROTOCOL),
    "PUSH_PROMISE": (lambda c: c.send(raw(5, 4, opened(c), bytes(4))), PROTOCOL),
    # §6.1, §6.2: padding
    "padding of HEADERS beyond the frame": (
        lambda c: c.send(raw(1, 4 | 8, 1, b"\xff" + c.block(bad())[:20])),
        PROTOCOL,
    ),
    "an empty padded HEADERS": (lambda c: c.send(raw(1, 4 | 8, 1, b"")), FRAME_SIZE),
    # §6.5.2: settings
    "ENABLE_PUSH of 2": (lambda c: c.send(SettingsFrame(0, settings={SettingsFrame.ENABLE_PUSH: 2})), PROTOCOL),
    "INITIAL_WINDOW_SIZE of 2^31": (lambda c: c.send(raw(4, 0, 0, b"\x00\x04\x80\x00\x00\x00")), FLOW_CONTROL),
    "MAX_FRAME_SIZE of 100": (lambda c: c.send(raw(4, 0, 0, b"\x00\x05\x00\x00\x00\x64")), PROTOCOL),
    "MAX_FRAME_SIZE of 2^24": (lambda c: c.send(raw(4, 0, 0, b"\x00\x05\x01\x00\x00\x00")), PROTOCOL),
    # §6.9: windows
    "a WINDOW_UPDATE of 0": (lambda c: c.send(raw(8, 0, 0, bytes(4))), PROTOCOL),
    "a connection's window of 2^31": (lambda c: c.send(*[WindowUpdateFrame(0, 0x7FFFFFFF)] * 2), FLOW_CONTROL),
    # §6.10, §4.3: field blocks
    "CONTINUATION alone": (lambda c: c.send(ContinuationFrame(1, b"x", flags=["END_HEADERS"])), PROTOCOL),
    "DATA within a field block": (
        lambda c: c.send(HeadersFrame(1, c.block(bad())), DataFrame(1, b"x")),
        PROTOCOL,
    ),
    "PING within a field block": (lambda c: c.send(HeadersFrame(1, c.block(bad())), PingFrame(0, bytes(8))), PROTOCOL),
    "another stream's CONTINUATION": (
        lambda c: c.send(HeadersFrame(1, c.block(bad())), ContinuationFrame(3, b"", flags=["END_HEADERS"])),
        PROTOCOL,
    ),
    "another stream's HEADERS": (
        lambda c: c.send(HeadersFrame(1, c.block(bad())), HeadersFrame(3, c.block(bad()), flags=["END_HEADERS"])),
        PROTOCOL,
    ),
    # RFC 7541
    "an index of 0": (lambda c: c.send(raw(1, 5, 1, b"\x80")), COMPRESSION),
    "an index beyond the table": (lambda c: c.send(raw(1, 5, 1, b"\xff\xff\x7f")), COMPRESSION),
    "a table of more than was allowed": (lambda c: c.send(raw(1, 5, 1, b"\x3f\xff\xff\x03")), COMPRESSION),
    "a table that changes late": (lambda c: c.send(raw(1, 5, 1, b"\x83\x20")), COMPRESSION),
    "EOS in a Huffman string": (lambda c: c.send(raw(1, 5, 1, b"\x04\x84\xff\xff\xff\xff")), COMPRESSION),
    "a string that runs out": (lambda c: c.send(raw(1, 5, 1, b"\x04\x7f/qdrant")), COMPRESSION),
    "an integer without end": (lambda c: c.send(raw(1, 5, 1, b"\x7f" + b"\xff" * 20)), COMPRESSION),
    # RFC 9113 §6.5.2 lets us say how large a block may be
    "fields of 40 KB": (lambda c: c.send(*_large(c)), CALM),
}


def _large(client: H2Client) -> list[HeadersFrame | ContinuationFrame]:
    block = client.block(bad(("x-large", "~" * 40_000)), huffman=False)
    pieces = [block[i : i + 16_000] for i in range(0, len(block), 16_000)]
    return [
        HeadersFrame(1, pieces[0]),
        *(ContinuationFrame(1, piece) for piece in pieces[1:-1]),
        ContinuationFrame(1, pieces[-1], flags=["END_HEADERS"]),
    ]


@pytest.mark.parametrize("case", CONNECTION_ERRORS)
def test_what_ends_the_connection(site: Site, served: Served, case: str) -> None:
    breaks, code = CONNECTION_ERRORS[case]
    with h2(served.gateway, site) as client:
        breaks(client)
        assert client.goaway() == code
        assert client.ended()
    served.undisturbed()


MALFORMED: dict[str, list[tuple[str, str]]] = {
    "no :method": [field for field in bad() if field[0] != ":method"],
    "no :scheme": [field for field in bad() if field[0] != ":scheme"],
    "no :path": [field for field in bad() if field[0] != ":path"],
    "an empty :path": fields(""),
    "a :path without /": fields("qdrant.Points/Bad"),
    "an absolute :path": fields("https://localhost/qdrant.Points/Bad"),
    "a :path with a space": fields("/qdrant.Points /Bad"),
    "no authority at all": [field for field in bad() if field[0] != ":authority"],
    "an authority with user": bad(authority="a@localhost"),
    "host that differs": bad(("host", "elsewhere")),
    "a :scheme of ftp": bad(scheme="ftp"),
    "two :path": [(":path", SEARCH), *bad()],
    "two :method": [(":method", "POST"), *bad()],
    "a late pseudo-header": [*bad(), (":path", SEARCH)],
    "an unknown pseudo-header": [(":protocol", "websocket"), *bad()],
    "a pseudo-header of responses": [(":status", "200"), *bad()],
    "an upper-case name": bad(("X-Case", "1")),
    "an empty name": bad(("", "1")),
    "a name with a space": bad(("a b", "1")),
    "a name with a colon": bad(("a:b", "1")),
    "a value with CR": bad(("x", "a\rb")),
    "a value with LF": bad(("x", "a\nb")),
    "a value with NUL": bad(("x", "a\0b")),
    "a value that begins with a space": bad(("x", " a")),
    "a value that ends with a tab": bad(("x", "a\t")),
    "connection": bad(("connection", "close")),
    "keep-alive": bad(("keep-alive", "1")),
    "proxy-connection": bad(("proxy-connection", "close")),
    "transfer-encoding": bad(("transfer-encoding", "chunked")),
    "upgrade": bad(("upgrade", "h2c")),
    "te: gzip": [field if field[0] != "te" else ("te", "gzip") for field in bad()],
}


@pytest.mark.parametrize("case", MALFORMED)
def test_a_malformed_call_ends_its_stream(site: Site, served: Served, case: str) -> None:
    """RFC 9113 §8.1.1: a stream error, and the connection goes on."""
    with h2(served.gateway, site) as client:
        client.send(client.headers(MALFORMED[case], None, "END_STREAM"))
        assert client.reset(1) == PROTOCOL
        record = served.gateway.audited(reason="malformed_stream")
        assert (record["result"], record["certificate_subject"]) == ("denied", "CN=alice,OU=platform")
        assert client.status(client.call()) == 0
    served.undisturbed()


def _end(stream: int) -> DataFrame:
    return DataFrame(stream, b"", flags=["END_STREAM"])


STREAM_ERRORS: dict[str, tuple[Callable[[H2Client, int], None], int]] = {
    "DATA after the end": (
        lambda c, s: c.send(_end(s), DataFrame(s, b"x")),
        STREAM_CLOSED,
    ),
    "HEADERS after the end": (
        lambda c, s: c.send(
            _end(s),
            HeadersFrame(s, c.block(bad()), flags=["END_HEADERS", "END_STREAM"]),
        ),
        STREAM_CLOSED,
    ),
    "trailers": (
        lambda c, s: c.send(HeadersFrame(s, c.block([("x", "y")]), flags=["END_HEADERS", "END_STREAM"])),
        PROTOCOL,
    ),
    "a second head": (lambda c, s: c.send(HeadersFrame(s, c.block(bad()), flags=["END_HEADERS"])), PROTOCOL),
    "a WINDOW_UPDATE of 0": (lambda c, s: c.send(raw(8, 0, s, bytes(4))), PROTOCOL),
}


@pytest.mark.parametrize("case", STREAM_ERRORS)
def test_what_ends_a_stream(site: Site, served: Served, case: str) -> None:
    breaks, code = STREAM_ERRORS[case]
    with h2(served.gateway, site) as client:
        breaks(client, client.open())
        assert client.reset(1) == code
        assert client.status(client.call()) == 0
        client.lives()
    served.undisturbed()


def test_what_must_be_ignored(site: Site, served: Served) -> None:
    """§4.1, §5.5: unknown types and flags; §5.1: what is on its way when a stream ends; §5.3.2: PRIORITY anywhere."""
    with h2(served.gateway, site) as client:
        client.send(
            raw(0xFE, 0xFF, 0, b"whatever"),
            raw(0xFE, 0xFF, 7, b"whatever"),
            PriorityFrame(9, stream_weight=1),
            SettingsFrame(0, settings={0xF0: 1}),
            raw(6, 0xFE, 0, b"liveness"),
        )
        stream = client.open(fields(BAD))
        assert client.status(stream) == 12
        client.send(DataFrame(stream, b"late"), RstStreamFrame(stream, 8), PriorityFrame(stream, stream_weight=3))
        client.grant(stream, 5)
        assert client.status(client.call()) == 0
        client.lives()
    served.undisturbed()


def test_fields_in_many_pieces_with_padding_and_priority(site: Site, served: Served) -> None:
    with h2(served.gateway, site) as client:
        block = client.block(fields(SEARCH, ("x-one", "1")))
        client.send(
            raw(1, 8 | 32, 1, b"\x03" + bytes(5) + block[:5] + bytes(3)),
            *(ContinuationFrame(1, block[i : i + 4]) for i in range(5, len(block), 4)),
            ContinuationFrame(1, b"", flags=["END_HEADERS"]),
            DataFrame(1, message(b"padded"), flags=["END_STREAM"]),
        )
        assert client.status(1) == 0
    assert served.upstream.calls[-1].messages == [b"padded"]
    assert served.upstream.calls[-1].metadata["x-one"] == "1"
    served.undisturbed()


@pytest.mark.parametrize(
    "start",
    [b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", PREFACE[:-1] + b"x", PREFACE + raw(6, 0, 0, bytes(8))],
    ids=["HTTP/1.1", "a broken preface", "PING before SETTINGS"],
)
def test_what_is_not_http2(site: Site, served: Served, start: bytes) -> None:
    context = site.client()
    context.set_alpn_protocols(["h2"])
    with served.gateway.connect(context, port=served.gateway.grpc_port) as sock:
        client = H2Client(sock)
        client.send(start)
        assert client.goaway() == PROTOCOL
        assert client.ended()
    assert served.gateway.audited(reason="http2_preface")["result"] == "denied"
    served.undisturbed()


def test_more_streams_than_were_offered(site: Site, served: Served) -> None:
    """§5.1.2: refused, so that the client may make the call again; the others go on."""
    with h2(served.gateway, site) as client:
        settings = client.until(SettingsFrame, lambda frame: "ACK" not in frame.flags).settings
        streams = [client.open() for _ in range(settings[SettingsFrame.MAX_CONCURRENT_STREAMS] + 1)]
        assert client.reset(streams[-1]) == 7
        for stream in streams[:-1]:
            client.send(DataFrame(stream, message(), flags=["END_STREAM"]))
        assert [client.status(stream) for stream in streams[:1]] == [0]
        client.lives()
    served.undisturbed()


def test_padding_goes_no_further(site: Site, served: Served) -> None:
    """§6.1: it counts against the sender's windows, which are given back: 256 frames have more of it than they hold."""
    with h2(served.gateway, site) as client:
        stream = client.open()
        content = message(bytes(251))
        for start in range(256):
            client.send(DataFrame(stream, content[start : start + 1], pad_length=255, flags=["PADDED"]))
        given = {0: 0, stream: 0}
        while min(given.values()) < 256 * 256:
            frame = client.until(WindowUpdateFrame)
            if frame.stream_id == 0 or frame.window_increment == 256:  # others are the upstream's
                given[frame.stream_id] += frame.window_increment
        client.send(DataFrame(stream, b"", pad_length=9, flags=["PADDED", "END_STREAM"]))
        assert client.status(stream) == 0
    assert served.upstream.calls[-1].messages == [bytes(251)]
    served.undisturbed()


def test_settings_come_before_any_answer(site: Site, served: Served) -> None:
    """§3.4, though the call was refused before the upstream had said a word."""
    with h2(served.gateway, site, "stranger") as client:
        assert client.status(client.call()) == 7
        assert isinstance(client.received[0], SettingsFrame)
        assert "ACK" not in client.received[0].flags
    served.undisturbed()
