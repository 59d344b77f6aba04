"""The bench's upstream answers as Qdrant does: what never changed would flatter a proxy that remembers heads."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from email.utils import parsedate_to_datetime

import h2.config
import h2.connection
import h2.events
import h2.settings
import httpx
import pytest
from support.bench import built

from bench.build import build
from bench.process import upstream

pytestmark = pytest.mark.timeout(180)  # it compiles
PATIENCE = 10.0
CORS = "Origin, Access-Control-Request-Method, Access-Control-Request-Headers"


@pytest.fixture(scope="module")
def ports(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[int, int]]:
    with upstream(build(built(tmp_path_factory)), 3 << 20) as behind:
        yield behind


def is_now(date: str) -> bool:
    return abs(parsedate_to_datetime(date).timestamp() - time.time()) < PATIENCE


def until_another(date: Callable[[], str]) -> None:
    """It changes with the second."""
    first, limit = date(), time.monotonic() + PATIENCE
    while date() == first:
        assert time.monotonic() < limit
        time.sleep(0.05)


def test_heads_of_http_are_those_of_actix(ports: tuple[int, int]) -> None:
    with httpx.Client(base_url=f"http://127.0.0.1:{ports[0]}", headers={"accept-encoding": "identity"}) as client:
        answer = client.get("/collections/items")
        date = answer.headers.pop("date")
        assert dict(answer.headers) == {"content-length": "200", "vary": CORS, "content-type": "application/json"}
        assert is_now(date)
        assert len(client.post("/collections/items/points/query", content=b"{}").content) == 2048
        assert len(client.get("/collections/items/snapshots/items.snapshot").content) == 3 << 20
        until_another(lambda: client.get("/").headers["date"])


def test_client_that_accepts_gzip_is_answered_in_chunks(ports: tuple[int, int]) -> None:
    """Of content that is none: who looks into it is no peer of ours."""
    with socket.create_connection(("127.0.0.1", ports[0]), timeout=PATIENCE) as sock, sock.makefile("rb") as answers:
        for path, length in (("/collections/items/points/query", 2048), ("/", 200)):
            sock.sendall(f"GET {path} HTTP/1.1\r\nhost: a\r\naccept-encoding: gzip\r\n\r\n".encode())
            head = [line.decode().strip() for line in iter(answers.readline, b"\r\n")]
            assert head[:-1] == [
                "HTTP/1.1 200 OK", "transfer-encoding: chunked", "content-encoding: gzip",
                f"vary: accept-encoding, {CORS}", "content-type: application/json",
            ]  # fmt: skip
            assert is_now(head[-1].removeprefix("date: "))
            assert int(answers.readline(), 16) == length
            assert answers.read(length + 2).endswith(b"\r\n")
            assert answers.read(5) == b"0\r\n\r\n"


@contextmanager
def caller(port: int, table: int) -> Iterator[Callable[[], list[tuple[str, str]]]]:
    """Makes a call, and gives the fields of its answer and of its trailers."""
    with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as sock:
        connection = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding="utf-8"))
        connection.local_settings = h2.settings.Settings(
            client=True, initial_values={h2.settings.SettingCodes.HEADER_TABLE_SIZE: table}
        )
        connection.initiate_connection()
        connection.decoder.max_allowed_table_size = table

        def call() -> list[tuple[str, str]]:
            stream = connection.get_next_available_stream_id()
            usual = [(":method", "POST"), (":scheme", "http"), (":path", "/qdrant.Points/Search"), (":authority", "a")]
            connection.send_headers(stream, [*usual, ("te", "trailers")], end_stream=True)
            fields: list[tuple[str, str]] = []
            while True:
                sock.sendall(connection.data_to_send())
                for event in connection.receive_data(sock.recv(65536)):
                    if isinstance(event, h2.events.ResponseReceived | h2.events.TrailersReceived):
                        fields += event.headers
                    elif isinstance(event, h2.events.DataReceived):
                        connection.acknowledge_received_data(event.flow_controlled_length, stream)
                    elif isinstance(event, h2.events.StreamEnded):
                        return [(str(name), str(value)) for name, value in fields]

        yield call


@pytest.mark.parametrize("table", [4096, 140, 0])
def test_fields_of_grpc_are_those_of_tonic(ports: tuple[int, int], table: int) -> None:
    """Also where the client has less room for its table than the upstream would use."""
    with caller(ports[1], table) as call:
        dates = []
        for _ in range(3):
            fields = call()
            assert [field for field in fields if field[0] != "date"] == [
                (":status", "200"), ("content-type", "application/grpc"), ("grpc-status", "0"),
            ]  # fmt: skip
            dates += [value for name, value in fields if name == "date"]
        assert len(dates) == 3
        assert all(map(is_now, dates))
        until_another(lambda: dict(call())["date"])
        call()
