"""The upstream changes while calls run: three strict ends, each with windows and settings of its own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from support.h2_harness import ANSWERED, End, Ends, Fields, in_memory, prefixed
from support.relay_generation import COUNT, LIST, SEARCH, asked, collections, count, relay_generation
from support.site import Site

from tlsproxy.snapshot.generation import Generation
from tlsproxy.wire import http2
from tlsproxy.wire.http2 import FIRST_WINDOW, MAX_WINDOW, Code
from tlsproxy.wire.protobuf import delimited

pytestmark = pytest.mark.plain  # compiled code calls directly what the harness takes the place of

ENDED_WELL: Fields = [("grpc-status", "0")]
LARGE = 200_000
FOUND = delimited(1, b"found")
"""The answer to a tenant is looked into."""


@pytest.fixture(scope="module")
def generations(site: Site) -> list[Generation]:
    return [relay_generation(site, upstream=f"http://127.0.0.{n}:1") for n in (1, 2, 3)]


@pytest.fixture(autouse=True, scope="module")
def _memory() -> Iterator[None]:
    yield from in_memory()


@pytest.fixture
def ends(generations: list[Generation]) -> Ends:
    ends = Ends(generations[0], dialled=False)
    ends.connect()
    return ends


def arrives(ends: Ends) -> None:
    """Everything sent arrives, and nobody grants anything for it."""
    while ends.flush():
        pass


def until_quiet(ends: Ends, *readers: End) -> None:
    """These read what they are sent, all if none is named, until there is no more."""
    moving = True
    while moving:
        for end in readers or (ends.client, *(end for _, end in ends.ups)):
            end.read()
        moving = ends.flush()


def called(ends: Ends, message: bytes | None = None, path: str = SEARCH, role: str = "plain") -> tuple[int, End]:
    """A call, whole with its message, else begun: its stream, and the upstream's end that has it."""
    stream = ends.client.open(asked(path, role))
    if message is not None:
        ends.client.say(stream, message, [])
    arrives(ends)
    return stream, ends.at(stream)


def answer(end: End, stream: int, message: bytes = FOUND) -> None:
    end.connection.send_headers(stream, ANSWERED)
    end.say(stream, prefixed(message), ENDED_WELL)


def moved(ends: Ends, generation: Generation) -> tuple[int, End]:
    """The upstream is elsewhere: a call that goes there."""
    ends.publish(generation)
    return called(ends)


def lost(ends: Ends, upstream: End) -> None:
    stream = next(up for up, end in ends.ups if end is upstream)
    stream.abort()
    stream.handler.connection_lost(None)


def balanced(ends: Ends) -> bool:
    """Whether each side may send what the other has room for, and no more."""
    relay, client, upstream = ends.relay, ends.client, ends.upstream
    return (client.window_out(), upstream.window_out()) == (
        upstream.window_in() + relay.to_upstream.debt,
        client.window_in() + relay.to_client.debt,
    )


@pytest.mark.parametrize("first", [0, 1])
def test_a_larger_window_of_the_client(ends: Ends, generations: list[Generation], first: int) -> None:
    """Neither upstream uses it before the client knows that it may, whichever hears of it first."""
    ends.client.settings(INITIAL_WINDOW_SIZE=1_000)
    calls = [called(ends, b""), moved(ends, generations[1])]
    for stream, end in calls:
        answer(end, stream, bytes(LARGE))
    arrives(ends)
    ends.client.settings(INITIAL_WINDOW_SIZE=5_000)
    slow = ends.ups.pop(first)
    arrives(ends)
    assert [len(ends.client.streams[stream].data) for stream, _ in calls][1 - first] == 5_000
    ends.ups.insert(first, slow)
    until_quiet(ends)
    assert [len(ends.client.streams[stream].data) for stream, _ in calls] == [LARGE + 5] * 2


@pytest.mark.parametrize("first", [0, 1])
def test_a_smaller_window_of_the_client(ends: Ends, generations: list[Generation], first: int) -> None:
    """It is acknowledged when no upstream goes by the larger one any more."""
    calls = [called(ends, b""), moved(ends, generations[1])]
    ends.client.settings(INITIAL_WINDOW_SIZE=1_000)
    slow = ends.ups.pop(first)
    arrives(ends)
    assert ends.relay.to_client.initial.unsettled == 1
    for stream, end in calls:
        answer(end, stream, bytes(LARGE))
    ends.ups.insert(first, slow)
    until_quiet(ends)
    assert [len(ends.client.streams[stream].data) for stream, _ in calls] == [LARGE + 5] * 2
    assert ends.relay.to_client.initial.unsettled == 0


def test_an_answer_whose_client_had_no_room_when_the_upstream_changed(
    ends: Ends, generations: list[Generation]
) -> None:
    stream, end = called(ends, b"")
    answer(end, stream, bytes(LARGE))
    arrives(ends)
    assert end.window_out() == 0
    ends.publish(generations[1])
    until_quiet(ends)
    assert len(ends.client.streams[stream].data) == LARGE + 5


def test_a_reduced_answer_whose_client_had_no_room(ends: Ends, generations: list[Generation]) -> None:
    said = collections(*["docs"] * 20_000)
    stream, end = called(ends, prefixed(b""), LIST, "limited")
    answer(end, stream, said)
    arrives(ends)
    ends.publish(generations[1])
    until_quiet(ends)
    assert ends.client.streams[stream].data == prefixed(said)


def test_room_that_was_granted_while_a_connection_was_dialled(generations: list[Generation]) -> None:
    """The next upstream has it once."""
    ends = Ends(generations[0], dialled=False)
    stream, _ = called(ends, b"")
    ends.client.grant(0, 100_000)
    ends.client.settings(INITIAL_WINDOW_SIZE=1 << 20)
    arrives(ends)
    ends.publish(generations[1])
    ends.connect()
    arrives(ends)
    assert balanced(ends)
    answer(ends.at(stream), stream, bytes(LARGE))
    until_quiet(ends)
    assert len(ends.client.streams[stream].data) == LARGE + 5


@pytest.mark.parametrize("cancels", [True, False])
def test_what_waits_for_a_former_upstream_that_ends(
    ends: Ends,
    generations: list[Generation],
    cancels: bool,  # noqa: FBT001
) -> None:
    """The client has its room on the connection back."""
    stream, end = called(ends)
    end.settings(INITIAL_WINDOW_SIZE=0)
    ends.client.say(stream, bytes(1_000))
    ends.publish(generations[1])
    arrives(ends)
    other, _ = moved(ends, generations[2])
    until_quiet(ends)
    ends.client.say(stream, bytes(1_000))
    arrives(ends)
    if cancels:
        ends.client.cancel(stream)
        arrives(ends)
    else:
        lost(ends, end)
    assert not ends.session.formers
    until_quiet(ends)
    answer(ends.at(other), other)
    ends.client.say(other, b"", [])
    until_quiet(ends)
    assert balanced(ends)


def test_an_upload_that_its_former_upstream_does_not_read(ends: Ends, generations: list[Generation]) -> None:
    """Whatever the present upstream says of windows, the client ends where it would have with the former one."""
    stream, former = called(ends)
    ends.client.say(stream, bytes(LARGE), [])
    until_quiet(ends, former)
    other, present = moved(ends, generations[1])
    for size in (0, 1 << 30, 0, 1 << 30, 0, 1 << 30):
        present.settings(INITIAL_WINDOW_SIZE=size)
        until_quiet(ends, ends.client, present)
    former.grant(stream, LARGE)
    until_quiet(ends)
    assert len(former.streams[stream].data) == LARGE
    answer(former, stream)
    answer(present, other)
    ends.client.say(other, b"", [])
    until_quiet(ends)
    assert balanced(ends)


def test_windows_of_a_former_upstream_that_go_up_and_down(ends: Ends, generations: list[Generation]) -> None:
    stream, former = called(ends)
    ends.publish(generations[1])
    for size in (0, 1 << 30) * 4:
        former.settings(INITIAL_WINDOW_SIZE=size)
        until_quiet(ends)
    assert ends.client.connection.local_flow_control_window(stream) <= FIRST_WINDOW
    assert ends.client.connection.streams[stream].outbound_flow_control_window == 1 << 30


def test_the_largest_window_where_a_former_upstream_has_granted_some(ends: Ends, generations: list[Generation]) -> None:
    stream, former = called(ends)
    former.grant(stream, 1 << 24)
    _, present = moved(ends, generations[1])
    present.settings(INITIAL_WINDOW_SIZE=MAX_WINDOW)
    until_quiet(ends)
    ends.client.say(stream, bytes(LARGE), [])
    until_quiet(ends)
    assert len(former.streams[stream].data) == LARGE


def test_acknowledgements_that_wait_when_the_present_upstream_is_lost(
    ends: Ends, generations: list[Generation]
) -> None:
    """The next upstream hears of its own SETTINGS, and no sooner."""
    called(ends)
    stream, present = moved(ends, generations[1])
    ends.client.say(stream, bytes(1_000))
    present.settings(INITIAL_WINDOW_SIZE=0)
    ends.relay.pending_size += 1  # a call's DATA waits
    arrives(ends)
    ends.relay.pending_size = 0
    lost(ends, present)
    arrives(ends)
    stream, third = called(ends)
    assert third is not present
    until_quiet(ends)
    assert not ends.session.settings.unacknowledged
    answer(third, stream)
    ends.client.say(stream, b"", [])
    until_quiet(ends)
    assert ends.client.streams[stream].status == 0
    assert balanced(ends)


def test_an_upstream_changes_twice_while_a_message_waits(ends: Ends, generations: list[Generation]) -> None:
    """One that is written anew, which its first upstream has no room for."""
    message = prefixed(count(size=50_000))
    stream, first = called(ends, message, COUNT, "tenant")
    _, second = moved(ends, generations[1])
    moved(ends, generations[2])
    assert len(ends.session.formers) == 2
    for end in (first, second):
        end.settings(INITIAL_WINDOW_SIZE=10)
    until_quiet(ends)
    answer(first, stream)
    until_quiet(ends)
    assert ends.client.streams[stream].status == 0


def test_an_upstream_changes_again_before_the_client_has_heard_of_the_former_one(
    ends: Ends, generations: list[Generation]
) -> None:
    """Its acknowledgement then says nothing of the latest one, whose streams have less room."""
    called(ends)
    _, second = moved(ends, generations[1])
    second.settings(INITIAL_WINDOW_SIZE=LARGE)
    ends.flush()
    ends.publish(generations[2])
    ends.flush()
    assert ends.session.settings.still_measured


def test_an_upload_that_no_upstream_reads_holds_up_no_later_one(ends: Ends, generations: list[Generation]) -> None:
    """Both upstreams have the same windows, larger than the first ones are."""
    ends.made = lambda end: end.settings(INITIAL_WINDOW_SIZE=LARGE)
    stuck, former = called(ends)
    former.settings(INITIAL_WINDOW_SIZE=LARGE)
    until_quiet(ends)
    ends.client.say(stuck, bytes(4 * LARGE))
    arrives(ends)
    ends.publish(generations[1])
    stream, present = called(ends, bytes(4 * LARGE))
    until_quiet(ends, ends.client, present)
    assert len(present.streams[stream].data) == 4 * LARGE
    former.grant(0, LARGE)
    until_quiet(ends)
    assert len(former.streams[stuck].data) == 4 * LARGE


def test_an_upstream_of_fewer_streams_than_there_are_at_the_former_one(
    ends: Ends, generations: list[Generation]
) -> None:
    """Those are none of its streams: the client may open as many of it as it takes, and no more once they are over."""
    formers = [called(ends) for _ in range(3)]
    _, present = moved(ends, generations[1])
    present.settings(MAX_CONCURRENT_STREAMS=2)
    until_quiet(ends)
    assert ends.client.connection.remote_settings.max_concurrent_streams == 5
    assert called(ends)[1] is present
    for stream, end in formers:
        answer(end, stream)
        ends.client.say(stream, b"", [])
    until_quiet(ends)
    assert ends.client.connection.remote_settings.max_concurrent_streams == 2


def test_a_former_upstream_that_takes_no_more(ends: Ends, generations: list[Generation]) -> None:
    """Its GOAWAY is none of the client's concern: calls that it takes go on, those beyond can be made again."""
    taken, former = called(ends)
    beyond, _ = called(ends)
    moved(ends, generations[1])
    up = next(up for up, end in ends.ups if end is former)
    up.coming += http2.goaway(taken, Code.NO_ERROR)
    arrives(ends)
    assert ends.client.streams[beyond].reset == Code.REFUSED_STREAM
    answer(former, taken)
    ends.client.say(taken, b"", [])
    stream, present = called(ends, b"")
    answer(present, stream)
    until_quiet(ends)
    assert [ends.client.streams[one].status for one in (taken, stream)] == [0, 0]
    assert balanced(ends)


def test_a_present_upstream_that_was_slow_and_is_lost(ends: Ends, generations: list[Generation]) -> None:
    """Its client was not read meanwhile, and is read again."""
    running, former = called(ends, b"")
    moved(ends, generations[1])
    ends.up.stall(stalled=True)
    lost(ends, ends.upstream)
    stream, present = called(ends, b"")
    answer(present, stream)
    answer(former, running)
    until_quiet(ends)
    assert [ends.client.streams[one].status for one in (running, stream)] == [0, 0]
