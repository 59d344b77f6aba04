from __future__ import annotations

import asyncio
import itertools
import time
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest

from tlsproxy import slices
from tlsproxy.proxy.core import connection_manager as module
from tlsproxy.proxy.core.connection_manager import ConnectionManager, Entry
from tlsproxy.proxy.core.jitter import FEW
from tlsproxy.proxy.core.wall_clock import Clock

pytestmark = pytest.mark.plain  # stand-ins for compiled classes

EACH = 10
"""Connections in a slice."""


@dataclass(frozen=True)
class Present:
    """Stands for a generation."""


class Session:
    """``standing`` and session in one: asked about itself, it says what it was told to."""

    patient = False
    identity = None
    principal = SimpleNamespace(rule="", role="", refusal=None)
    peer = refusal = None

    def __init__(self) -> None:
        self.reason = ""
        self.asked = 0
        self.expelled = ""
        self.drained = False

    def withdrawn(self, *_: Any) -> str:
        return self.reason

    def judge(self, _now: float) -> str:
        self.asked += 1
        return ""

    def drain(self) -> None:
        self.drained = True

    def expel(self, reason: str) -> None:
        self.expelled = reason


class Bench:
    def __init__(self, connections: int) -> None:
        self.limits = SimpleNamespace(expel_after=0.0, max_connection_age=0.0, drain_timeout=0.0, end_spread=0.0)
        self.ended: list[str] = []
        self.published: list[Any] = []
        metrics = SimpleNamespace(connection_ended=self.ended.append, refused=lambda _: None)
        gateway = SimpleNamespace(
            loop=asyncio.get_running_loop(),
            generation=Present(),
            publish=self.published.append,
            bounds=self.limits,
            clock=Clock(),
            metrics=metrics,
            audit=SimpleNamespace(write=lambda _: None),
        )
        self.manager = ConnectionManager(gateway, itertools.count(1))  # type: ignore[arg-type]
        self.entries = [self.enter() for _ in range(connections)]

    def enter(self) -> Entry:
        session: Any = Session()
        entry = self.manager.enter("rest", "127.0.0.1", session)
        entry.session = session
        return entry

    @property
    def asked(self) -> int:
        return sum(bool(entry.session.asked) for entry in self.entries)  # type: ignore[union-attr]

    async def look(self) -> None:
        self.manager.review()
        await self.until_all_are_looked_at()

    async def until_all_are_looked_at(self) -> None:
        for _ in range(2 + 4 * len(self.entries) // EACH):  # an end looks at the clock too
            await asyncio.sleep(0)
        assert self.manager._slice is None


@pytest.fixture(autouse=True)
def _by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TICK", 3600.0)
    # A clock that only looking at it moves: a slice is over after so many connections.
    start, looks = time.monotonic(), itertools.count()
    clock = SimpleNamespace(time=time.time, monotonic=lambda: start + next(looks) / 1_000_000)
    monkeypatch.setattr(module, "time", clock)
    monkeypatch.setattr(module, "SLICE", (EACH - 0.5) / 1_000_000)


def test_others_are_served_while_a_publication_is_looked_at() -> None:
    async def run() -> None:
        bench = Bench(95)
        bench.manager.review()
        seen = []
        while bench.asked < 95:
            seen.append(bench.asked)
            await asyncio.sleep(0)
        assert len(seen) > 5
        assert all(after - before <= 20 for before, after in itertools.pairwise(seen))

    asyncio.run(run())


def test_a_second_publication_begins_anew_and_a_tick_does_not() -> None:
    async def run() -> None:
        bench = Bench(25)
        bench.manager.review()
        await asyncio.sleep(0)
        bench.manager._tick()
        bench.manager.review()
        await bench.until_all_are_looked_at()
        assert [entry.session.asked for entry in bench.entries] == [  # type: ignore[union-attr]
            2 if place < 20 else 1 for place in range(25)
        ]

    asyncio.run(run())


def test_publications_that_follow_each_other_delay_no_connection() -> None:
    """The rest of the review before comes first."""

    async def run() -> None:
        bench = Bench(95)
        for _ in range(11):
            bench.manager.review()
        assert bench.asked == 95
        await bench.until_all_are_looked_at()

    asyncio.run(run())


def test_who_has_left_meanwhile_is_not_asked() -> None:
    async def run() -> None:
        bench = Bench(25)
        bench.manager.review()
        gone = bench.entries.pop()
        session = gone.session
        bench.manager.leave(gone)
        await bench.until_all_are_looked_at()
        assert session.asked == 0  # type: ignore[union-attr]

    asyncio.run(run())


def test_one_that_is_not_admitted_any_more_is_ended_wherever_it_stands() -> None:
    async def run() -> None:
        bench = Bench(25)
        bench.entries[24].standing.reason = "no_role"  # type: ignore[attr-defined]
        bench.manager.review()
        await bench.until_all_are_looked_at()
        assert bench.ended == ["no_role"]
        assert bench.entries[24].session.expelled == "no_role"  # type: ignore[union-attr]

    asyncio.run(run())


def test_one_that_is_patient_has_its_time() -> None:
    async def run() -> None:
        bench = Bench(1)
        (entry,) = bench.entries
        session: Any = entry.session
        session.patient, session.reason, bench.limits.expel_after = True, "no_role", 3600.0
        bench.manager.review()
        bench.manager._tick()
        assert (session.drained, session.expelled) == (True, "")
        entry.expel_at = 0.0
        bench.manager._tick()
        assert session.expelled == "no_role"
        session.expelled = ""
        bench.manager._tick()
        assert session.expelled == ""

    asyncio.run(run())


def test_a_defect_in_one_ends_no_looking(monkeypatch: pytest.MonkeyPatch) -> None:
    async def run() -> None:
        bench = Bench(25)
        monkeypatch.setattr(bench.entries[0], "session", SimpleNamespace(patient=True))
        bench.entries[24].standing.reason = "no_role"  # type: ignore[attr-defined]
        with pytest.raises(AttributeError):
            bench.manager.review()
        await bench.until_all_are_looked_at()
        assert bench.ended == ["no_role"]

    asyncio.run(run())


def test_only_those_that_are_too_old_are_ended_for_their_age() -> None:
    async def run() -> None:
        bench = Bench(3)
        bench.limits.max_connection_age = 60.0
        bench.entries[0].opened -= 120
        bench.entries[1].opened -= 61
        bench.manager._tick()
        bench.manager._tick()
        assert [entry.end_reason for entry in bench.entries] == [module.TOO_OLD, module.TOO_OLD, ""]
        assert bench.ended == [module.TOO_OLD] * 2
        assert [entry.session.expelled for entry in bench.entries] == [module.TOO_OLD, module.TOO_OLD, ""]  # type: ignore[union-attr]

    asyncio.run(run())


def test_those_of_one_age_end_over_a_tenth_of_it() -> None:
    async def run() -> None:
        bench = Bench(20)
        bench.limits.max_connection_age = 1000.0
        for entry in bench.entries:
            entry.opened -= 899.9
        await bench.look()
        assert not bench.ended
        for entry in bench.entries:
            entry.opened -= 50
        await bench.look()
        assert 8 <= len(bench.ended) <= 12
        for entry in bench.entries:
            entry.opened -= 50
        await bench.look()
        assert len(bench.ended) == 20

    asyncio.run(run())


def test_who_is_too_old_and_loses_the_right_is_ended_for_that() -> None:
    async def run() -> None:
        bench = Bench(1)
        (entry,) = bench.entries
        bench.limits.max_connection_age, bench.limits.drain_timeout = 60.0, 3600.0
        entry.opened -= 120
        await bench.look()
        assert (entry.end_reason, entry.session.expelled) == (module.TOO_OLD, "")  # type: ignore[union-attr]
        entry.standing.reason = "no_role"  # type: ignore[attr-defined]
        await bench.look()
        assert (entry.end_reason, entry.session.expelled) == ("no_role", "no_role")  # type: ignore[union-attr]
        assert bench.ended == [module.TOO_OLD, "no_role"]

    asyncio.run(run())


@pytest.mark.parametrize("patient", [True, False])
def test_the_ends_of_many_are_told_at_once_and_carried_out_one_by_one(patient: bool) -> None:  # noqa: FBT001
    async def run() -> None:
        bench = Bench(10 * FEW)
        bench.limits.end_spread, bench.limits.expel_after = 1.0, 3600.0
        gone: list[Entry] = []
        for entry in bench.entries:
            session: Any = entry.session
            session.reason, session.patient = "no_role", patient
            session.drain = session.expel = lambda *_, entry=entry: gone.append(entry)
        timers = Timers(bench.manager)
        await bench.look()
        assert bench.ended == ["no_role"] * len(bench.entries)
        assert gone == bench.entries[:FEW]
        assert len(timers.due) == len(bench.entries) - FEW
        assert all(0 <= seconds < 1 for seconds, _, _ in timers.due)
        bench.manager.leave(bench.entries[-1])
        timers.run()
        assert {entry.number for entry in gone} == set(range(1, 10 * FEW))

    asyncio.run(run())


def test_others_are_served_between_many_whose_time_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slices, "SLICE", 0.0)

    async def run() -> None:
        bench = Bench(20)
        for entry in bench.entries:
            session: Any = entry.session
            session.reason, session.patient = "no_role", True
        bench.limits.expel_after = 1e-9
        await bench.look()
        gone, stays = [], bench.entries[7]
        stays.expel_at = float("inf")
        bench.manager._tick()
        for _ in range(25):
            gone.append(sum(bool(entry.session.expelled) for entry in bench.entries))  # type: ignore[union-attr]
            await asyncio.sleep(0)
        assert gone[:19] == [*range(1, 20)]
        assert not stays.session.expelled  # type: ignore[union-attr]
        bench.manager.close()

    asyncio.run(run())


class Timers:
    """``due``: what is to be called, and in how many seconds."""

    def __init__(self, manager: ConnectionManager) -> None:
        self.due: list[tuple[float, Any, Any]] = []
        loop = manager._gateway.loop
        manager._gateway.loop = SimpleNamespace(call_later=self._later, call_soon=loop.call_soon)  # type: ignore[assignment]

    def _later(self, seconds: float, callback: Any, *arguments: Any) -> None:
        self.due.append((seconds, callback, arguments))

    def run(self) -> None:
        for _, callback, arguments in self.due:
            callback(*arguments)


def test_all_is_judged_anew_once_a_jump_of_the_clock_counts() -> None:
    async def run() -> None:
        bench = Bench(1)
        for _ in range(2):
            bench.manager._tick()
            await bench.until_all_are_looked_at()
        assert not bench.published
        bench.manager._gateway.clock.followed += 1
        for _ in range(3):
            bench.manager._tick()
            await bench.until_all_are_looked_at()
        assert bench.published == [Present()]

    asyncio.run(run())
