"""What waits to go up is judged by the present: nothing of it reaches an upstream after its right went."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from qdrant_client import grpc as pb
from support.h2_harness import ANSWERED, Ends, in_memory, prefixed
from support.relay_generation import COUNT, ROLES, asked, count, relay_generation
from support.site import Site

from tlsproxy.snapshot.generation import Generation

pytestmark = pytest.mark.plain  # compiled code calls directly what the harness takes the place of

UPSERT = "/qdrant.Points/Upsert"
POINTS = prefixed(pb.UpsertPoints(collection_name="docs", points=[pb.PointStruct()]).SerializeToString())
READ = [{"collection": "docs", "access": "r"}]
LESS = {
    "plain": {"access": "r"},
    "limited": {"access": READ},
    "tenant": {"access": READ, "filter": {"tenant": "acme"}},
    "bounded": ROLES["bounded"] | {"access": READ},
}
PERMISSION_DENIED = 7


@pytest.fixture(autouse=True, scope="module")
def _memory() -> Iterator[None]:
    yield from in_memory()


@pytest.fixture(scope="module")
def generations(site: Site) -> tuple[Generation, Generation, Generation]:
    """One, the same again, and one of less rights."""
    return relay_generation(site), relay_generation(site), relay_generation(site, LESS)


def until_quiet(ends: Ends) -> None:
    moving = True
    while moving:
        ends.client.read()
        ends.upstream.read()
        moving = ends.flush()


@pytest.mark.parametrize("kept", [True, False], ids=["kept", "taken"])
@pytest.mark.parametrize("waits_for", ["a connection", "its standing", "room in the audit log"])
@pytest.mark.parametrize("role", list(ROLES))
def test_what_waits(generations: tuple[Generation, ...], role: str, waits_for: str, kept: bool) -> None:  # noqa: FBT001
    before, same, less = generations
    ends = Ends(before, dialled=waits_for != "a connection")
    ends.upstream.on_request = lambda stream, _: answer(ends, stream)
    ends.audit.full = waits_for == "room in the audit log"
    if ends.audit.full:
        ends.connect()
    stream = ends.client.open(asked(UPSERT, role))
    ends.client.say(stream, POINTS, [])
    if waits_for != "a connection":
        until_quiet(ends)
    ends.manager.publish(same if kept else less)
    ends.audit.empty()
    ends.connect()
    until_quiet(ends)
    sent = ends.client.streams[stream]
    assert sent.status == (0 if kept else PERMISSION_DENIED)
    assert any(one.data for one in ends.upstream.streams.values()) == kept
    again = ends.client.open(asked(COUNT, role))
    ends.client.say(again, prefixed(count()), [])
    until_quiet(ends)
    assert ends.client.streams[again].status == 0


def answer(ends: Ends, stream: int) -> None:
    ends.upstream.connection.send_headers(stream, ANSWERED)
    ends.upstream.say(stream, prefixed(b""), [("grpc-status", "0")])


@pytest.fixture(scope="module")
def bounded(site: Site) -> dict[int | None, Generation]:
    """By the largest limit of a role."""
    return {
        most: relay_generation(site, ROLES | {"limited": {"access": READ, "queries": {"max_limit": most}}})
        for most in (None, 3, 5, 9)
    }


@pytest.mark.parametrize(("former", "present"), [(None, 3), (5, 3), (5, 9), (5, None)])
@pytest.mark.parametrize("comes", ["its beginning", "all of it"])
def test_the_policy_of_a_call(
    bounded: dict[int | None, Generation], former: int | None, present: int | None, comes: str
) -> None:
    """A message goes on if it was rewritten by a policy as strict as the present one, or still can be."""
    ends = Ends(bounded[former])
    stream = ends.client.open(asked("/qdrant.Points/Scroll", "limited"))
    message = prefixed(pb.ScrollPoints(collection_name="docs").SerializeToString())
    whole = comes == "all of it"
    ends.client.say(stream, message if whole else message[:-2], [] if whole else None)
    until_quiet(ends)
    ends.connect()
    until_quiet(ends)
    ends.publish(bounded[present])
    until_quiet(ends)
    if not whole:
        ends.client.say(stream, message[-2:], [])
        until_quiet(ends)
    sent = ends.upstream.streams.get(stream)
    stricter = present is not None and (former is None or present < former)
    refused = stricter and (whole or former is None)
    assert ends.client.streams[stream].status == (PERMISSION_DENIED if refused else None)
    if not refused:
        most = former if whole else present
        assert sent is not None
        asked_for = pb.ScrollPoints.FromString(sent.data[5:])
        assert asked_for.limit == (0 if most is None else min(most, 10))


def test_a_confined_retrieval_stays_a_scroll(site: Site, generations: tuple[Generation, ...]) -> None:
    """Its message is one, whatever its caller may do by now, and whichever upstream gets it."""
    everything = relay_generation(site, ROLES | {"tenant": {"access": "m"}}, upstream="http://127.0.0.1:2")
    ends = Ends(generations[0], dialled=False)
    stream = ends.client.open(asked("/qdrant.Points/Get", "tenant"))
    message = pb.GetPoints(collection_name="docs", ids=[pb.PointId(num=3)])
    ends.client.say(stream, prefixed(message.SerializeToString()), [])
    until_quiet(ends)
    ends.manager.publish(everything)
    ends.made = lambda end: setattr(end, "on_request", lambda stream, _: answer(ends, stream))
    ends.connect()
    until_quiet(ends)
    assert ends.client.streams[stream].status == 0
    sent = ends.upstream.streams[stream]
    assert dict(sent.fields)[":path"] == "/qdrant.Points/Scroll"
    assert pb.ScrollPoints.FromString(sent.data[5:]).limit == 1


@pytest.mark.parametrize(("path", "message", "goes_on"), [(UPSERT, POINTS, True), (COUNT, prefixed(count()), False)])
def test_public_points_that_are_no_longer(site: Site, path: str, message: bytes, goes_on: bool) -> None:  # noqa: FBT001
    """A change was confined to the tenant's own, a read was not."""
    public = {"access": [{"collection": "docs", "access": "rw"}], "filter": {"tenant": "acme"}}
    ends = Ends(relay_generation(site, ROLES | {"tenant": public | {"or_public": {"seen": "all"}}}), dialled=False)
    ends.upstream.on_request = lambda stream, _: answer(ends, stream)
    stream = ends.client.open(asked(path, "tenant"))
    ends.client.say(stream, message, [])
    until_quiet(ends)
    ends.manager.publish(relay_generation(site, ROLES | {"tenant": public}))
    ends.connect()
    until_quiet(ends)
    assert ends.client.streams[stream].status == (0 if goes_on else PERMISSION_DENIED)
