"""The sweep over all streams: whoever has nothing to do with it is served in between."""

from __future__ import annotations

import asyncio
import itertools
import time
import weakref
from functools import partial
from types import SimpleNamespace

import pytest

from tlsproxy.proxy.transport.deadlines import NEVER, Deadlines
from tlsproxy.slices import SLICE

CLOCK = SimpleNamespace(now=1000.0)


class Stream:
    def __init__(self, deadlines: Deadlines) -> None:
        self.deadline = NEVER
        self.did: list[str] = []
        self.ends: Stream | None = None
        self._deadlines = deadlines
        deadlines.add(self)

    def expired(self) -> None:
        self._done("expired")

    def rearm(self) -> None:
        self._done("rearmed")

    def look(self) -> None:
        self._done("looked")

    def _done(self, what: str) -> None:
        CLOCK.now += 2 * SLICE
        self.deadline = NEVER
        self.did.append(what)
        if self.ends is not None:
            self._deadlines.discard(self.ends)


@pytest.fixture(autouse=True)
def _one_in_a_slice(monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock stands but for what streams take, each longer than a slice."""
    monkeypatch.setattr(time, "monotonic", lambda: CLOCK.now)


@pytest.mark.parametrize("what", ["expired", "rearmed", "looked"])
def test_others_are_served_between_many_and_who_has_ended_is_left_alone(what: str) -> None:
    async def run() -> None:
        deadlines = Deadlines(asyncio.get_running_loop())
        streams = [Stream(deadlines) for _ in range(20)]
        late = Stream(deadlines)
        for one in streams:
            one.ends = late
            if what == "expired":
                one.deadline = late.deadline = time.monotonic()
            elif what == "looked":
                deadlines.heard.update((one, late))
        if what == "rearmed":
            deadlines.rearm()
        else:
            deadlines._sweep()
        seen = []
        for _ in range(25):
            seen.append(sum(what in one.did for one in (*streams, late)))
            await asyncio.sleep(0)
        assert all(after - before <= 1 for before, after in itertools.pairwise(seen))
        assert [one.did for one in streams] == [[what]] * 20
        assert late.did in ([], [what])  # of a set it may come first
        deadlines.close()

    asyncio.run(run())


def test_streams_that_ended_together_are_freed_in_their_turns() -> None:
    async def run() -> None:
        deadlines = Deadlines(asyncio.get_running_loop())
        streams = [Stream(deadlines) for _ in range(20)]
        alive = [weakref.ref(one) for one in streams]
        for one in streams:
            one.deadline = time.monotonic()
            one.expired = partial(_end, deadlines, weakref.ref(one))  # type: ignore[method-assign]
        del one
        streams.clear()
        deadlines._sweep()
        left = []
        for _ in range(25):
            left.append(sum(one() is not None for one in alive))
            await asyncio.sleep(0)
        assert all(before - after <= 1 for before, after in itertools.pairwise(left))
        assert left[-1] == 0
        deadlines.close()

    asyncio.run(run())


def _end(deadlines: Deadlines, one: weakref.ref[Stream]) -> None:
    stream = one()
    assert stream is not None
    stream._done("expired")
    deadlines.discard(stream)


def test_a_deadline_that_moved_meanwhile_is_not_over() -> None:
    async def run() -> None:
        deadlines = Deadlines(asyncio.get_running_loop())
        first, second = Stream(deadlines), Stream(deadlines)
        first.deadline = second.deadline = time.monotonic()
        deadlines._sweep()
        for one in (first, second):
            one.deadline = NEVER
        for _ in range(3):
            await asyncio.sleep(0)
        assert len(first.did) + len(second.did) == 1
        deadlines.close()

    asyncio.run(run())
