"""The time that dates are judged by: jumps count once they have lasted, and all else at once."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tlsproxy.proxy.core.jitter import share
from tlsproxy.proxy.core.wall_clock import HELD, JUMP, LONGEST, Clock

EPOCH, DAY, LOOKS = 1_800_000_000.0, 86400.0, 0.25


class Time:
    """Both clocks of a machine: ``steady`` goes on by :meth:`pass_by`, the wall clock is ``gap`` ahead of it."""

    def __init__(self) -> None:
        self.steady, self.gap = 1000.0, EPOCH - 1000.0
        self.clock = Clock(self)
        self.jumps: list[float] = []
        self.clock.jumped = self.jumps.append

    @property
    def wall(self) -> float:
        return self.steady + self.gap

    def time(self) -> float:
        return self.wall

    def monotonic(self) -> float:
        return self.steady

    def pass_by(self, seconds: float) -> None:
        """And the clock is looked at as often as in a process."""
        end = self.steady + seconds
        while self.steady < end:
            self.steady = min(self.steady + LOOKS, end)
            self.clock.now()


@pytest.mark.parametrize("by", [2.0, DAY, 400 * DAY, -2.0, -400 * DAY])
def test_a_jump_counts_once_it_has_lasted(by: float) -> None:
    time = Time()
    time.gap += by
    assert time.clock.now() == pytest.approx(time.wall - by)
    time.pass_by(HELD - 0.1)
    assert time.clock.now() == pytest.approx(time.wall - by)
    time.pass_by(0.1)
    assert time.clock.now() == time.wall
    assert (time.jumps, time.clock.followed) == ([pytest.approx(by)], 1)


def test_one_that_is_taken_back_never_counts() -> None:
    time = Time()
    for by in (DAY, -DAY, 2 * DAY):
        for back in (by, -by):
            time.gap += back
            assert time.clock.now() == pytest.approx(time.steady + EPOCH - 1000)
            time.pass_by(HELD - 0.2)
    assert (len(time.jumps), time.clock.followed) == (6, 0)


def test_a_further_one_is_waited_for_too_but_not_for_ever() -> None:
    time = Time()
    for _ in range(4):
        time.gap += DAY
        time.pass_by(HELD - 0.2)
        assert time.clock.now() == pytest.approx(time.steady + EPOCH - 1000)
    while time.steady < 1000 + LONGEST + LOOKS:
        time.gap += DAY
        time.pass_by(0.2)
    assert time.clock.followed == 1
    assert time.clock.now() > EPOCH + DAY


def test_a_clock_that_is_slewed_does_not_jump() -> None:
    time = Time()
    for _ in range(100):
        time.gap += JUMP / 2
        time.pass_by(LOOKS)
        assert time.clock.now() == time.wall
    assert not time.jumps


def test_a_process_that_was_stopped_between_two_looks_at_clocks_has_seen_no_jump() -> None:
    time = Time()
    stops = iter([5.0])

    def monotonic() -> float:
        time.steady += next(stops, 0.0)
        return time.steady

    time.monotonic = monotonic  # type: ignore[method-assign]
    assert time.clock.now() == pytest.approx(time.wall)
    assert not time.jumps


@given(st.lists(st.tuples(st.floats(0.01, 3), st.sampled_from([0.0, 0.3, -0.3, 5.0, -5.0, DAY, -DAY])), max_size=30))
def test_it_is_the_wall_clock_but_for_the_seconds_after_a_jump(events: list[tuple[float, float]]) -> None:
    time = Time()
    quiet = LONGEST  # seconds without a jump
    for seconds, by in events:
        time.gap += by
        quiet = 0.0 if abs(by) >= JUMP else quiet
        time.pass_by(seconds)
        quiet += seconds
        if quiet >= HELD + LOOKS:
            assert time.clock.now() == pytest.approx(time.wall, abs=1e-3)
    assert len(time.jumps) == sum(abs(by) >= JUMP for _, by in events)


@pytest.mark.parametrize("workers", [1, 2, 3, 8])
def test_ends_are_spread_evenly(workers: int) -> None:
    """In each worker, whose connections have every so-many-th number."""
    for first in (1, 1_000_007):
        shares = sorted(share(number) for number in range(first, first + 1000 * workers, workers))
        assert 0 <= shares[0] < shares[-1] < 1
        assert all(sum(low <= each < low + 0.1 for each in shares) in range(90, 111) for low in (0.0, 0.3, 0.6, 0.9))
