from __future__ import annotations

from math import ceil

from hypothesis import example, given
from hypothesis import strategies as st

from tlsproxy.wire.throughput import PARTS, Throughput

WINDOW, RATE = 30.0, 1024.0
STEP = WINDOW / PARTS
ENOUGH = int(WINDOW * RATE)

sizes = st.lists(st.integers(0, 2 * ENOUGH), max_size=60)


def ended(came: list[int], step: float = STEP) -> float | None:
    """When it is found too slow, where so much came before each look."""
    meter, total = Throughput(0.0, 0, WINDOW), 0
    for number, size in enumerate(came, 1):
        total += size
        if meter.too_low(number * step, total, WINDOW, RATE):
            return number * step
    return None


@given(st.integers(0, ENOUGH - 1))
def test_a_small_body_has_the_window_in_all(size: int) -> None:
    end = ended([size] + [0] * 20)
    assert end is not None
    assert end == WINDOW if size < ENOUGH * 4 // 5 else WINDOW < end <= 1.2 * WINDOW


@given(sizes)
def test_whatever_came_before_a_silence_ends_it_within_a_fifth_more_than_the_window(came: list[int]) -> None:
    end = ended(came + [0] * 30)
    assert end is not None
    assert end <= max(len(came) * STEP, 0) + 1.2 * WINDOW


@given(sizes, st.floats(0, 0.8))
def test_so_does_a_drip(came: list[int], part: float) -> None:
    """24 bytes in 75 seconds, a byte for each sweep, or a good part of the lowest rate."""
    drip = int(RATE * STEP * part)
    end = ended(came + [drip] * 30)
    assert end is not None
    assert end <= len(came) * STEP + 1.2 * WINDOW


@given(st.integers(1, 20), st.integers(0, 19), st.integers(0, 10 * ENOUGH), st.integers(2, 20))
def test_who_keeps_it_up_lives(apart: int, late: int, early: int, looks: int) -> None:
    """Exactly at the rate, in bursts that are up to a fifth of a window apart, however often it is looked at."""
    step = STEP / looks
    apart = min(apart, 2 * looks)
    bursts = [0] * min(late, apart - 1) + ([ceil(RATE * step * apart)] + [0] * (apart - 1)) * 200
    bursts[0] += early
    assert ended(bursts, step) is None


@given(sizes, st.lists(st.tuples(st.integers(0, 50), st.integers(1, 1000)), max_size=10))
@example([0] * 10 + [ENOUGH * 9 // 10], [(10, 7)])
def test_time_that_is_not_the_senders_does_not_count(came: list[int], pauses: list[tuple[int, int]]) -> None:
    """Pauses are whole seconds, whose sums are exact: a look that is a microsecond late would ask for a byte more."""
    plain, spared = Throughput(0.0, 0, WINDOW), Throughput(0.0, 0, WINDOW)
    total, offset = 0, 0
    for number, size in enumerate(came, 1):
        for at, seconds in pauses:
            if at == number:
                spared.pause((number - 1) * STEP + offset)
                offset += seconds
                spared.pause((number - 1) * STEP + offset)  # again is no more
                spared.resume((number - 1) * STEP + offset)
        total += size
        now = number * STEP
        assert spared.due == plain.due + offset
        assert plain.too_low(now, total, WINDOW, RATE) == spared.too_low(now + offset, total, WINDOW, RATE)


@given(st.lists(st.floats(0.001, 100), max_size=200), st.lists(st.floats(0.1, 1000), min_size=1, max_size=5))
def test_its_memory_is_bounded_however_often_it_is_asked_and_the_window_changed(
    steps: list[float], windows: list[float]
) -> None:
    meter, now = Throughput(0.0, 0, windows[0]), 0.0
    for number, step in enumerate(steps):
        now += step
        meter.too_low(now, number, windows[number % len(windows)], 0.0)
    window = windows[-1]
    for _ in range(100):
        now += window / PARTS / 3
        meter.too_low(now, len(steps), window, 0.0)
    assert len(meter._marks) <= PARTS + 3
