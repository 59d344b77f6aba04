"""A query by examples, over a relay in memory: it waits until the upstream has said that they are the caller's."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
from qdrant_client import grpc as pb
from support.h2_harness import ANSWERED, Ends, Sent, in_memory, prefixed
from support.relay_generation import ROLES, asked, relay_generation
from support.site import Site

from tlsproxy.errors import Overloaded, UpstreamBroken
from tlsproxy.proxy.upstream.facts import CollectionFacts
from tlsproxy.qdrant.scoring import Facts
from tlsproxy.qdrant.tenant_examples import no_point
from tlsproxy.snapshot.generation import Generation

pytestmark = pytest.mark.plain  # compiled code calls directly what the harness takes the place of

QUERY = "/qdrant.Points/Query"
NOT_FOUND, PERMISSION_DENIED, UNAVAILABLE, DEADLINE_EXCEEDED = 5, 7, 14, 4
BY_EXAMPLE = pb.QueryPoints(collection_name="docs", query=pb.Query(nearest=pb.VectorInput(id=pb.PointId(num=3))))
LESS = ROLES | {"tenant": {"access": [{"collection": "other", "access": "r"}], "filter": {"tenant": "acme"}}}

_memory = pytest.fixture(autouse=True)(in_memory)


@pytest.fixture(autouse=True)
def _known_vectors(monkeypatch: pytest.MonkeyPatch) -> None:
    """A point may have a vector of any kind: what words weigh must be known."""
    monkeypatch.setattr(CollectionFacts, "known", lambda _facts, _collection: Facts((1, 20), frozenset({""})))


@pytest.fixture(scope="module")
def generation(site: Site) -> Generation:
    return relay_generation(site)


@pytest.fixture
def ends(generation: Generation) -> Ends:
    """A tenant's query, which has come whole."""
    ends = Ends(generation)
    ends.upstream.on_request = lambda stream, _: answer(ends, stream)
    ends.connect()
    ask(ends)
    return ends


def ask(ends: Ends) -> Sent:
    stream = ends.client.open(asked(QUERY, "tenant"))
    ends.client.say(stream, prefixed(BY_EXAMPLE.SerializeToString()), [])
    until_quiet(ends)
    return ends.client.streams[stream]


def answer(ends: Ends, stream: int) -> None:
    ends.upstream.connection.send_headers(stream, ANSWERED)
    ends.upstream.say(stream, prefixed(b""), [("grpc-status", "0")])


def until_quiet(ends: Ends) -> None:
    moving = True
    while moving:
        ends.client.read()
        ends.upstream.read()
        moving = ends.flush()


def outcome(ends: Ends) -> tuple[int | None, bytes]:
    """The status at the client, and what the upstream has had; nothing is held any more."""
    until_quiet(ends)
    assert not ends.relay.calls
    assert (ends.gateway.memory.held, ends.relay.pending_size, ends.relay.up) == (0, 0, [])
    (sent,) = ends.client.streams.values()
    return sent.status, b"".join(one.data for one in ends.upstream.streams.values())


def test_it_is_sent_once_the_examples_are_the_callers(ends: Ends) -> None:
    assert [one.data for one in ends.upstream.streams.values()] in ([], [b""])
    ((questions, _),) = ends.examples.asked
    assert [(one.collection, one.ids) for one in questions] == [("docs", (3,))]
    ends.examples.answer(None)
    status, sent = outcome(ends)
    assert status == 0
    keyword = pb.FieldCondition(key="tenant", match=pb.Match(keyword="acme"))
    assert pb.QueryPoints.FromString(sent[5:]).filter == pb.Filter(must=[pb.Condition(field=keyword)])


@pytest.mark.parametrize(
    ("verdict", "status"),
    [(no_point(3), NOT_FOUND), (UpstreamBroken("no"), UNAVAILABLE), (Overloaded("no"), UNAVAILABLE)],
    ids=lambda one: getattr(one, "reason", one),
)
def test_it_is_refused_else(ends: Ends, verdict: object, status: int) -> None:
    ends.examples.answer(verdict)
    assert outcome(ends) == (status, b"")


def cancelled(ends: Ends) -> None:
    ends.client.cancel(1)


def out_of_time(ends: Ends) -> None:
    ends.session.sweep(time.monotonic() + 10_000)


def without_upstream(ends: Ends) -> None:
    assert ends.up is not None
    ends.up.handler.connection_lost(None)


@pytest.mark.parametrize(
    ("event", "status"),
    [(cancelled, None), (out_of_time, DEADLINE_EXCEEDED), (without_upstream, UNAVAILABLE)],
)
@pytest.mark.parametrize("verdict", [None, no_point(3), UpstreamBroken("no")], ids=["own", "missing", "unknown"])
def test_an_answer_that_comes_too_late(
    ends: Ends, event: Callable[[Ends], None], status: int | None, verdict: object
) -> None:
    event(ends)
    until_quiet(ends)
    ends.examples.answer(verdict)
    assert outcome(ends) == (status, b"")


def test_rights_that_go_meanwhile(ends: Ends, site: Site) -> None:
    ends.manager.publish(relay_generation(site, LESS))
    ends.examples.answer(None)
    assert outcome(ends) == (PERMISSION_DENIED, b"")


def test_a_publication_of_the_same_rights(ends: Ends, site: Site) -> None:
    ends.manager.publish(relay_generation(site))
    ends.examples.answer(None)
    assert outcome(ends)[0] == 0


def test_another_upstream_is_asked_anew(ends: Ends, site: Site) -> None:
    elsewhere = relay_generation(site, rest="http://127.0.0.1:3")
    ends.manager.publish(elsewhere)
    ends.examples.answer(None)
    until_quiet(ends)
    assert len(ends.examples.asked) == 1
    ends.examples.refuses = Overloaded("no")
    ends.manager.publish(relay_generation(site))
    ends.examples.answer(None)
    assert outcome(ends) == (UNAVAILABLE, b"")


def test_the_upstream_that_is_asked_is_that_of_the_call(ends: Ends, site: Site) -> None:
    """A call that began at a former upstream ends there: by what that one said, never by another's answer."""
    late = ends.client.open(asked(QUERY, "tenant"))
    until_quiet(ends)
    elsewhere = "http://127.0.0.1:3"
    ends.manager.publish(relay_generation(site, upstream=elsewhere, rest=elsewhere))
    until_quiet(ends)
    ends.examples.answer(None)
    until_quiet(ends)
    ends.client.say(late, prefixed(BY_EXAMPLE.SerializeToString()), [])
    until_quiet(ends)
    first, second = ends.client.streams.values()
    assert (first.status, second.status) == (0, UNAVAILABLE)
    assert [bool(one.data) for one in ends.upstream.streams.values()] in ([True], [True, False])


def test_a_connection_that_drains_waits_for_it(ends: Ends) -> None:
    ends.session.drain()
    assert (len(ends.relay.calls), ends.down.closed) == (1, False)
    ends.examples.answer(None)
    assert ends.up is not None
    assert b"docs" in ends.up.written


def test_who_cannot_even_ask(generation: Generation) -> None:
    ends = Ends(generation)
    ends.connect()
    ends.examples.refuses = Overloaded("no")
    ask(ends)
    assert outcome(ends) == (UNAVAILABLE, b"")
