"""The relay between two strict ends: windows, settings and field blocks are theirs, whatever the gateway puts in."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest
from support.h2_harness import ANSWERED, Ends, Fields, Sent, in_memory, prefixed
from support.relay_generation import COUNT, LIST, SEARCH, asked, collections, count, relay_generation
from support.site import Site

from tlsproxy.errors import BadRequest
from tlsproxy.proxy.grpc import client, relay, upstream
from tlsproxy.snapshot.generation import Generation
from tlsproxy.wire import http2
from tlsproxy.wire.protobuf import delimited

pytestmark = pytest.mark.plain  # compiled code calls directly what the harness takes the place of

ENDED_WELL: Fields = [("grpc-status", "0")]
FOUND = delimited(1, b"found")
"""The answer to a tenant is looked into."""


@pytest.fixture(scope="module")
def generation(site: Site) -> Generation:
    return relay_generation(site)


@pytest.fixture(autouse=True, scope="module")
def _memory() -> Iterator[None]:
    yield from in_memory()


@pytest.fixture
def ends(generation: Generation) -> Ends:
    return Ends(generation)


def answering(ends: Ends, message: bytes) -> None:
    """The upstream says this to whatever it is asked."""

    def answer(stream: int, _: Sent) -> None:
        ends.upstream.connection.send_headers(stream, ANSWERED)
        ends.upstream.say(stream, prefixed(message), ENDED_WELL)

    ends.upstream.on_request = answer


def begun(ends: Ends) -> None:
    ends.connect()
    unread(ends)


def unread(ends: Ends) -> None:
    """Everything sent arrives, and nobody grants anything for it."""
    while ends.flush():
        pass


def until_quiet(ends: Ends, *, upstream: bool = True) -> None:
    """The ends read what they are sent, until there is no more."""
    moving = True
    while moving:
        ends.client.read()
        if upstream:
            ends.upstream.read()
        moving = ends.flush()


def test_a_rebuilt_message_where_streams_begin_without_room(ends: Ends) -> None:
    """The upstream's grants of a stream are its client's to know."""
    ends.upstream.settings(INITIAL_WINDOW_SIZE=0)
    begun(ends)
    answering(ends, FOUND)
    stream = ends.client.open(asked(COUNT, "tenant"))
    ends.client.say(stream, prefixed(count(size=50_000)), [])
    until_quiet(ends)
    assert not ends.client.streams[stream].done
    ends.upstream.grant(stream, 10)
    until_quiet(ends)
    assert (ends.client.streams[stream].status, ends.client.streams[stream].data) == (0, prefixed(FOUND))


def test_our_data_waits_until_a_larger_window_is_acknowledged(ends: Ends) -> None:
    """RFC 9113 §6.5.3: who has sent SETTINGS is to be held by them once they are acknowledged, and no sooner."""
    ends.client.settings(INITIAL_WINDOW_SIZE=1_000)
    begun(ends)
    answering(ends, collections(*(["docs"] * 1_000)))
    stream = ends.client.open(asked(LIST, "limited"))
    ends.client.say(stream, prefixed(b""), [])
    unread(ends)
    assert len(ends.client.streams[stream].data) == 1_000
    ends.client.settings(INITIAL_WINDOW_SIZE=5_000)
    ends.flush(down=0)
    assert ends.down.written.startswith(http2.SETTINGS_ACK)
    unread(ends)
    assert len(ends.client.streams[stream].data) == 5_000


def test_what_waited_with_its_call_and_has_no_room_yet_stays_the_first(ends: Ends) -> None:
    """Room that is left for a small frame is not that frame's, while a larger one that came before it waits."""
    begun(ends)
    other = ends.client.open(asked(SEARCH, "plain"))
    unread(ends)
    ends.audit.full = True
    stream = ends.client.open(asked(SEARCH, "plain"))
    ends.client.say(stream, b"a" * 1_000)
    unread(ends)
    ends.relay.to_upstream.own(ends.relay.to_upstream.room - 1_500)
    ends.client.say(other, bytes(1_000))
    unread(ends)
    ends.audit.empty()
    ends.client.say(stream, b"b" * 10, [])
    unread(ends)
    ends.upstream.grant(0, 100_000)
    until_quiet(ends)
    assert ends.upstream.streams[stream].data == b"a" * 1_000 + b"b" * 10


def test_to_the_upstream_too(ends: Ends) -> None:
    ends.upstream.settings(INITIAL_WINDOW_SIZE=100)
    begun(ends)
    stream = ends.client.open(asked(COUNT, "tenant"))
    ends.client.say(stream, prefixed(count(size=20_000)), [])
    until_quiet(ends, upstream=False)
    assert ends.client.streams[stream].done
    assert len(ends.upstream.streams[stream].data) == 100
    ends.upstream.settings(INITIAL_WINDOW_SIZE=15_000)
    ends.flush(up=0)
    assert not ends.up.written
    unread(ends)
    assert len(ends.upstream.streams[stream].data) == 15_000


@pytest.mark.parametrize("size", [0, 100])
def test_a_client_that_has_no_room_for_a_table(ends: Ends, size: int) -> None:
    """RFC 7541 §4.2: it waits to be told, and the block that told it was of an answer that it was not given."""
    begun(ends)
    ends.client.settings(HEADER_TABLE_SIZE=size)
    begun(ends)
    first, second = (ends.client.open(asked(SEARCH, "plain")) for _ in range(2))
    ends.client.say(first, prefixed(b""), [])
    until_quiet(ends)
    ends.client.cancel(first)
    ends.flush(up=0)
    ends.upstream.connection.send_headers(first, ANSWERED)
    begun(ends)
    answering(ends, FOUND)
    ends.client.say(second, prefixed(b""), [])
    until_quiet(ends)
    assert ends.client.streams[second].status == 0


@pytest.mark.parametrize("size", [0, 100])
def test_an_upstream_that_has_no_room_for_a_table(ends: Ends, size: int) -> None:
    """That is between it and us: the client keeps the table that its fields are read with here."""
    ends.upstream.settings(HEADER_TABLE_SIZE=size)
    begun(ends)
    answering(ends, FOUND)
    stream = ends.client.open(asked(SEARCH, "plain"))
    ends.client.say(stream, prefixed(b""), [])
    until_quiet(ends)
    assert ends.client.streams[stream].status == 0
    assert ends.client.connection.remote_settings.header_table_size == 4096


def test_a_listing_never_opens_a_window_too_far(ends: Ends) -> None:
    """A client may make its windows as large as there are, whatever the upstream was granted for a listing."""
    begun(ends)
    stream = ends.client.open(asked(LIST, "limited"))
    begun(ends)
    ends.client.settings(INITIAL_WINDOW_SIZE=2**31 - 1)
    begun(ends)
    answering(ends, collections("docs"))
    ends.client.say(stream, prefixed(b""), [])
    until_quiet(ends)
    assert ends.client.streams[stream].status == 0


def test_a_listing_in_the_smallest_windows(ends: Ends) -> None:
    """A client that makes room twenty bytes at a time does what it must, and no flood of it."""
    ends.client.settings(INITIAL_WINDOW_SIZE=20)
    begun(ends)
    said = collections(*["docs"] * 6_000)
    answering(ends, said)
    stream = ends.client.open(asked(LIST, "limited"))
    ends.client.say(stream, prefixed(b""), [])
    until_quiet(ends)
    assert (ends.client.streams[stream].status, ends.client.streams[stream].data) == (0, prefixed(said))


def test_a_turn_is_written_as_one_however_busy_its_account_is(ends: Ends, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another connection of the account always has work: calls that are rebuilt, and answers that are reduced, do not
    wait one by one behind it.
    """
    for module in (client, upstream):
        monkeypatch.setattr(module, "SLICE", 60.0)  # a turn that ends early on a slow machine is written as two
    begun(ends)
    answering(ends, collections("docs"))
    assert ends.up is not None
    scheduler, neighbour = ends.gateway.scheduler, ends.relay.entry.beside()
    written: list[str] = []
    for side, stream in (("up", ends.up), ("down", ends.down)):
        write = stream.write
        monkeypatch.setattr(stream, "write", lambda data, side=side, write=write: (written.append(side), write(data)))

    def work() -> None:
        if len(ends.audit.lines) < 8:
            scheduler.add(neighbour, ends.down, work)

    work()
    streams = [ends.client.open(asked(*call)) for call in [(COUNT, "tenant"), (LIST, "limited")] * 4]
    for stream in streams:
        ends.client.say(stream, prefixed(count()), [])
    until_quiet(ends)
    assert {ends.client.streams[stream].ended for stream in streams} == {True}
    assert written.count("up") <= 3
    assert written.count("down") <= 3


def test_what_waits_is_bounded(ends: Ends) -> None:
    """A call waits for room in the audit log, and its client sends whatever windows say."""
    begun(ends)
    answering(ends, FOUND)
    ends.audit.full = True
    stream = ends.client.open(asked(SEARCH, "plain"))
    begun(ends)
    frame = (16_384).to_bytes(3, "big") + bytes(2) + stream.to_bytes(4, "big") + bytes(16_384)
    ends.down.coming += frame * 1_000
    ends.flush(down=0)
    assert ends.down.written.endswith(b"more DATA than the connection's window has room for")
    assert ends.relay.pending_size == 0
    assert ends.down.closed


@pytest.mark.parametrize("ends_well", [True, False])
def test_who_waited_goes_on(ends: Ends, ends_well: bool) -> None:  # noqa: FBT001
    """So does what its client said after what waits, whether it then may or is given up."""
    ends.upstream.settings(INITIAL_WINDOW_SIZE=1 << 20)
    begun(ends)
    ends.upstream.grant(0, 1 << 20)
    answering(ends, FOUND)
    unread(ends)
    ends.audit.full = True
    first = ends.client.open(asked(SEARCH, "plain"))
    ends.client.say(first, prefixed(bytes(1 << 19)), [])
    ends.audit.full = True
    unread(ends)
    assert not ends.down.reading
    assert ends.relay.pending_size <= 1 << 18
    second = ends.client.open(asked(SEARCH, "plain"))
    ends.client.say(second, prefixed(b""), [])
    unread(ends)
    ends.audit.full = False
    if ends_well:
        ends.audit.empty()
    else:
        ends.relay.calls[first].refuse(BadRequest("no more"))
    until_quiet(ends)
    assert [ends.client.streams[one].status for one in (first, second)] == [0 if ends_well else 3, 0]
    assert ends.relay.pending_size == 0


def test_frames_of_a_byte_that_wait_are_no_small_thing(ends: Ends) -> None:
    begun(ends)
    answering(ends, FOUND)
    ends.audit.full = True
    stream = ends.client.open(asked(SEARCH, "plain"))
    ends.audit.full = True
    unread(ends)
    call = ends.relay.calls[stream]
    for _ in range(600):  # no more than a turn at a time
        ends.session.data_received(http2.data(stream, b"x", end=False) * 10)
        ends.audit.full = True
        unread(ends)
    assert 4000 < len(call._held) < 6000
    assert sum(map(sys.getsizeof, call._held)) <= 1 << 18
    call.refuse(BadRequest("no more"))
    assert ends.relay.pending_size == 0


def test_padding_ends_here(ends: Ends) -> None:
    """gRPC's C library takes none. Its client has the room back, and the upstream sees what it may be sent."""
    begun(ends)
    answering(ends, FOUND)
    streams = [ends.client.open(asked(*one)) for one in ((SEARCH, "plain"), (COUNT, "limited"), (COUNT, "tenant"))]
    unread(ends)
    for turn in range(200):
        for stream in streams:
            message = prefixed(count(size=1_000))
            ends.client.connection.send_data(
                stream,
                message[turn * 4 : turn * 4 + 4] if turn < 199 else message[turn * 4 :],
                pad_length=255,
                end_stream=turn == 199,
            )
        ends.flush()
        ends.flush()
        assert ends.up.written.count(b"\x00\x08\x00") == 0
    until_quiet(ends)
    assert [ends.client.streams[stream].status for stream in streams] == [0, 0, 0]
    assert [len(ends.upstream.streams[stream].data) > 1_000 for stream in streams] == [True] * 3
    assert ends.client.connection.outbound_flow_control_window == 65_535


def test_an_answer_that_was_whole_before_the_upstream_broke_http2(ends: Ends) -> None:
    """Though both came at once: it is written down as given, and is given."""
    begun(ends)
    answering(ends, FOUND)
    whole, none = (ends.client.open(asked(SEARCH, "plain")) for _ in range(2))
    ends.client.say(whole, prefixed(b""), [])
    for _ in range(2):
        ends.flush(down=0)
    too_long = b"\xff\xff\xff" + bytes(6)
    ends.up.coming += ends.upstream.connection.data_to_send() + too_long
    unread(ends)
    assert (ends.client.streams[whole].status, ends.client.streams[whole].data) == (0, prefixed(FOUND))
    assert ends.client.streams[none].status == 14


# Requests of REST


def rest(method: str = "PUT") -> Fields:
    return [(":method", method), (":scheme", "https"), (":path", "/collections/docs"), (":authority", "localhost")]


def calls_work(ends: Ends) -> None:
    ends.connect()
    answering(ends, FOUND)
    stream = ends.client.open(asked(COUNT, "tenant"))
    ends.client.say(stream, prefixed(count()), [])
    until_quiet(ends)
    assert (ends.client.streams[stream].status, ends.client.streams[stream].data) == (0, prefixed(FOUND))


def test_the_body_of_a_request_of_rest_is_taken_to_its_end(ends: Ends) -> None:
    """Some clients read the response only then."""
    stream = ends.client.open(rest())
    ends.client.say(stream, bytes(300_000), [])
    until_quiet(ends)
    sent = ends.client.streams[stream]
    assert (dict(sent.fields)[":status"], sent.done, sent.reset) == ("421", True, None)
    assert b"REST over HTTP/1.1" in sent.data
    calls_work(ends)


@pytest.mark.plain  # the limit is a constant, which is compiled in
def test_a_longer_body_is_reset(ends: Ends, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay, "DROPPED", 100_000)
    stream = ends.client.open(rest())
    ends.client.say(stream, bytes(300_000), [])
    until_quiet(ends)
    sent = ends.client.streams[stream]
    assert (dict(sent.fields)[":status"], sent.done, sent.reset) == ("421", False, 0)
    calls_work(ends)


def test_bodies_of_responses_fit_into_the_clients_window(ends: Ends) -> None:
    """Without room the head comes alone; what was sent counts against the upstream's room."""
    streams = []
    for _ in range(600):
        streams.append(ends.client.open(rest("GET")))
        ends.client.connection.end_stream(streams[-1])
    unread(ends)
    bodies = [bool(ends.client.streams[stream].data) for stream in streams]
    assert bodies == sorted(bodies, reverse=True)
    assert 0 < sum(bodies) < len(bodies)
    assert all(ends.client.streams[stream].ended for stream in streams)
    until_quiet(ends)
    calls_work(ends)
