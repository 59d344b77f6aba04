"""Budgets let through what they say, and a window never lets a receiver be sent more than it granted."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tlsproxy.wire.flood_budgets import Budget
from tlsproxy.wire.flow_control import InitialWindow, Window
from tlsproxy.wire.http2 import FIRST_WINDOW, MAX_WINDOW, Code, Http2Error


@given(st.lists(st.floats(0, 2), max_size=200), st.integers(1, 20), st.integers(0, 20))
def test_never_more_than_a_burst_and_its_refill(gaps: list[float], burst: int, rate: int) -> None:
    budget, now = Budget("reason", burst, rate), 0.0
    for spent, gap in enumerate(gaps):
        now += gap
        if not _spends(budget, now):
            assert spent >= burst  # it held a burst at the least
            return
        assert spent + 1 <= burst + rate * now + 1e-6


def _spends(budget: Budget, now: float) -> bool:
    try:
        budget.spend(now)
    except Http2Error as error:
        if (error.code, error.reason) != (Code.ENHANCE_YOUR_CALM, "reason"):
            raise
        return False
    return True


def test_a_refund_fills_no_further_than_the_burst() -> None:
    budget = Budget("reason", 2, 0)
    budget.refund(10)
    budget.spend(0)
    budget.spend(0)
    with pytest.raises(Http2Error):
        budget.spend(0)


OPERATIONS = st.lists(
    st.tuples(st.sampled_from(["sender", "own", "replace", "consume"]), st.integers(1, 40_000), st.integers(1, 40_000)),
    min_size=1,
    max_size=60,
)


@given(OPERATIONS)
def test_the_receiver_is_never_sent_more_than_it_granted(operations: list[tuple[str, int, int]]) -> None:
    """A model of all three: what the receiver granted, what the sender thinks it may send, and the relay between."""
    window = Window()
    receiver = sender = FIRST_WINDOW  # what each thinks is left
    unread = waiting = 0
    for what, size, other in operations:
        if what == "sender":
            sent = min(size, sender)
            window.spent(sent)
            sender -= sent
            waiting += sent
        elif what == "replace" and not waiting and window.room >= other:
            sent = min(size, sender)
            window.spent(sent)
            window.own(other)
            receiver -= other
            unread += other
            rest = sent - window.replaced(sent, other)
            window.given_back(rest)
            sender += rest - sent
        elif what == "own" and window.room >= size:
            window.own(size)
            receiver -= size
            unread += size
        elif what == "consume":
            granted = min(size, unread)
            if granted:
                unread -= granted
                receiver += granted
                sender += window.granted(granted)
        passed = min(waiting, max(0, window.room))  # the relay holds back what there is no room for
        waiting -= passed
        window.room -= passed
        receiver -= passed
        unread += passed
        assert receiver == window.room >= 0
        assert sender + waiting == receiver + window.debt
    # All that was granted comes back to the sender, once the receiver has consumed what the relay put in.
    while unread or waiting:
        sender += window.granted(unread)
        receiver, unread = receiver + unread, 0
        passed = min(waiting, window.room)
        waiting, unread, receiver = waiting - passed, passed, receiver - passed
        window.room -= passed
    assert (sender, window.debt) == (FIRST_WINDOW, 0)


def test_what_no_receiver_may_grant() -> None:
    with pytest.raises(Http2Error) as caught:
        Window().granted(0)
    assert caught.value.code is Code.PROTOCOL_ERROR
    with pytest.raises(Http2Error) as caught:
        Window().granted(MAX_WINDOW)
    assert caught.value.code is Code.FLOW_CONTROL_ERROR


@given(st.lists(st.none() | st.integers(0, MAX_WINDOW), max_size=12), st.data())
def test_a_larger_first_window_counts_once_it_is_acknowledged(offers: list[int | None], data: st.DataObject) -> None:
    """And a smaller one at once: nobody is surprised by what they said themselves."""
    window, said = InitialWindow(), [FIRST_WINDOW]
    for size in offers:
        window.offer(size)
        said.append(said[-1] if size is None else size)
        while window.unsettled and data.draw(st.booleans()):
            assert window.may_settle(said[1])
            assert not window.may_settle(said[1] + 1)
            window.settle()
            del said[0]
        assert (window.least, window.most, window.latest) == (min(said), max(said), said[-1])
        assert window.unsettled == len(said) - 1
    while window.unsettled:
        window.settle()
    window.settle()
    assert not window.may_settle(0)
    assert window.least == window.agreed == said[-1]
