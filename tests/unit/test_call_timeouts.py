"""Who an open call waits for, over a relay in memory, on a clock that the test sets."""

from __future__ import annotations

import json
import time
from collections.abc import Callable

import pytest
from support.h2_harness import ANSWERED, Ends, in_memory, prefixed
from support.relay_generation import SEARCH, asked, relay_generation
from support.site import Site

from tlsproxy.snapshot.generation import Generation

pytestmark = pytest.mark.plain  # compiled code calls directly what the harness takes the place of

WINDOW, LATE, RATE = 30, 300, 1024
"""`body_timeout` and `write_timeout`, `response_timeout`, `min_data_rate`."""
MOST, OF_SNAPSHOTS = 900, 1200
"""`max_response_timeout`, `snapshot_timeout`."""
SNAPSHOT = "/qdrant.Snapshots/CreateFull"
DEADLINE_EXCEEDED = 4

_memory = pytest.fixture(autouse=True)(in_memory)


class Clock:
    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(time, "monotonic", clock)
    return clock


@pytest.fixture(scope="module")
def generation(site: Site) -> Generation:
    return relay_generation(site, limits={"max_response_timeout": MOST, "snapshot_timeout": OF_SNAPSHOTS})


@pytest.fixture
def ends(clock: Clock, generation: Generation) -> Ends:
    assert clock.now == time.monotonic()
    ends = Ends(generation)
    ends.connect()
    moved(ends)
    return ends


def moved(ends: Ends) -> None:
    while ends.flush():
        pass


def lives(ends: Ends, clock: Clock, seconds: int, each: Callable[[], object] = lambda: None) -> int:
    """How long, of so many seconds, until a call has ended; ``each`` is what happens in every one."""
    for second in range(seconds):
        each()
        moved(ends)
        clock.now += 1
        if ends.down.deadline <= clock.now:
            ends.session.deadline_passed()
        moved(ends)
        if any(sent.over for sent in ends.client.streams.values()):
            return second + 1
    return seconds


def reason(ends: Ends) -> str:
    return str(json.loads(ends.audit.lines[-1])["reason"])


def test_a_message_has_the_window_and_a_look(ends: Ends, clock: Clock) -> None:
    stream = ends.client.open(asked(SEARCH, "plain"))
    ends.client.say(stream, prefixed(bytes(100))[:50])
    assert WINDOW <= lives(ends, clock, 1000) <= WINDOW + 2
    assert ends.client.streams[stream].status == DEADLINE_EXCEEDED
    assert reason(ends) == "client_timeout"


def test_a_byte_in_each_second_is_too_slow_whatever_came_before(ends: Ends, clock: Clock) -> None:
    stream = ends.client.open(asked(SEARCH, "plain"))
    ends.client.say(stream, prefixed(bytes(1 << 20))[:60_000])
    assert lives(ends, clock, 1000, lambda: ends.client.say(stream, b"\0")) <= 1.2 * WINDOW + 2


def test_one_at_the_lowest_rate_lives(ends: Ends, clock: Clock) -> None:
    stream = ends.client.open(asked(SEARCH, "plain"))
    ends.client.say(stream, prefixed(bytes(1 << 20))[:5])

    def each() -> None:
        ends.client.say(stream, bytes(RATE))
        ends.upstream.read()

    assert lives(ends, clock, 600, each) == 600


def test_the_calls_of_a_connection_keep_it_up_together(ends: Ends, clock: Clock) -> None:
    streams = [ends.client.open(asked(SEARCH, "plain")) for _ in range(8)]
    for stream in streams:
        ends.client.say(stream, prefixed(bytes(1 << 20))[:5])

    def each() -> None:
        for stream in streams:
            ends.client.say(stream, bytes(RATE // len(streams)))
        ends.upstream.read()

    assert lives(ends, clock, 600, each) == 600


def test_an_upstream_that_has_no_room_for_it_is_what_is_waited_for(ends: Ends, clock: Clock) -> None:
    stream = ends.client.open(asked(SEARCH, "plain"))
    ends.client.say(stream, prefixed(bytes(1 << 20)))
    moved(ends)
    assert ends.client.streams[stream].waiting
    assert LATE <= lives(ends, clock, 1000) <= LATE + 2
    assert reason(ends) == "upstream_timeout"


def test_one_that_takes_a_message_slowly_is_left_to(ends: Ends, clock: Clock) -> None:
    stream = ends.client.open(asked(SEARCH, "plain"))
    ends.client.say(stream, prefixed(bytes(1 << 20)))
    assert lives(ends, clock, 600, lambda: ends.upstream.grant(stream, 100)) == 600


def answers(ends: Ends, size: int) -> int:
    """A call whose answer is so large, and has begun."""

    def on_request(stream: int, _sent: object) -> None:
        ends.upstream.connection.send_headers(stream, ANSWERED)
        ends.upstream.say(stream, prefixed(bytes(size)), [("grpc-status", "0")])

    ends.upstream.on_request = on_request
    stream = ends.client.open(asked(SEARCH, "plain"))
    ends.client.say(stream, prefixed(b""), [])
    moved(ends)
    return stream


def test_an_answer_that_is_not_taken_is_its_clients_fault(ends: Ends, clock: Clock) -> None:
    stream = answers(ends, 1 << 20)
    assert WINDOW <= lives(ends, clock, 1000) <= 1.2 * WINDOW + 2
    assert ends.client.streams[stream].status == DEADLINE_EXCEEDED
    assert reason(ends) == "client_stalled"


@pytest.mark.parametrize("trickle", [1, 100])
def test_so_is_one_that_is_taken_in_a_trickle(ends: Ends, clock: Clock, trickle: int) -> None:
    stream = answers(ends, 1 << 20)
    assert lives(ends, clock, 1000, lambda: ends.client.grant(stream, trickle)) <= 1.2 * WINDOW + 2
    assert reason(ends) == "client_stalled"


def test_one_that_is_taken_at_the_lowest_rate_lives(ends: Ends, clock: Clock) -> None:
    stream = answers(ends, 1 << 20)
    assert lives(ends, clock, 300, lambda: ends.client.grant(stream, RATE)) == 300


def test_an_upstream_that_does_not_answer_is_not_waited_for_longer_for_what_its_client_grants(
    ends: Ends, clock: Clock
) -> None:
    stream = ends.client.open(asked(SEARCH, "plain"))
    ends.client.say(stream, prefixed(b""), [])
    assert LATE <= lives(ends, clock, 1000, lambda: ends.client.grant(stream, 1000)) <= LATE + 2
    assert reason(ends) == "upstream_timeout"


@pytest.mark.parametrize(
    ("path", "deadline", "seconds", "ended"),
    [
        pytest.param(SEARCH, b"10S", 10, "deadline_exceeded", id="shorter"),
        pytest.param(SEARCH, b"0n", 1, "deadline_exceeded", id="none left"),
        pytest.param(SEARCH, b"400000m", 400, "deadline_exceeded", id="longer than the upstream's"),
        pytest.param(SEARCH, b"99999999H", MOST, "upstream_timeout", id="longer than allowed"),
        pytest.param(SNAPSHOT, b"99999999H", OF_SNAPSHOTS, "upstream_timeout", id="a snapshot"),
        pytest.param(SNAPSHOT, b"", OF_SNAPSHOTS, "upstream_timeout", id="a snapshot without a deadline"),
        pytest.param(SNAPSHOT, b"1M", 60, "deadline_exceeded", id="a snapshot with a deadline"),
    ],
)
def test_an_upstream_has_the_time_that_the_client_has(
    ends: Ends, clock: Clock, path: str, deadline: bytes, seconds: int, ended: str
) -> None:
    own = [("grpc-timeout", deadline.decode())] if deadline else []
    stream = ends.client.open([*asked(path, "plain"), *own])
    ends.client.say(stream, prefixed(b""), [])
    assert seconds <= lives(ends, clock, 2000) <= seconds + 2
    assert ends.client.streams[stream].status == DEADLINE_EXCEEDED
    assert reason(ends) == ended


def test_an_answer_that_goes_on_ends_with_its_clients_deadline(ends: Ends, clock: Clock) -> None:
    stream = ends.client.open([*asked(SEARCH, "plain"), ("grpc-timeout", "20S")])
    ends.client.say(stream, prefixed(b""), [])
    moved(ends)
    ends.upstream.connection.send_headers(stream, ANSWERED)
    assert 20 <= lives(ends, clock, 100, lambda: ends.upstream.say(stream, prefixed(b"more"))) <= 22
    assert reason(ends) == "deadline_exceeded"
