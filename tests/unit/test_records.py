"""Connections of a thread share one pair of BIOs, whatever order they have the pair in."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.snapshot_site import CLIENT, client_context, site
from tlsproxy.proxy.transport.records import SEALED, Records

SERVER, OTHER = 0, 1
DATA = bytes(range(256)) * 1200
GARBAGE = b"\x17\x03\x03\x00\x20" + bytes(32)


class Refused(Exception):
    """A judge's own failure."""


class Connection:
    """Both ends. ``due``: bytes on their way to each; ``read``: what each was told; ``said``: what it should be."""

    def __init__(self, server: ssl.SSLContext, client: ssl.SSLContext) -> None:
        self.ends = (Records(server), Records(client, "localhost"))
        self.due, self.read, self.said = [b"", b""], [b"", b""], [b"", b""]
        self.done: list[bool | ssl.SSLError] = [False, False]
        self.ended: list[bool | ssl.SSLError] = [False, False]
        self.receive(OTHER, b"")

    def receive(self, side: int, data: bytes, judge: Callable[..., str] = lambda *_: "") -> None:
        end, answer = self.ends[side], b""
        with _leaves_nothing(end):
            if not self.done[side]:
                data, self.done[side], answer = end.shake_hands(data, judge)
                self.due[1 - side] += answer
            if data and not self.ended[side]:
                text, self.ended[side], answer = end.opened(data)
                self.read[side] += text
                self.due[1 - side] += answer

    def carry(self, side: int, size: int) -> None:
        data, self.due[side] = self.due[side][:size], self.due[side][size:]
        if data:
            self.receive(side, data)

    def say(self, side: int, size: int) -> None:
        if self.done[side] is True:
            with _leaves_nothing(self.ends[side]):
                self.due[1 - side] += self.ends[side].sealed(DATA[:size])
            self.said[1 - side] += DATA[:size]

    def settle(self) -> None:
        while any(self.due):
            self.carry(SERVER, len(self.due[SERVER]))
            self.carry(OTHER, len(self.due[OTHER]))


@contextmanager
def _leaves_nothing(end: Records) -> Iterator[None]:
    try:
        yield
    finally:
        assert not end._incoming.pending
        assert not end._outgoing.pending


@pytest.fixture(scope="module")
def contexts(tmp_path_factory: pytest.TempPathFactory) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    directory: Path = tmp_path_factory.mktemp("records")
    generation = site(directory).build()
    return next(iter(generation.contexts.values())), client_context(CLIENT, directory)


SIZES = st.sampled_from((1, 5, 700, 16_384, 16_385, SEALED, SEALED + 1, len(DATA)))
STEP = st.tuples(st.sampled_from(("carry", "carry", "say")), st.integers(0, 2), st.integers(0, 1), SIZES)


@given(steps=st.lists(STEP, max_size=30), broken=st.booleans())
def test_each_hears_its_own_peer_in_any_order(
    contexts: tuple[ssl.SSLContext, ssl.SSLContext], *, steps: list[tuple[str, int, int, int]], broken: bool
) -> None:
    several = [Connection(*contexts) for _ in range(3)]
    for what, number, side, size in steps:
        getattr(several[number], what)(side, size)
    if broken:
        several[0].receive(SERVER, GARBAGE)
    for one in several[broken:]:
        one.settle()
        one.say(SERVER, 700)
        one.say(OTHER, 700)
        one.settle()
        assert one.done == [True, True]
        assert one.read == one.said


def test_a_record_that_is_none_ends_its_connection_alone(contexts: tuple[ssl.SSLContext, ssl.SSLContext]) -> None:
    one, other = Connection(*contexts), Connection(*contexts)
    one.settle()
    other.settle()
    one.receive(SERVER, GARBAGE + b"and what follows it")
    assert isinstance(one.ended[SERVER], ssl.SSLError)
    assert one.due[OTHER], "the alert"
    other.say(OTHER, 5)
    other.settle()
    assert other.read[SERVER] == DATA[:5]


def test_a_failure_of_the_judge_leaves_nothing_for_the_next(contexts: tuple[ssl.SSLContext, ssl.SSLContext]) -> None:
    def fail(*_: object) -> str:
        raise Refused

    one, other = Connection(*contexts), Connection(*contexts)
    one.carry(SERVER, len(one.due[SERVER]))
    one.carry(OTHER, len(one.due[OTHER]))
    with pytest.raises(Refused):
        one.receive(SERVER, one.due[SERVER], fail)
    other.settle()
    assert other.done == [True, True]


def test_a_close_notify_is_an_end_for_both(contexts: tuple[ssl.SSLContext, ssl.SSLContext]) -> None:
    one = Connection(*contexts)
    one.settle()
    one.say(OTHER, 5)
    one.receive(SERVER, one.due[SERVER] + one.ends[OTHER].goodbye() + b"what is none")
    assert (one.read[SERVER], one.ended[SERVER]) == (DATA[:5], True)
    one.receive(OTHER, one.ends[SERVER].goodbye())
    assert one.ended[OTHER] is True
