"""Whatever comes in one piece: each request is answered once, written down once, and gives back once what it took."""

from __future__ import annotations

from collections import Counter
from contextlib import ExitStack

import pytest
from support.gated_answers import GatedAnswer
from support.gateway import Gateway
from support.limit_answers import role
from support.raw_connection import connected
from support.site import Site
from support.upstream import ScriptedUpstream

MANY = 160
INFO = b"GET /collections/docs HTTP/1.1\r\nhost: h\r\n\r\n"
EMPTY_QUERY = b"POST /collections/docs/points/query HTTP/1.1\r\nhost: h\r\ncontent-length: 0\r\n\r\n"
EMPTY_CHUNKS = EMPTY_QUERY.replace(b"content-length: 0\r\n\r\n", b"transfer-encoding: chunked\r\n\r\n0\r\n\r\n")
BAD_QUERY = EMPTY_QUERY.replace(b"content-length: 0\r\n\r\n", b"content-length: 1\r\n\r\n{")
BAD_AUDIT = b"POST /audit/logs HTTP/1.1\r\nhost: h\r\ncontent-length: 0\r\n\r\n"
UNKNOWN = b"GET /nothing/here HTTP/1.1\r\nhost: h\r\n\r\n"


@pytest.mark.parametrize(
    ("client", "request_", "status"),
    [
        pytest.param("ingest", EMPTY_QUERY, 400, id="a body that is empty and must be read"),
        pytest.param("ingest", EMPTY_CHUNKS, 400, id="in chunks"),
        pytest.param("ingest", BAD_QUERY, 400, id="a body that is refused"),
        pytest.param("admin", BAD_AUDIT, 400, id="answered by the gateway"),
        pytest.param("admin", UNKNOWN, 404, id="no such route"),
        pytest.param("stranger", INFO, 403, id="no role"),
    ],
)
def test_as_many_as_come_in_one_write(
    site: Site, shared_upstream: ScriptedUpstream, shared_gateway: Gateway, client: str, request_: bytes, status: int
) -> None:
    del shared_upstream
    with connected(shared_gateway, site.client(client)) as speaks:
        speaks.send(request_ * MANY, INFO)
        answers = Counter(speaks.response().status for _ in range(MANY))
        assert answers == {status: MANY}
        assert speaks.response().status == (403 if client == "stranger" else 200)
    lines = Counter(shared_gateway.audited(status=status)["status"] for _ in range(MANY))
    assert lines == {status: MANY}
    assert not [line for line in shared_gateway.log.seen if "CRITICAL" in line]


def test_no_more_run_at_once_than_may(own_site: Site, upstream: ScriptedUpstream) -> None:
    """However many were refused before: what they took was given back once."""
    upstream.answer = held = GatedAnswer()
    limited = role([{"collection": "docs", "access": "rw"}], concurrent_requests=2)
    config = own_site.write_config(upstream.url, roles={"ingest": limited})
    with Gateway(config) as gateway, ExitStack() as stack:
        first = stack.enter_context(connected(gateway, own_site.client("ingest")))
        first.send(EMPTY_QUERY * MANY)
        assert [first.response().status for _ in range(MANY)] == [400] * MANY
        busy = [stack.enter_context(connected(gateway, own_site.client("ingest"))) for _ in range(2)]
        for client in busy:
            client.send(INFO)
        held.wait(2)
        for _ in range(8):
            more = stack.enter_context(connected(gateway, own_site.client("ingest")))
            more.send(INFO)
            assert more.response().status == 429
        held.release.set()
        assert [client.response().status for client in busy] == [200, 200]
