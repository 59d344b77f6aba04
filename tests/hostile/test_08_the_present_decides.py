"""The present decides, to the last byte: what a client cannot do with a right that it had a moment ago."""

from __future__ import annotations

import asyncio
import json
import queue
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import Any, Self

import grpc
import pytest
from hyperframe.frame import DataFrame
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from qdrant_client import grpc as pb
from support.gated_answers import GatedAnswer
from support.gateway import DEADLINE, Gateway
from support.grpc_channels import call, channel
from support.grpc_upstream import GrpcCall, GrpcUpstream
from support.h2_raw_client import fields, h2, message
from support.polling import until
from support.raw_connection import GET, Truncated, connected
from support.raw_request import Client
from support.site import Site
from support.upstream import OK, Connection, Received, ScriptedUpstream, plain
from support.workers import at_each

from tlsproxy.authz.tokens import mint

KEY = "a key that is long enough to sign with"
LIST, UPSERT, COUNT = "/qdrant.Collections/List", "/qdrant.Points/Upsert", "/qdrant.Points/Count"
READ = ("GET", "/collections/docs")
PERMISSION_DENIED = grpc.StatusCode.PERMISSION_DENIED.value[0]

# Rights that change while a request is under way

DOCS = {"collection": "docs", "access": "rw"}
ROLES: dict[str, Any] = {
    "admin": {"access": "m"},
    "ingest": {"access": [DOCS, {"collection": "vectors", "access": "r"}]},
    "search": {"access": "r"},
    "tenant": {"access": [DOCS], "filter": {"tenant": "acme"}},
}
IDENTITIES = [
    {"name": "platform", "match": {"ou": "platform"}, "role": "admin"},
    {"name": "ingest-jobs", "match": {"cn": "ingest-*"}, "role": "ingest"},
    {"name": "tenants", "match": {"cn": "tenant-*"}, "role": "tenant"},
    {"name": "search-svc", "match": {"uri": "spiffe://example.org/search/*"}, "role": "search"},
]
NOW: dict[str, Any] = {
    "admin": {"access": "r"},
    "ingest": {"access": [{"collection": "docs", "access": "r"}]},
    "tenant": {"access": [{"collection": "docs", "access": "r"}], "filter": {"tenant": "acme"}},
}
"""What the roles may after a publication that takes from each of them what it is doing."""


class Taking:
    """An upstream that says when a request has ``begun``, and keeps those that came ``whole``."""

    def __init__(self) -> None:
        self.begun = threading.Semaphore(0)
        self.whole: list[bytes] = []

    def __call__(self, connection: Connection, request: Received) -> None:
        self.begun.release()
        self.whole.append(connection.read_body(request))
        connection.sock.sendall(OK)

    async def call(self, begun: GrpcCall) -> None:
        """The same over gRPC."""
        self.begun.release()
        while (received := await begun.receive()) is not None:
            self.whole.append(received)
        await begun.send(b"")

    def wait(self) -> None:
        assert self.begun.acquire(timeout=DEADLINE)


class Stage:
    """A gateway whose roles are those of ``ROLES`` at the beginning of each test."""

    def __init__(self, site: Site, workers: int = 1) -> None:
        self.site = site
        self.upstream, self.grpc_upstream = ScriptedUpstream(), GrpcUpstream()
        self.workers = workers
        self._answers = queue.SimpleQueue[bytes]()

    def __enter__(self) -> Self:
        self.upstream.__enter__()
        self.grpc_upstream.__enter__()
        self.config = self.site.write_config(
            self.upstream.url,
            grpc=self.grpc_upstream.url,
            roles=ROLES,
            identities=IDENTITIES,
            tls={"poll_interval": 60},
            limits={"drain_grace": 0, "expel_after": 0.3},
            upstream={"rest": self.upstream.url, "grpc": self.grpc_upstream.url},
            workers=self.workers,
        )
        self.gateway = Gateway(self.config).__enter__()
        return self

    def __exit__(self, *of: Any) -> None:  # noqa: PYI036
        try:
            self.gateway.__exit__(*of)
        finally:
            self.grpc_upstream.__exit__(*of)
            self.upstream.__exit__(*of)

    def publish(self, **sections: Any) -> None:
        """When it returns, that is what serves."""
        self.site.edit_config(self.config, **sections)
        status, body = self.gateway.ask_admin("/reload", "POST")
        assert status == 200, body

    def hold(self) -> Callable[[], None]:
        """Whatever comes waits for its :meth:`answer`. Returns what waits for the next request to be here, whole."""
        begun, self._answers = threading.Semaphore(0), queue.SimpleQueue[bytes]()
        answers = self._answers

        def answer(connection: Connection, request: Received) -> None:
            connection.read_body(request)
            begun.release()
            body = answers.get()
            connection.sock.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body))

        async def call(came: GrpcCall) -> None:
            while await came.receive() is not None:
                pass
            begun.release()
            await came.send(await asyncio.get_running_loop().run_in_executor(None, answers.get))

        def wait() -> None:
            assert begun.acquire(timeout=DEADLINE)

        self.upstream.answer, self.grpc_upstream.answer = answer, call
        return wait

    def hold_one(self) -> Callable[[], None]:
        """The same, where the upstream has one connection, so that others wait for it."""
        self.publish(upstream={"max_connections": 1})
        return self.hold()

    def answer(self, body: bytes) -> None:
        self._answers.put(body)

    def queued(self, count: int) -> None:
        """So many requests wait for a connection to the upstream."""
        until(lambda: f"upstream_waiting {count}.0" in self.gateway.ask_admin("/metrics")[1])

    def take_over(self) -> Taking:
        """Whatever comes is taken from here on."""
        taking = Taking()
        self.upstream.answer, self.grpc_upstream.answer = taking, taking.call
        return taking


def own(site: Site) -> Site:
    site.issue("tenant", client=True, common_name="tenant-1")
    return site


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    with Stage(own(Site(tmp_path_factory.mktemp("present")))) as running:
        yield running


@pytest.fixture
def stage(served: Stage) -> Iterator[Stage]:
    yield served
    for _ in range(4):  # requests that were ended may wait for them still
        served.answer(b"{}")
    served.upstream.answer = plain()
    served.publish(roles=ROLES, keys=[], limits={"expel_after": 0.3}, upstream={"max_connections": 256})


BODY = b'{"points": [{"id": 1}]' + b" " * 150_000 + b"}"
"""Too large to be read before the upstream hears of it."""
HALF = len(BODY) // 2
LENGTH = b"content-length: %d\r\n\r\n" % len(BODY)
CHUNKED = b"transfer-encoding: chunked\r\n\r\n"
PUT = b"PUT /collections/docs/points HTTP/1.1\r\nhost: h\r\n"
RECOVER = (
    b"POST /collections/docs/snapshots/upload HTTP/1.1\r\nhost: h\r\ncontent-type: multipart/form-data; boundary=b\r\n"
)


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


@pytest.mark.parametrize(
    ("client", "head", "first", "rest", "reason"),
    [
        ("ingest", PUT + LENGTH, BODY[:HALF], BODY[HALF:], "needs_write"),
        ("ingest", PUT + CHUNKED, chunk(BODY[:HALF]), chunk(BODY[HALF:]) + b"0\r\n\r\n", "needs_write"),
        ("admin", PUT + LENGTH, BODY[:HALF], BODY[HALF:], "needs_manage"),
        ("admin", RECOVER + LENGTH, BODY[:HALF], BODY[HALF:], "needs_manage"),
    ],
    ids=["length", "chunked", "of all rights", "snapshot"],
)
def test_the_rest_of_a_body_does_not_pass(
    stage: Stage, client: str, head: bytes, first: bytes, rest: bytes, reason: str
) -> None:
    taking = stage.take_over()
    with connected(stage.gateway, stage.site.client(client)) as sent:
        sent.send(head, first)
        taking.wait()
        stage.publish(roles=NOW)
        refused = sent.response()
        assert (refused.status, taking.whole) == (403, [])
        if refused.fields.get("connection") == "close":
            assert sent.ended()
        else:  # the connection is its certificate's, and goes on
            sent.send(rest, b"GET /healthz HTTP/1.1\r\nhost: h\r\n\r\n")
            assert sent.response().status == 200
    assert [body for body in taking.whole if body] == []
    assert stage.gateway.audited(status=403, reason=reason)


@pytest.mark.parametrize("client", ["admin", "ingest", "tenant"])
def test_the_rest_of_a_message_does_not_pass(stage: Stage, client: str) -> None:
    """Whether it is relayed, followed, or made anew."""
    taking = stage.take_over()
    whole = message(pb.UpsertPoints(collection_name="docs", points=[pb.PointStruct()]).SerializeToString())
    with h2(stage.gateway, stage.site, client) as sent:
        stream = sent.open(fields(UPSERT))
        sent.send(DataFrame(stream, whole[:12]))
        sent.lives()
        stage.publish(roles=NOW)
        assert sent.status(stream) == PERMISSION_DENIED
        sent.send(DataFrame(stream, whole[12:], flags=["END_STREAM"]))
        assert sent.status(sent.call(b"", fields("/qdrant.Qdrant/HealthCheck"))) == 0
    assert [body for body in taking.whole if body] == []
    assert stage.gateway.audited(grpc_status=PERMISSION_DENIED)["reason"] in {"needs_write", "needs_manage"}


LOOKUP = b'{"query": 7, "lookup_from": {"collection": "vectors"}}'
QUERY = b"POST /collections/docs/points/query HTTP/1.1\r\nhost: h\r\nexpect: 100-continue\r\n"
NO_LOOKUP = {**ROLES, "ingest": {"access": [DOCS]}}


@pytest.mark.parametrize("framing", ["length", "chunked"])
@pytest.mark.parametrize(
    ("before", "after", "status"),
    [
        (ROLES, NO_LOOKUP, 403),
        (NO_LOOKUP, ROLES, 200),
        (NO_LOOKUP, {**ROLES, "ingest": {"access": "r"}}, 200),
        (ROLES, {**ROLES, "ingest": ROLES["tenant"]}, 403),
        ({**ROLES, "ingest": {"access": "r"}}, ROLES, 200),
        ({**ROLES, "ingest": {"access": "r"}}, NO_LOOKUP, 403),
    ],
    ids=["less", "more", "all", "a tenant's", "no longer all", "too little"],
)
def test_a_body_is_decided_by_the_rights_of_its_last_byte(
    stage: Stage, before: dict[str, Any], after: dict[str, Any], status: int, framing: str
) -> None:
    """Not by those of its head: neither more nor less than these."""
    taking = stage.take_over()
    stage.publish(roles=before)
    with connected(stage.gateway, stage.site.client("ingest")) as sent:
        chunked = framing == "chunked"
        sent.send(QUERY, CHUNKED if chunked else b"content-length: %d\r\n\r\n" % len(LOOKUP))
        assert sent._until(b"\r\n\r\n") == b"HTTP/1.1 100 Continue"
        first, rest = LOOKUP[:20], LOOKUP[20:]
        sent.send(chunk(first) if chunked else first)
        stage.publish(roles=after)
        sent.send(chunk(rest) + b"0\r\n\r\n" if chunked else rest)
        assert sent.response().status == status
    bodies = [body for body in taking.whole if body]  # questions about the collection have none
    assert bodies == ([LOOKUP] if status == 200 else [])


@pytest.mark.parametrize(
    ("client", "filtered", "reason"),
    [
        ("ingest", {}, "collection"),
        ("tenant", {"filter": {"tenant": "umbrella"}}, "not_confined"),
        ("tenant", {**ROLES["tenant"], "queries": {"payload": {"hide": ["salary"]}}}, "query_policy"),
    ],
    ids=["a collection that is looked up", "the points of a tenant", "a key that is hidden now"],
)
@pytest.mark.parametrize("protocol", ["REST", "gRPC"])
def test_what_a_body_asked_for_is_not_learned_any_more(
    stage: Stage, client: str, filtered: dict[str, Any], reason: str, protocol: str
) -> None:
    """The upstream is about to answer what was allowed when it was asked, of another collection, or of other points."""
    begun = stage.hold()
    after = {**ROLES, client: {"access": [DOCS], **filtered}}
    if protocol == "REST":
        with connected(stage.gateway, stage.site.client(client)) as sent:
            body = LOOKUP if client == "ingest" else b'{"limit": 1}'
            path = b"query" if client == "ingest" else b"scroll"
            length = b"content-length: %d" % len(body)
            sent.send(b"POST /collections/docs/points/%b HTTP/1.1\r\nhost: h\r\n%b\r\n\r\n%b" % (path, length, body))
            begun()
            stage.publish(roles=after)
            assert sent.response().status == 403
        assert stage.gateway.audited(status=403, reason=reason)
        return
    with h2(stage.gateway, stage.site, client) as calls:
        lookup = pb.LookupLocation(collection_name="vectors") if client == "ingest" else None
        query = pb.QueryPoints(collection_name="docs", lookup_from=lookup)
        asked = pb.CountPoints(collection_name="docs") if client == "tenant" else query
        path = COUNT if client == "tenant" else "/qdrant.Points/Query"
        stream = calls.call(asked.SerializeToString(), fields(path))
        begun()
        stage.publish(roles=after)
        assert calls.status(stream) == PERMISSION_DENIED
        calls.lives()
    assert stage.gateway.audited(grpc_status=PERMISSION_DENIED, reason=reason)


@pytest.mark.parametrize("protocol", ["REST", "gRPC"])
def test_a_listing_shows_what_may_be_known_when_it_is_shown(stage: Stage, protocol: str) -> None:
    begun = stage.hold()
    names = ["docs", "other", "vectors"]
    after = {**ROLES, "ingest": {"access": [DOCS, {"collection": "other", "access": "r"}]}}
    if protocol == "REST":
        with connected(stage.gateway, stage.site.client("ingest")) as sent:
            sent.send(GET)
            begun()
            stage.publish(roles=after)
            stage.answer(json.dumps({"result": {"collections": [{"name": name} for name in names]}}).encode())
            shown = [one["name"] for one in json.loads(sent.response().body)["result"]["collections"]]
    else:
        found = pb.ListCollectionsResponse(collections=[pb.CollectionDescription(name=name) for name in names])
        with h2(stage.gateway, stage.site, "ingest") as calls:
            stream = calls.call(b"", fields(LIST))
            begun()
            stage.publish(roles=after)
            stage.answer(found.SerializeToString())
            data = calls.until(DataFrame, lambda frame: frame.stream_id == stream).data
            shown = [one.name for one in pb.ListCollectionsResponse.FromString(data[5:]).collections]
    assert shown == ["docs", "other"]


@pytest.mark.parametrize("protocol", ["REST", "gRPC"])
def test_a_listing_of_all_is_not_shown_to_who_may_know_a_part(stage: Stage, protocol: str) -> None:
    begun = stage.hold()
    after = {**ROLES, "search": {"access": [DOCS]}}
    if protocol == "REST":
        with connected(stage.gateway, stage.site.client("search")) as sent:
            sent.send(GET)
            begun()
            stage.publish(roles=after)
            assert sent.response().status == 403
    else:
        with h2(stage.gateway, stage.site, "search") as calls:
            stream = calls.call(b"", fields(LIST))
            begun()
            stage.publish(roles=after)
            assert calls.status(stream) == PERMISSION_DENIED
    assert stage.gateway.audited(reason="unfiltered_listing")


def test_the_rest_of_a_download_does_not_come(stage: Stage) -> None:
    sending, go_on = threading.Event(), threading.Event()

    def answer(connection: Connection, _request: Received) -> None:
        connection.sock.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 1000000\r\n\r\n" + bytes(1000))
        sending.set()
        go_on.wait(DEADLINE)
        connection.sock.sendall(bytes(999_000))

    stage.upstream.answer = answer
    with connected(stage.gateway, stage.site.client("search")) as sent:
        sent.send(b"GET /collections/docs/snapshots/s.snapshot HTTP/1.1\r\nhost: h\r\n\r\n")
        assert sent.head().status == 200
        assert sending.wait(DEADLINE)
        stage.publish(roles={"search": {"access": [{"collection": "docs", "access": "prw"}]}})
        go_on.set()
        with pytest.raises(Truncated):
            sent._exactly(1_000_000)
    assert stage.gateway.audited(status=200, reason="needs_extras")


def test_what_waits_for_a_slow_reader_goes_with_its_connection(stage: Stage) -> None:
    """However slowly it is read."""
    stage.upstream.answer = plain(b"HTTP/1.1 200 OK\r\ncontent-length: 4000000\r\n\r\n" + bytes(4_000_000))
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.settimeout(DEADLINE)
        sock.connect(("127.0.0.1", stage.gateway.port))
        with stage.site.client("search").wrap_socket(sock, server_hostname="localhost") as reader:
            reader.sendall(GET)
            assert reader.recv(12) == b"HTTP/1.1 200"
            stage.publish(identities=IDENTITIES[:-1])
            stage.gateway.audited(event="connection", reason="no_role")
            until(lambda: not json.loads(stage.gateway.ask_admin("/status")[1])["connections"]["open"])
    stage.publish(identities=IDENTITIES)


@pytest.mark.parametrize("answers", [True, False], ids=["in time", "never"])
@pytest.mark.parametrize("protocol", ["REST", "gRPC"])
def test_the_outcome_of_a_change_that_is_made_is_told_for_a_while(stage: Stage, protocol: str, answers: bool) -> None:  # noqa: FBT001
    """The upstream had all of it before the right went; `limits.expel_after` ends the wait for its answer."""
    begun = stage.hold()
    if answers:
        stage.publish(limits={"expel_after": 60})
    if protocol == "REST":
        with connected(stage.gateway, stage.site.client("admin")) as sent:
            sent.send(b"DELETE /collections/docs HTTP/1.1\r\nhost: h\r\n\r\n")
            begun()
            stage.publish(roles=NOW)
            if answers:
                stage.answer(b"{}")
            assert sent.response().status == (200 if answers else 403)
            sent.send(b"DELETE /collections/docs HTTP/1.1\r\nhost: h\r\n\r\n")
            assert sent.response().status == 403
        return
    with h2(stage.gateway, stage.site) as calls:
        stream = calls.call(b"", fields("/qdrant.Collections/Delete"))
        begun()
        stage.publish(roles=NOW)
        if answers:
            stage.answer(b"")
        assert calls.status(stream) == (0 if answers else PERMISSION_DENIED)
        assert calls.status(calls.call(b"", fields("/qdrant.Collections/Delete"))) == PERMISSION_DENIED


def test_what_waits_for_a_connection_to_the_upstream_is_decided_when_it_gets_one(stage: Stage) -> None:
    begun = stage.hold_one()
    with (
        connected(stage.gateway, stage.site.client("search")) as first,
        connected(stage.gateway, stage.site.client("admin")) as less,
        connected(stage.gateway, stage.site.client("ingest")) as same,
    ):
        first.send(GET)
        begun()
        less.send(b"DELETE /collections/docs HTTP/1.1\r\nhost: h\r\n\r\n")
        same.send(b"PUT /collections/docs/points HTTP/1.1\r\nhost: h\r\n", LENGTH, BODY)
        stage.queued(2)
        stage.publish(roles={"admin": {"access": "r"}})
        stage.upstream.answer = taking = Taking()
        stage.answer(b"{}")
        assert [one.response().status for one in (first, less, same)] == [200, 403, 200]
    assert taking.whole == [BODY]


@pytest.mark.parametrize(("looks_up", "status"), [("docs", 200), ("vectors", 403)])
def test_what_waits_is_carried_out_as_its_rights_ask_for_by_then(stage: Stage, looks_up: str, status: int) -> None:
    """A role of everything becomes one of a collection: the body is read after all, and the listing reduced."""
    begun = stage.hold_one()
    with (
        connected(stage.gateway, stage.site.client("admin")) as first,
        connected(stage.gateway, stage.site.client("search")) as query,
        connected(stage.gateway, stage.site.client("search")) as listing,
    ):
        first.send(GET)
        begun()
        body = b'{"query": 7, "lookup_from": {"collection": "%b"}}' % looks_up.encode()
        query.send(
            b"POST /collections/docs/points/query HTTP/1.1\r\nhost: h\r\ncontent-length: %d\r\n\r\n" % len(body), body
        )
        listing.send(GET)
        stage.queued(2)
        stage.publish(roles={"search": {"access": [DOCS]}})
        for _ in range(3):
            stage.answer(b'{"result": {"collections": [{"name": "docs"}, {"name": "other"}]}}')
        assert [one.response().status for one in (first, query)] == [200, status]
        assert json.loads(listing.response().body)["result"]["collections"] == [{"name": "docs"}]


def test_the_audit_log_is_read_by_who_may_read_it_now(stage: Stage) -> None:
    with connected(stage.gateway, stage.site.client("admin")) as sent:
        sent.send(b"POST /audit/logs HTTP/1.1\r\nhost: h\r\nexpect: 100-continue\r\ncontent-length: 2\r\n\r\n")
        assert sent._until(b"\r\n\r\n") == b"HTTP/1.1 100 Continue"
        stage.publish(roles=NOW)
        assert sent.response().status == 403


def test_who_keeps_the_right_loses_nothing(stage: Stage) -> None:
    """Whatever is under way when other rights change, and other settings."""
    taking = stage.take_over()
    site, gateway = stage.site, stage.gateway
    point = message(pb.UpsertPoints(collection_name="docs", points=[pb.PointStruct()]).SerializeToString())
    with (
        connected(gateway, site.client("ingest")) as whole,
        connected(gateway, site.client("tenant")) as confined,
        h2(gateway, site, "admin") as plain_calls,
        h2(gateway, site, "ingest") as followed,
        h2(gateway, site, "tenant") as rebuilt,
    ):
        whole.send(PUT, LENGTH, BODY[:HALF])
        confined.send(PUT, b"expect: 100-continue\r\n", LENGTH)
        assert confined._until(b"\r\n\r\n") == b"HTTP/1.1 100 Continue"
        confined.send(BODY[:HALF])
        streams = []
        for calls in (plain_calls, followed, rebuilt):
            streams.append(calls.open(fields(UPSERT)))
            calls.send(DataFrame(streams[-1], point[:12]))
            calls.lives()
        taking.wait()
        for place in range(3):
            wider = {**ROLES["tenant"], "access": [DOCS, {"collection": f"more-{place}", "access": "r"}]}
            stage.publish(roles={"search": {"access": [DOCS]}, "tenant": wider}, limits={"body_timeout": 20 + place})
        whole.send(BODY[HALF:])
        confined.send(BODY[HALF:])
        assert [one.response().status for one in (whole, confined)] == [200, 200]
        for calls, stream in zip((plain_calls, followed, rebuilt), streams, strict=True):
            calls.send(DataFrame(stream, point[12:], flags=["END_STREAM"]))
            assert calls.status(stream) == 0
    assert len(taking.whole) == 5


SENDERS = [(client, protocol) for client in ("admin", "ingest", "tenant") for protocol in ("REST", "gRPC")]
STEPS = st.one_of(
    st.tuples(st.just("send"), st.integers(0, len(SENDERS) - 1)),
    st.tuples(st.sampled_from(["take", "give"]), st.sampled_from(["admin", "ingest", "tenant"])),
)


class Sender:
    """One upsert, in pieces. ``kept``: there was no moment without the right; ``whole``: there was one with the right
    at which all of it had been sent, so that it may have been carried out by then.
    """

    def __init__(self, stage: Stage, stack: ExitStack, client: str, protocol: str, marker: int) -> None:
        self.client, self.kept, self.whole = client, True, False
        self.mark = b"%032d" % marker
        if protocol == "REST":
            self.rest = stack.enter_context(connected(stage.gateway, stage.site.client(client)))
            content = b'{"points": [{"id": 1, "payload": {"mark": "%b"}}]}' % self.mark
            content = PUT + b"content-length: %d\r\n\r\n" % len(content) + content
        else:
            self.calls = stack.enter_context(h2(stage.gateway, stage.site, client))
            self.stream = self.calls.open(fields(UPSERT))
            point = pb.PointStruct(payload={"mark": pb.Value(string_value=self.mark.decode())})
            content = message(pb.UpsertPoints(collection_name="docs", points=[point]).SerializeToString())
        self.protocol = protocol
        self.pieces = [content[start : start + 40] for start in range(0, len(content), 40)]

    def send(self) -> None:
        if self.pieces:
            piece, self.pieces = self.pieces[0], self.pieces[1:]
            with suppress(ConnectionError, ssl.SSLError):
                if self.protocol == "REST":
                    self.rest.send(piece)
                else:
                    self.calls.send(DataFrame(self.stream, piece, flags=[] if self.pieces else ["END_STREAM"]))

    def outcome(self) -> bool:
        """Whether it was carried out."""
        while self.pieces:
            self.send()
        if self.protocol == "REST":
            return self.rest.response().status == 200
        return self.calls.status(self.stream) == 0


@settings(max_examples=6, suppress_health_check=list(HealthCheck))
@given(st.lists(STEPS, min_size=3, max_size=12))
@example([("take", "tenant"), ("give", "tenant"), ("send", 5), ("send", 5), ("take", "tenant")])
def test_nothing_passes_after_the_right_went_and_nothing_ends_whose_right_stayed(
    served: Stage, steps: list[tuple[str, Any]]
) -> None:
    """Whatever is published while it is under way."""
    taking, roles = served.take_over(), dict(ROLES)
    with ExitStack() as stack:
        stack.callback(served.publish, roles=ROLES)
        senders = [Sender(served, stack, *sender, marker) for marker, sender in enumerate(SENDERS)]
        for step, whose in steps:
            if step == "send":
                senders[whose].send()
                continue
            for sender in senders:
                sender.whole |= roles[sender.client] == ROLES[sender.client] and not sender.pieces
            roles[whose] = (NOW if step == "take" else ROLES)[whose]
            served.publish(roles=roles)
            for sender in senders:
                sender.kept &= sender.client != whose or step == "give"
        for sender in senders:
            passed, has = sender.outcome(), roles[sender.client] == ROLES[sender.client]
            assert passed if sender.kept else not passed or has or sender.whole
            assert passed == any(sender.mark in body for body in taking.whole)


def test_every_worker_decides_by_the_present(tmp_path_factory: pytest.TempPathFactory) -> None:
    with Stage(own(Site(tmp_path_factory.mktemp("present-workers"))), workers=2) as stage, ExitStack() as stack:
        clients = [client for _, client in at_each(stage.gateway, stage.site, stack).values()]
        taking = stage.take_over()
        for client in clients:
            client.send(PUT, LENGTH, BODY[:HALF])
        taking.wait()
        taking.wait()
        stage.publish(roles=NOW)
        for client in clients:
            assert client.response().status == 403
        assert taking.whole == []


# A token that counts while a point exists


@dataclass
class Points:
    """An upstream in which there is the point, or not. ``asked`` counts the questions."""

    exists: bool = True
    asked: int = 0

    def __call__(self, connection: Connection, request: Received) -> None:
        request.body = connection.read_body(request)
        if "/scroll " not in request.line:
            connection.sock.sendall(OK)
            return
        self.asked += 1
        body = json.dumps({"result": {"points": [{"id": 1}] if self.exists else []}}).encode()
        connection.sock.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body))


@pytest.fixture(scope="module")
def conditional(
    site: Site, shared_upstream: ScriptedUpstream
) -> Iterator[tuple[Gateway, ScriptedUpstream, GrpcUpstream]]:
    service = {"verify_https_client_certificate": False, "api_key": KEY, "jwt_rbac": True}
    with (
        GrpcUpstream() as calls,
        Gateway(site.write_config(shared_upstream.url, grpc=calls.url, service=service)) as gateway,
    ):
        yield gateway, shared_upstream, calls


def token() -> tuple[str, str]:
    exists = {"collection": "users", "matches": [{"key": "name", "value": "alice"}]}
    return "api-key", mint(KEY, {"access": "m", "value_exists": exists})


def test_a_token_ends_with_its_point(site: Site, conditional: tuple[Gateway, ScriptedUpstream, GrpcUpstream]) -> None:
    """As Qdrant's own test has it: create the point, use the token, delete the point, expect refusal at once."""
    gateway, upstream, _ = conditional
    upstream.answer = points = Points()
    with Client(gateway, site.client(None)) as client, channel(gateway, site, None) as calls:
        for exists in (True, False, True, False):
            points.exists = exists
            assert client.ask(*READ, [token()]).status == (200 if exists else 401)
            code = grpc.StatusCode.OK if exists else grpc.StatusCode.UNAUTHENTICATED
            assert call(calls, LIST, b"", token()).code is code
    assert points.asked == 8


def test_a_request_never_shares_the_answer_to_a_question_that_was_sent_before_it_came(
    site: Site, conditional: tuple[Gateway, ScriptedUpstream, GrpcUpstream]
) -> None:
    """That answer may be from before the point was deleted. It waits for the next one, and so do all others."""
    gateway, upstream, _ = conditional
    points = Points()
    upstream.answer = first = GatedAnswer()
    with h2(gateway, site, None) as one, h2(gateway, site, None) as two:
        early = one.call(b"", fields(LIST, token()))
        first.wait(1)
        points.exists = False
        upstream.answer = points
        late = []
        for _ in range(50):
            opened = two.headers(fields(LIST, token()))
            late.append(opened.stream_id)
            two.send(opened, DataFrame(opened.stream_id, message(), flags=["END_STREAM"]))
        two.lives()  # all have come by now
        assert points.asked == 0
        first.release.set()
        assert one.status(early) == grpc.StatusCode.UNAVAILABLE.value[0]  # a plain answer says nothing of a point
        assert set(two.statuses(late).values()) == {grpc.StatusCode.UNAUTHENTICATED.value[0]}
    assert points.asked == 1
