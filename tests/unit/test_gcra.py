"""A rate decides as an obvious token bucket does, whatever the times; and its answers are honest."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tlsproxy.proxy.limits.gcra import SECOND, Penalty, Rate

RATES = st.builds(
    lambda interval, burst: Rate(interval, interval * burst), st.integers(1, 10 * SECOND), st.integers(1, 50)
)
PAUSES = st.lists(st.integers(0, 20 * SECOND), max_size=80)


class Bucket:
    """The twin: what is left, in nanoseconds, poured in as time goes by."""

    def __init__(self, rate: Rate) -> None:
        self._rate = rate
        self._level = rate.room

    def pass_time(self, pause: int) -> None:
        self._level = min(self._rate.room, self._level + pause)

    @property
    def wait(self) -> int:
        return max(0, self._rate.interval - self._level)

    def take(self) -> None:
        self._level -= self._rate.interval


@pytest.mark.fuzz
@given(rate=RATES, start=st.integers(0, 1 << 50), pauses=PAUSES)
def test_it_decides_as_a_token_bucket(rate: Rate, start: int, pauses: list[int]) -> None:
    bucket, arrival, now = Bucket(rate), 0, start
    for pause in pauses:
        now += pause
        bucket.pass_time(pause)
        assert rate.wait(arrival, now) == bucket.wait
        if not bucket.wait:
            bucket.take()
            arrival = rate.after(arrival, now)


@pytest.mark.fuzz
@given(rate=RATES, pauses=PAUSES)
def test_no_window_holds_more_than_a_burst_and_what_was_earned_in_it(rate: Rate, pauses: list[int]) -> None:
    arrival, now, taken = 0, 0, []
    for pause in pauses:
        now += pause
        if not rate.wait(arrival, now):
            arrival = rate.after(arrival, now)
            taken.append(now)
    for first, begin in enumerate(taken):
        for last, end in enumerate(taken[first:], first):
            assert (last - first + 1) * rate.interval <= rate.room + end - begin


@pytest.mark.fuzz
@given(rate=RATES, now=st.integers(0, 1 << 50), arrival=st.integers(0, 1 << 62))
def test_the_wait_is_honest_and_short_even_if_the_rate_was_another(rate: Rate, now: int, arrival: int) -> None:
    capped = rate.capped(arrival, now)
    wait = rate.wait(capped, now)
    assert 0 <= wait <= rate.interval
    assert rate.wait(capped, now + wait) == 0
    if wait:
        assert rate.wait(capped, now + wait - 1) > 0


@pytest.mark.parametrize(
    ("per_second", "burst", "requests"),
    [(100.0, None, 100), (0.5, None, 1), (2.5, None, 3), (10.0, 25, 25), (0.001, 1_000_000, 1_000_000), (4e9, 7, 7)],
)
def test_a_rate_of_so_many_per_second(per_second: float, burst: int | None, requests: int) -> None:
    rate = Rate.of(per_second, burst)
    assert rate.interval == (round(SECOND / per_second) or 1), "a request is never free"
    assert rate.room == requests * rate.interval
    assert rate.room + rate.interval < 1 << 62, "an arrival time fits its cell, long after the machine was started"


@pytest.mark.fuzz
@given(
    per_minute=st.integers(1, 100),
    longest=st.integers(1, 600),
    heard=st.sampled_from([0, 2 * SECOND]),
    pauses=st.lists(st.integers(0, 30 * SECOND), max_size=100),
)
def test_whoever_fails_waits_longer_each_time_and_never_longer_than_said(
    per_minute: int, longest: int, heard: int, pauses: list[int]
) -> None:
    """Somebody who fails at each moment at which it is heard."""
    penalty = Penalty.of(per_minute, longest)
    owed, until, now, last_end = 0, 0, 1, 0
    for failures, pause in enumerate(pauses, 1):
        now += pause
        if penalty.left(until, now, heard):
            now += penalty.left(until, now, heard)
            last_end = now
        owed = penalty.after(owed, now)
        if until <= now and (begun := penalty.until(owed, now, heard)):
            assert failures > per_minute, "so many go without"
            assert not last_end or now - last_end >= heard, "everybody was heard in between"
            until = begun
            assert SECOND <= penalty.left(until, now, heard) <= longest * SECOND
    # It is all forgiven in a time that does not depend on how often it failed.
    most = penalty.rate.interval * (per_minute + longest.bit_length() + 1)
    assert penalty.until(penalty.after(owed, now + most), now + most, heard) == 0


def test_each_further_failure_doubles_the_delay() -> None:
    penalty = Penalty.of(3, 60.0)
    owed, delays = 0, []
    for _ in range(12):
        owed = penalty.after(owed, 0)
        delays.append(penalty.until(owed, 0, 0) // SECOND)
    assert delays == [0, 0, 0, 1, 2, 4, 8, 16, 32, 60, 60, 60]
