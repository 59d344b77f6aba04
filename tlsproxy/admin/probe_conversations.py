"""Questions to an upstream over one connection, in HTTP/1.1 and in gRPC over HTTP/2."""

from __future__ import annotations

import asyncio
import socket
import ssl
from contextlib import suppress
from dataclasses import replace
from http import HTTPStatus
from typing import Final

from tlsproxy.admin.upstream_findings import GOOD, Finding, Found
from tlsproxy.proxy.transport.records import MAX_HANDSHAKE, Records
from tlsproxy.proxy.upstream.collected_response import CollectedResponse
from tlsproxy.qdrant.own_key import DENIED, DENIED_STATUSES, refuses_call, refuses_request
from tlsproxy.qdrant.releases import version_in
from tlsproxy.tls.client_context import ClientTls, ServerRefused, server_refused
from tlsproxy.wire import http2
from tlsproxy.wire.field_block import FieldReader, Fields, write
from tlsproxy.wire.grpc import origin
from tlsproxy.wire.http1 import END
from tlsproxy.wire.http1_response import UNTIL_CLOSE, ResponseHead, parse_response
from tlsproxy.wire.http2 import ACK, CONTINUATION, DATA, END_HEADERS, END_STREAM, HEADER, HEADERS, Kind, Setting

AGENT: Final = b"tlsproxy-readiness"
LARGEST: Final = 1 << 16
"""Bytes of an answer that are read. What a longer one would say further is not needed."""
_REDIRECTS: Final = 300
"""From this status on `GET /` is no answer of Qdrant's, but of a proxy before it or of another server."""

_HEALTH: Final = b"/grpc.health.v1.Health/Check"
_PROTECTED: Final = b"/qdrant.Collections/List"
_NOT_SERVING: Final = b"\x08\x02"
"""The message `status: NOT_SERVING` of the health check."""
_NO_MESSAGE: Final = bytes(5)


class ProbeSocket:
    """Socket of a conversation, in plaintext or over TLS. ``heard``: the first bytes that came."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._records: Records | None = None
        self._behind = b""
        self._loop = asyncio.get_running_loop()
        self.heard = b""

    @property
    def encrypted(self) -> bool:
        return self._records is not None

    async def shake_hands(self, tls: ClientTls) -> None:
        """Speak TLS from now on. Raises OSError, of which ServerRefused has a reason."""
        records = Records(tls.context, tls.server_name)
        size = 0
        self._behind, done, answer = records.shake_hands(b"", tls.expected.judge)
        while not done:
            await self._send(answer)
            data = await self._loop.sock_recv(self._sock, LARGEST)
            size += len(data)
            if not data or size > MAX_HANDSHAKE:
                raise ServerRefused("closed", "the server ended the connection during the handshake")
            self._behind, done, answer = records.shake_hands(data, tls.expected.judge)
        await self._send(answer)
        if isinstance(done, ssl.SSLError):
            raise server_refused(done)
        if refusal := tls.refusal(records.tls):
            raise refusal
        self._records = records

    async def send(self, data: bytes) -> None:
        await self._send(data if self._records is None else self._records.sealed(data))

    async def _send(self, data: bytes) -> None:
        """A server that reads no more may have said why: that is received next."""
        with suppress(ConnectionError):
            await self._loop.sock_sendall(self._sock, data)

    async def receive(self) -> bytes:
        """Raises EOFError at the end."""
        data = await self._received() if self._records is None else await self._opened(self._records)
        self.heard = self.heard or data
        return data

    async def _received(self) -> bytes:
        data = await self._loop.sock_recv(self._sock, LARGEST)
        if not data:
            raise EOFError
        return data

    async def _opened(self, records: Records) -> bytes:
        """Plaintext. An error without any is the server's refusal of our certificate (TLS 1.3)."""
        data, received, self._behind = b"", self._behind, b""
        while not data:
            data, ended, answer = records.opened(received)
            if answer:
                await self._send(answer)
            if isinstance(ended, ssl.SSLError) and not data:
                raise server_refused(ended) if not self.heard else OSError(str(ended))
            if ended and not data:
                raise EOFError
            if not data:
                received = await self._received()
        return data

    def close(self) -> None:
        """Over TLS it ends well, by a close_notify: servers log other ends."""
        if self._records is not None:
            with suppress(OSError):
                self._sock.send(self._records.goodbye())
        self._sock.close()


class RestConversation:
    """``usable``: it may be asked again."""

    def __init__(self, sock: ProbeSocket, host: str, key: str | None) -> None:
        own = b"" if key is None else b"api-key: %b\r\n" % key.encode()
        self._fields = b"host: %b\r\nuser-agent: %b\r\n%b\r\n" % (host.encode(), AGENT, own)
        self._has_key = key is not None
        self.socket = sock
        self.usable = True

    async def ask(self) -> Found:
        """Raises OSError, EOFError, and ValueError for what is not HTTP/1.1."""
        status, body = await self._get(b"/")
        if refuses_request(status, body):
            return self._refused()
        if _REDIRECTS <= status != HTTPStatus.NOT_FOUND:
            return Found(Finding.FAILS, f"GET / with {status}")
        return replace(GOOD, version=version_in(body))

    async def is_ready(self) -> bool:
        """As :meth:`ask`: whether requests may be sent. One that knows no `/readyz` says so by answering."""
        status, _ = await self._get(b"/readyz")
        return status < _REDIRECTS or status == HTTPStatus.NOT_FOUND

    async def ask_for_key(self) -> Found:
        """As :meth:`ask`: whether our key is taken, where one is asked for."""
        status, _ = await self._get(b"/collections")
        return self._refused() if status in DENIED else GOOD

    def _refused(self) -> Found:
        return Found(Finding.KEY_REFUSED if self._has_key else Finding.KEY_MISSING)

    async def _get(self, path: bytes) -> tuple[int, bytes]:
        await self.socket.send(b"GET %b HTTP/1.1\r\n%b" % (path, self._fields))
        data = await self.socket.receive()
        while END not in data:
            if len(data) > LARGEST:
                raise ValueError("a head without an end")
            data += await self.socket.receive()
        head, _, body = data.partition(END)
        return await self._response(parse_response(head + END, to_head=False), body)

    async def _response(self, head: ResponseHead, data: bytes) -> tuple[int, bytes]:
        response = CollectedResponse()
        response.begin(head)
        response.feed(data)
        while not response.complete and len(response.content) <= LARGEST:
            try:
                response.feed(await self.socket.receive())
            except EOFError:
                if head.length != UNTIL_CLOSE:
                    raise
                break
        self.usable = self.usable and head.keep and response.complete
        return head.status, bytes(response.content)


class GrpcConversation:
    """``usable``: it may be asked again."""

    def __init__(self, sock: ProbeSocket, host: str, key: str | None) -> None:
        self._own: Fields = () if key is None else ((b"api-key", key.encode()),)
        self._origin = origin(host.encode(), tls=sock.encrypted)
        self.socket = sock
        self._frames = http2.Frames()
        self._reader: FieldReader[Fields] = FieldReader(LARGEST, lambda fields: fields, table=False)
        self._stream = -1
        self.usable = True

    async def ask(self) -> Found:
        """Raises OSError, EOFError, and ValueError for what is not HTTP/2."""
        return self._found(await self._call(_HEALTH))

    async def is_ready(self) -> bool:
        """As :meth:`ask`: whether calls may be made."""
        return (await self.ask()).finding is Finding.GOOD

    async def ask_for_key(self) -> Found:
        """As :meth:`ask`: whether our key is taken, where one is asked for."""
        answer = await self._call(_PROTECTED)
        return self._refused() if answer.denied else self._found(answer)

    def _refused(self) -> Found:
        return Found(Finding.KEY_REFUSED if self._own else Finding.KEY_MISSING)

    def _found(self, answer: _Answer) -> Found:
        if not answer.is_grpc:
            return Found(Finding.NO_GRPC)
        if answer.refuses_key:
            return self._refused()
        if answer.content[len(_NO_MESSAGE) :] == _NOT_SERVING:
            return Found(Finding.FAILS, "its health check with NOT_SERVING")
        return GOOD

    async def _call(self, method: bytes) -> _Answer:
        self._stream += 2
        begin = b""
        if self._stream == 1:
            begin = http2.PREFACE + http2.settings({Setting.HEADER_TABLE_SIZE: 0, Setting.ENABLE_PUSH: 0})
        fields = (
            (b":method", b"POST"),
            *self._origin,
            (b":path", method),
            (b"content-type", b"application/grpc"),
            (b"user-agent", AGENT),
            (b"te", b"trailers"),
            *self._own,
        )
        asked = http2.headers(self._stream, write(fields), 0) + http2.data(self._stream, _NO_MESSAGE, end=True)
        await self.socket.send(begin + asked)
        answer = _Answer()
        while not answer.ended:
            await self._read(answer)
        return answer

    async def _read(self, answer: _Answer) -> None:
        data = await self.socket.receive()
        out = b""
        frames = self._frames
        frames.begin(data)
        while frames.advance():
            kind, flags, stream = frames.what >> 8, frames.what & 0xFF, frames.stream
            payload = frames.data[frames.start + HEADER : frames.end]
            http2.check(kind, flags, stream, len(payload))
            if stream == 0:
                out += self._of_connection(kind, flags, payload)
            elif kind == DATA and payload:
                out += http2.window_update(0, len(payload))
            if stream == self._stream:
                self._of_stream(answer, kind, flags, payload)
        if answer.ended and not answer.closes:
            out += http2.reset(self._stream, http2.Code.CANCEL)
        if out:
            await self.socket.send(out)

    @staticmethod
    def _of_connection(kind: int, flags: int, payload: bytes) -> bytes:
        """The answer to a frame of the connection. Raises EOFError where the upstream ends it."""
        if kind == Kind.GOAWAY:
            raise EOFError
        if kind == Kind.SETTINGS and not flags & ACK:
            return http2.SETTINGS_ACK
        return http2.frame(Kind.PING, ACK, 0, payload) if kind == Kind.PING and not flags & ACK else b""

    def _of_stream(self, answer: _Answer, kind: int, flags: int, payload: bytes) -> None:
        if kind in {HEADERS, DATA}:
            answer.closes = flags & END_STREAM != 0
        if kind == DATA:
            answer.content += http2.unpadded(flags, payload)
        elif kind in {HEADERS, CONTINUATION}:
            answer.block += http2.fragment(flags, payload) if kind == HEADERS else payload
            if flags & END_HEADERS:
                answer.fields, answer.block = (*answer.fields, *self._reader.read(answer.block)), b""
        too_much = len(answer.content) + len(answer.block) > LARGEST // 2
        answer.ended = too_much or kind == Kind.RST_STREAM or (answer.closes and not answer.block)


class _Answer:
    """``ended``: as far as it is of interest. ``closes``: the stream ends with its last DATA or fields."""

    def __init__(self) -> None:
        self.fields: Fields = ()
        self.content = self.block = b""
        self.ended = self.closes = False

    @property
    def is_grpc(self) -> bool:
        named = dict(self.fields)
        return b"grpc-status" in named or named.get(b"content-type", b"").startswith(b"application/grpc")

    @property
    def refuses_key(self) -> bool:
        return refuses_call(self.fields)

    @property
    def denied(self) -> bool:
        """With any text, as no later version of Qdrant need have the words that we know."""
        return dict(self.fields).get(b"grpc-status") in DENIED_STATUSES
