"""HTTP/2 to the letter: a client that sends the very frames that a test wants to send, and reads what comes back.

Frames are hyperframe's, field blocks are hpack's: an implementation beside the gateway's own.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import hpack
from hyperframe.frame import (
    DataFrame,
    Frame,
    GoAwayFrame,
    HeadersFrame,
    PingFrame,
    RstStreamFrame,
    SettingsFrame,
    WindowUpdateFrame,
)

from support.gateway import Gateway
from support.site import Site

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
SEARCH = "/qdrant.Points/Search"
F = TypeVar("F", bound=Frame)
Fields = list[tuple[str, str]]


def fields(path: str = SEARCH, *more: tuple[str, str], **pseudo: str) -> Fields:
    """Of a good call; ``pseudo`` (``method=``, ``scheme=``, ``authority=``) replaces what is usual."""
    usual = {"method": "POST", "scheme": "https", "path": path, "authority": "localhost"} | pseudo
    return [
        *((f":{name}", value) for name, value in usual.items()),
        ("te", "trailers"),
        ("content-type", "application/grpc"),
        *more,
    ]


def message(content: bytes = b"", flag: int = 0) -> bytes:
    return bytes((flag,)) + len(content).to_bytes(4, "big") + content


def raw(kind: int, flags: int, stream: int, payload: bytes = b"", length: int | None = None) -> bytes:
    """A frame that hyperframe would not write."""
    size = len(payload) if length is None else length
    return size.to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big") + payload


class H2Client:
    """``received`` are all frames that came, in their order."""

    def __init__(self, sock: ssl.SSLSocket) -> None:
        self.sock = sock
        self.encoder = hpack.Encoder()
        self.decoder = hpack.Decoder()
        self.received: list[Frame] = []
        self._data = b""
        self._stream = -1

    def start(self, **settings: int) -> None:
        """The preface; ``settings`` by their names in hyperframe: ``INITIAL_WINDOW_SIZE=0``."""
        values = {getattr(SettingsFrame, name): value for name, value in settings.items()}
        self.send(PREFACE, SettingsFrame(0, settings=values))

    def send(self, *frames: Frame | bytes) -> None:
        self.sock.sendall(b"".join(one if isinstance(one, bytes) else one.serialize() for one in frames))

    def block(self, of: Fields | None = None, *, huffman: bool = True) -> bytes:
        return self.encoder.encode(fields() if of is None else of, huffman=huffman)

    def headers(self, of: Fields | None = None, stream: int | None = None, *flags: str) -> HeadersFrame:
        return HeadersFrame(self.next(stream), self.block(of), flags=["END_HEADERS", *flags])

    def next(self, stream: int | None = None) -> int:
        self._stream = self._stream + 2 if stream is None else stream
        return self._stream

    def open(self, of: Fields | None = None) -> int:
        """A call that has begun: its stream."""
        self.send(self.headers(of))
        return self._stream

    def call(self, content: bytes = b"", of: Fields | None = None) -> int:
        """A whole one: its stream."""
        stream = self.open(of)
        self.send(DataFrame(stream, message(content), flags=["END_STREAM"]))
        return stream

    def frames(self) -> Iterator[Frame]:
        """What comes, until the connection ends."""
        while True:
            while len(self._data) >= 9:
                frame, length = Frame.parse_frame_header(memoryview(self._data[:9]))
                if len(self._data) < 9 + length:
                    break
                frame.parse_body(memoryview(self._data[9 : 9 + length]))
                self._data = self._data[9 + length :]
                self.received.append(frame)
                yield frame
            try:
                data = self.sock.recv(65536)
            except (ConnectionError, ssl.SSLEOFError):
                return
            if not data:
                return
            self._data += data

    def until(self, kind: type[F], matches: Callable[[F], bool] = lambda _: True) -> F:
        """The next frame like this. Fails where the connection ends before."""
        for frame in self.frames():
            if isinstance(frame, kind) and matches(frame):
                return frame
        raise AssertionError(f"no {kind.__name__} before the end: {self.received}")

    def goaway(self) -> int:
        """The error code of the GOAWAY that ends the connection."""
        return self.until(GoAwayFrame).error_code

    def room(self, stream: int) -> int:
        """How much more of it there is next."""
        return self.until(WindowUpdateFrame, lambda frame: frame.stream_id == stream).window_increment

    def reset(self, stream: int) -> int:
        return self.until(RstStreamFrame, lambda frame: frame.stream_id == stream).error_code

    def fields(self, stream: int) -> dict[str, str]:
        """The next fields on the stream."""
        for frame in self.frames():
            if isinstance(frame, HeadersFrame):
                decoded = {str(name): str(value) for name, value in self.decoder.decode(frame.data)}
                if frame.stream_id == stream:
                    return decoded
        raise AssertionError(f"no fields on {stream}: {self.received}")

    def status(self, stream: int) -> int:
        """The call's gRPC status."""
        while True:
            got = self.fields(stream)
            if "grpc-status" in got:
                return int(got["grpc-status"])

    def statuses(self, streams: list[int]) -> dict[int, int]:
        """Those of all these calls, in whatever order they end."""
        got: dict[int, int] = {}
        while len(got) < len(streams):
            frame = self.until(HeadersFrame)
            decoded = {str(name): str(value) for name, value in self.decoder.decode(frame.data)}
            if frame.stream_id in streams and "grpc-status" in decoded:
                got[frame.stream_id] = int(decoded["grpc-status"])
        return got

    def lives(self) -> None:
        """The connection goes on: a ping comes back."""
        self.send(PingFrame(0, b"liveness"))
        self.until(PingFrame, lambda frame: "ACK" in frame.flags and frame.opaque_data == b"liveness")

    def grant(self, stream: int, size: int) -> None:
        self.send(WindowUpdateFrame(stream, size))

    def ended(self) -> bool:
        """Whether the gateway ends the connection: waits for it."""
        for _ in self.frames():
            pass
        return True


@contextmanager
def h2(gateway: Gateway, site: Site, client: str | None = "admin", **settings: Any) -> Iterator[H2Client]:
    """A connection that has begun with these settings."""
    context = site.client(client)
    context.set_alpn_protocols(["h2"])
    with gateway.connect(context, port=gateway.grpc_port) as sock:
        speaks = H2Client(sock)
        speaks.start(**settings)
        yield speaks
