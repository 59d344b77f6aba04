"""The trail of locks: each that begins or ends is told once, and thousands of them hold up nobody."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tlsproxy import slices
from tlsproxy.authz.locks import Lock, Locks
from tlsproxy.config.locks import LockFile
from tlsproxy.service.lock_trail import LockTrail

NO_FILE = LockFile()


class Bench:
    def __init__(self) -> None:
        self.lines: list[dict[str, Any]] = []
        self.kinds: dict[str, int] = {}
        self.trail = LockTrail(
            SimpleNamespace(write=lambda line: self.lines.append(json.loads(line))),
            SimpleNamespace(locked=self.kinds.update),
            Path("tlsproxy.yaml.locks"),
        )

    async def look(self, locks: Locks, now: float) -> list[tuple[str, str]]:
        """Lines that the trail writes."""
        before = len(self.lines)
        await self.trail.tell(await self.trail.differences(locks, NO_FILE, now))
        return [(line["event"], line["lock"]) for line in self.lines[before:]]


def locks_of(names: Iterable[str], until: float = 1e12) -> Locks:
    return Locks(Lock("key", name, until=until) for name in names)


@given(st.lists(st.tuples(st.frozensets(st.sampled_from("abcd")), st.sampled_from([5.0, 15.0, 1e12])), max_size=5))
def test_told_is_what_differs_from_the_last_look(given: list[tuple[frozenset[str], float]]) -> None:
    async def run() -> None:
        bench, held = Bench(), dict[str, float]()
        for now, (names, until) in enumerate(given, 9):
            present = dict.fromkeys(names, until) if now < until else {}
            told = await bench.look(locks_of(names, until), now)
            begun = {("lock", f"key {name}") for name in present if held.get(name) != present[name]}
            assert set(told) == begun | {("unlock", f"key {name}") for name in held.keys() - present.keys()}
            assert len(told) == len(set(told))
            assert bench.trail.status("")["count"] == len(present)
            held = present

    asyncio.run(run())


def test_others_are_served_between_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slices, "SLICE", 0.0)

    async def run() -> None:
        bench = Bench()
        for locks in (locks_of(map(str, range(20))), Locks()):
            found, before, told = await bench.trail.differences(locks, NO_FILE, 1.0), len(bench.lines), []
            telling = asyncio.ensure_future(bench.trail.tell(found))
            while not telling.done():
                await asyncio.sleep(0)
                told.append(len(bench.lines) - before)
            assert told[:20] == [*range(1, 21)]

    asyncio.run(run())


def test_few_are_told_at_once_before_the_connections_that_they_end() -> None:
    async def run() -> None:
        bench, turned = Bench(), threading.Event()
        found = await bench.trail.differences(locks_of("ab"), NO_FILE, 1.0)
        asyncio.get_running_loop().call_soon(turned.set)
        await bench.trail.tell(found)
        assert len(bench.lines) == 2
        assert not turned.is_set()

    asyncio.run(run())


def test_locks_are_compared_in_a_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[int] = []
    in_force = Locks.in_force
    monkeypatch.setattr(Locks, "in_force", lambda *args: (compared.append(threading.get_ident()), in_force(*args))[1])

    async def run() -> None:
        bench = Bench()
        locks = locks_of("ab")
        await bench.look(locks, 1.0)
        await bench.look(locks, 2.0)  # the same: nothing to compare
        assert len(compared) == 1
        assert threading.get_ident() not in compared

    asyncio.run(run())
