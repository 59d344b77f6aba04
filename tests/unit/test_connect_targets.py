"""Order of a listener's targets, and when each is checked."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tlsproxy.connector.targets import Targets
from tlsproxy.proxy.core.balancer import LONGEST_PAUSE

NAMES = ["a:1", "b:1", "c:1"]
STEPS = st.lists(
    st.tuples(st.sampled_from(NAMES), st.sampled_from(["failed", "stood"]), st.floats(0, 200)), max_size=40
)


def test_a_target_that_failed_is_last_until_it_stands() -> None:
    targets = Targets(NAMES)
    assert targets.order() == NAMES
    assert targets.due(0.0) == NAMES, "nobody has tried them"
    for name in NAMES:
        assert targets.stood(name, None, 0.0)
        assert not targets.stood(name, None, 0.1)
    assert targets.due(1e9) == []
    assert targets.failed("a:1", "refused", 1.0)
    assert not targets.failed("a:1", "refused", 1.1)
    assert targets.order() == ["b:1", "c:1", "a:1"]
    assert targets.failed("b:1", "timeout", 1.2)
    assert targets.order() == ["c:1", "a:1", "b:1"]
    assert (targets.due(1.9), targets.due(2.0), targets.due(2.2)) == ([], ["a:1"], ["a:1", "b:1"])
    assert targets.order()[0] == "c:1", "also after its pause: a check comes first"
    assert targets.stood("a:1", None, 2.0)
    assert targets.order() == ["a:1", "c:1", "b:1"]


def test_the_pause_grows_until_a_target_was_up_for_long() -> None:
    targets, now, pauses = Targets(["a:1"]), 0.0, []
    for _ in range(8):
        targets.failed("a:1", "refused", now)
        pauses.append(targets.states["a:1"].until - now)
        now = targets.states["a:1"].until
        targets.stood("a:1", None, now)
    assert pauses == [1, 2, 4, 8, 16, 32, 60, 60]
    targets.failed("a:1", "refused", now + LONGEST_PAUSE)
    assert targets.states["a:1"].until == now + LONGEST_PAUSE + 1


def test_a_target_that_flaps_has_a_line_for_each_pause() -> None:
    """However many clients meet it, and whatever reasons they are given."""
    targets, lines = Targets(["a:1"]), 0
    for moment in range(1000):
        lines += targets.failed("a:1", f"reason {moment % 3}", moment / 100)
        if moment % 2:
            lines += targets.stood("a:1", None, moment / 100)
    assert lines <= 8, "pauses of 1, 2, 4 and 8 seconds"
    assert targets.failed("a:1", "reason 1", 100.0), "its last state is told after its pause"


def test_a_change_ends_the_pauses_and_targets_come_and_go() -> None:
    targets = Targets(["a:1"])
    targets.failed("a:1", "unresolved", 0.0)
    targets.retry(["a:1", "z:1"])
    assert targets.due(0.0) == ["a:1"]
    targets.adopt(["b:1", "a:1"])
    assert targets.order() == ["b:1", "a:1"]
    targets.adopt(["b:1"])
    assert not targets.failed("a:1", "refused", 0.0)
    assert not targets.stood("a:1", None, 0.0)


@given(STEPS)
def test_every_target_is_in_the_order_once_and_those_that_are_not_down_come_first(
    steps: list[tuple[str, str, float]],
) -> None:
    targets, now = Targets(NAMES), 0.0
    for name, step, later in steps:
        now += later
        if step == "failed":
            targets.failed(name, "refused", now)
        else:
            targets.stood(name, None, now)
        order = targets.order()
        assert sorted(order) == NAMES
        down = [targets.states[each].up is False for each in order]
        assert down == sorted(down)
        good = [each for each in order if targets.states[each].up is not False]
        assert good == [each for each in NAMES if each in good]
        for state in targets.states.values():
            assert state.until <= now + LONGEST_PAUSE
        assert set(targets.due(now + LONGEST_PAUSE)) == {each for each in NAMES if targets.states[each].up is not True}
