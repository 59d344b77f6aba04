"""A key that is removed ends what is under way by it, in the same way over both protocols; the connections go on.

What will end is told before it does. (A rule goes with the key, so that `limits.mass_cut` holds both back meanwhile.)
"""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from hyperframe.frame import DataFrame
from support.gateway import DEADLINE, Gateway
from support.grpc_upstream import GrpcCall, GrpcUpstream
from support.h2_raw_client import SEARCH, fields, h2, message
from support.operator_tools import operator
from support.raw_connection import UPSERT, RawClient, connected
from support.site import CONFIG, Site
from support.upstream import OK, Connection, Received, ScriptedUpstream

KEY = "a key that is long enough to be one"
UNKNOWN = b"GET /unknown HTTP/1.1\r\nhost: h\r\n\r\n"
SENT = b"api-key: " + KEY.encode() + b"\r\n"
DELETE = b"DELETE /collections/docs HTTP/1.1\r\nhost: h\r\n" + SENT + b"\r\n"
READ = b"GET /collections/docs HTTP/1.1\r\nhost: h\r\n" + SENT + b"\r\n"
OVER, DENIED = 0, 7


class Upstreams:
    """Both take what comes, and answer once they are told to."""

    def __init__(self, rest: ScriptedUpstream, grpc: GrpcUpstream) -> None:
        self._here, self._go_on = threading.Semaphore(0), threading.Event()
        rest.answer, grpc.answer = self._answer, self._call
        self._loop = grpc.loop

    def wait(self, count: int) -> None:
        for _ in range(count):
            assert self._here.acquire(timeout=DEADLINE)

    def answer(self) -> None:
        self._go_on.set()

    def _answer(self, connection: Connection, request: Received) -> None:
        self._here.release()
        connection.read_body(request)
        self._go_on.wait(DEADLINE)
        connection.sock.sendall(OK)

    async def _call(self, call: GrpcCall) -> None:
        self._here.release()
        while await call.receive() is not None:
            pass
        await self._loop.run_in_executor(None, self._go_on.wait, DEADLINE)
        await call.send(b"")


@pytest.fixture
def upstreams(upstream: ScriptedUpstream, grpc_upstream: GrpcUpstream) -> Iterator[Upstreams]:
    both = Upstreams(upstream, grpc_upstream)
    yield both
    both.answer()


@pytest.mark.parametrize("answers", [True, False], ids=["answered in time", "never answered"])
def test_what_is_under_way(
    own_site: Site,
    upstream: ScriptedUpstream,
    grpc_upstream: GrpcUpstream,
    upstreams: Upstreams,
    answers: bool,  # noqa: FBT001
) -> None:
    """A change that the upstream has whole may be answered within `limits.expel_after`, and all else ends at once."""
    config = own_site.write_config(
        upstream.url,
        grpc=grpc_upstream.url,
        tls={"poll_interval": 60},
        service={"api_key": KEY},
        limits={"expel_after": 60 if answers else 0.3, "mass_cut": {"number": 0}},
    )
    key = ("api-key", KEY)
    with Gateway(config) as gateway:
        with (
            connected(gateway, own_site.client()) as change,
            connected(gateway, own_site.client()) as upload,
            connected(gateway, own_site.client()) as read,
            connected(gateway, own_site.client("search")) as searcher,
            h2(gateway, own_site) as calls,
        ):
            change.send(DELETE)
            upload.send(UPSERT, SENT, b"content-length: 1000000\r\n\r\n", bytes(1000))
            read.send(READ)
            changing = calls.call(b"", fields("/qdrant.Collections/Delete", key))
            uploading = calls.open(fields("/qdrant.Points/Upsert", key))
            calls.send(DataFrame(uploading, message(b"0123456789")[:7]))
            reading = calls.call(b"", fields(SEARCH, key))
            upstreams.wait(6)

            assert asks(searcher, UNKNOWN) == 404

            another = {"api_key": "another key that is long enough"}
            own_site.edit_config(config, service=another, identities=CONFIG["identities"][:2])
            foretold = "6 requests or calls under way ended on what stays (invalid_key 6)"
            code, _, error = operator(gateway, "reload")
            assert (code, error.count(foretold), "held back" in error) == (1, 2, True), error
            assert gateway.log.wait(lambda line: foretold in line and "held back" in line)
            code, out, _ = operator(gateway, "reload", "--dry-run")
            assert (code, "1 of 5 live connections cut (no_role 1)\n" in out, foretold in out) == (1, True, True)
            code, body = gateway.ask_admin("/reload?force=1", "POST")
            ended = json.loads(body)["consequences"]["ended"]
            assert (code, ended["count"], ended["reasons"]) == (200, 6, {"invalid_key": 6})
            assert Counter(each["protocol"] for each in ended["named"]) == {"rest": 3, "grpc": 3}
            assert [one.response().status for one in (upload, read)] == [403, 403]
            assert calls.statuses([uploading, reading]) == {uploading: DENIED, reading: DENIED}
            if answers:
                upstreams.answer()
            assert change.response().status == (200 if answers else 403)
            assert calls.status(changing) == (OVER if answers else DENIED)
            calls.lives()
            assert asks(change, DELETE) == 401
            metrics = gateway.ask_admin("/metrics")[1].splitlines()
        told = [record for record in gateway.stop() if record.get("reason") == "invalid_key"]
    lost = 4 if answers else 6
    of_rest, of_grpc = (Counter(map(words, filter(kind, told))) for kind in (is_rest, is_call))
    assert of_rest - Counter({("delete_collection", "denied"): 1}) == of_grpc
    assert of_grpc.total() == lost // 2
    assert f'tlsproxy_connections_ended_total{{reason="invalid_key"}} {lost}.0' in metrics


def asks(client: RawClient, request: bytes) -> int:
    client.send(request)
    return client.response().status


def is_call(record: dict[str, Any]) -> bool:
    return "grpc_status" in record


def is_rest(record: dict[str, Any]) -> bool:
    return "grpc_status" not in record


def words(record: dict[str, Any]) -> tuple[str, str]:
    """A search over gRPC ends like a read over REST."""
    kind = "read" if record["method"] in {"get_collection", "core_search_batch"} else record["method"]
    return kind, record["result"]
