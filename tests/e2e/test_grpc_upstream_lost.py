"""An upstream that is not there, goes, or speaks something else: every open call is told, and the next one works."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import grpc
import pytest
from hyperframe.frame import GoAwayFrame
from support.gateway import Gateway
from support.grpc_channels import channel
from support.grpc_upstream import GrpcUpstream, never
from support.h2_raw_client import SEARCH, H2Client, h2, raw
from support.site import Site
from support.upstream import ScriptedUpstream

UNAVAILABLE = 14
SETTINGS = raw(4, 0, 0)


@contextmanager
def speaking(said: bytes, *, stays: bool = True) -> Iterator[str]:
    """An upstream that says this once something came, and ends then or with its client: its URL."""

    def serve() -> None:
        while True:
            try:
                sock, _ = server.accept()
            except OSError:
                return
            with sock:
                sock.recv(65536)
                sock.sendall(said)
                while stays and sock.recv(65536):
                    pass

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.getsockname()[1]}"
        finally:
            server.shutdown(socket.SHUT_RDWR)
            thread.join(20)


def test_nobody_there(site: Site, upstream: ScriptedUpstream) -> None:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port = sock.getsockname()[1]
    with Gateway(site.write_config(upstream.url, grpc=f"http://127.0.0.1:{port}")) as gateway:
        for _ in range(2):
            with channel(gateway, site) as their, pytest.raises(grpc.RpcError) as caught:
                their.unary_unary(SEARCH)(b"", timeout=10)
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        with h2(gateway, site) as client:
            stream = client.call()
            assert client.status(stream) == UNAVAILABLE
            assert client.goaway() == 0
        record = gateway.audited(reason="upstream_unreachable")
        assert (record["result"], record["grpc_status"]) == ("ok", UNAVAILABLE)
        with h2(gateway, site, "stranger") as client:
            assert client.status(client.call()) == 7


@pytest.mark.parametrize(
    "said",
    [
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        raw(6, 0, 0, bytes(8)),
        SETTINGS + raw(0, 0, 1, b"", length=20_000),
        SETTINGS + raw(1, 4, 1, b"\xff\xff\xff"),
        SETTINGS + raw(5, 4, 1, bytes(4)),
        SETTINGS + raw(1, 0, 1, b"\x88") + raw(6, 0, 0, bytes(8)),
        SETTINGS,
    ],
    ids=["HTTP/1", "no SETTINGS", "a large frame", "no HPACK", "a push", "an interrupted block", "an early end"],
)
def test_what_is_not_http2(site: Site, upstream: ScriptedUpstream, said: bytes) -> None:
    stays = said != SETTINGS
    with speaking(said, stays=stays) as url, Gateway(site.write_config(upstream.url, grpc=url)) as gateway:
        with h2(gateway, site) as client:
            assert client.status(client.call()) == UNAVAILABLE
            assert client.goaway() == 0
            assert client.ended()
        assert gateway.audited(reason="upstream_broken")["grpc_status"] == UNAVAILABLE


def test_it_goes_in_the_middle_of_calls(site: Site, upstream: ScriptedUpstream) -> None:
    with ExitStack() as stack:
        first = stack.enter_context(GrpcUpstream(never))
        gateway = stack.enter_context(Gateway(site.write_config(upstream.url, grpc=first.url)))
        client = stack.enter_context(h2(gateway, site))
        streams = {*(client.call() for _ in range(5)), client.open()}
        first.wait(6)
        first.stop()
        _all_unavailable(client, streams)
        assert client.ended()
        assert gateway.audited(grpc_status=UNAVAILABLE)["role"] == "admin"


def _all_unavailable(client: H2Client, streams: set[int]) -> None:
    for frame in client.frames():
        if isinstance(frame, GoAwayFrame):
            continue
        if frame.stream_id in streams and "END_STREAM" in frame.flags:
            fields = dict(client.decoder.decode(frame.data))  # type: ignore[attr-defined]
            assert int(fields["grpc-status"]) == UNAVAILABLE
            streams.discard(frame.stream_id)
        if not streams:
            return
    raise AssertionError(f"not told: {streams}")
