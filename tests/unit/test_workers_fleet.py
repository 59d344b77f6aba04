"""The supervisor's decisions, over workers that do as they are told: what is published, by whom, and who is ended."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import orjson
import pytest
from tls_site import ROOT, Site, site

from tlsproxy.proxy.consequences import Consequences
from tlsproxy.service.auditfile import Turn
from tlsproxy.service.auditlog import NoAudit
from tlsproxy.service.workers import fleet as module
from tlsproxy.service.workers.fleet import Fleet, NeverServed
from tlsproxy.service.workers.order import Order, built, order_of
from tlsproxy.service.workers.process import WorkerLost, WorkerProcess, WorkerRefused
from tlsproxy.service.workers.seat import Seat
from tlsproxy.tls.files import Inputs, read_inputs
from tlsproxy.tls.generation import Generation

Script = dict[str, list[BaseException | None]]


class Scripted:
    """A worker. ``script`` has what happens at each step, by its name; nothing does where it has no more to say."""

    made: list[Scripted]
    committed: asyncio.Event
    scripts: Iterator[Script]

    def __init__(self, number: int, script: Script) -> None:
        self.number = number
        self.order: Order | None = None
        self.pid, self.started_at = 1000 + len(self.made), 0.0
        self.script = script
        self.prepared: list[int] = []
        self.done: list[str] = []
        self.over = asyncio.Event()
        self.made.append(self)

    @classmethod
    async def start(cls, number: int, descriptors: Sequence[int], told: Callable[[], None]) -> Scripted:
        assert descriptors
        assert told
        return cls(number, next(cls.scripts, {}))

    def _step(self, name: str) -> None:
        self.done.append(name)
        if (outcome := next(iter(self.script.get(name, [])), None)) is not None:
            raise outcome
        if name in self.script:
            self.script[name].pop(0)

    async def begin(self, started: bytes, **facts: Any) -> None:
        assert started.startswith(b"identities:")
        assert facts["number"] == self.number
        self._step("begin")

    async def prepare(self, order: Order) -> None:
        self.prepared.append(order.number)
        self._step("prepare")

    async def commit(self, order: Order) -> None:
        assert self.prepared[-1] == order.number
        self._step("commit")
        self.order = order
        self.committed.set()

    async def watch(self) -> None:
        await self.over.wait()

    def kill(self) -> None:
        self.done.append("kill")
        self.over.set()

    async def end(self) -> str:
        return "SIGKILL"


@pytest.fixture(autouse=True)
def _scripted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WorkerProcess", Scripted)
    Scripted.made = []
    Scripted.committed = asyncio.Event()
    Scripted.scripts = iter(())


class Bench:
    def __init__(self, made: Site, workers: int) -> None:
        self.made = made
        inputs = read_inputs(made.config, made.environ)
        generation = made.build(inputs=inputs)
        turn = Turn(os.memfd_create("turn"))
        self.fleet = Fleet(made.config, generation, inputs, [], NoAudit(), turn, lambda: None)
        self.fleet._seats = [Seat(number) for number in range(1, workers + 1)]

    def candidate(self) -> tuple[Generation, Inputs]:
        """Of a new certificate."""
        self.made.serve(ROOT.issue(dns=["localhost"], server=True))
        inputs = read_inputs(self.made.config, self.made.environ)
        return self.made.build(self.fleet.generation, inputs=inputs), inputs

    async def publish(self) -> Generation:
        generation, inputs = self.candidate()
        await self.fleet.publish(generation, inputs)
        return generation

    async def replaced(self, count: int) -> None:
        async with asyncio.timeout(10):
            while len(Scripted.made) < count or Scripted.made[-1].order is None:
                Scripted.committed.clear()
                await Scripted.committed.wait()


@asynccontextmanager
async def running(made: Site, workers: int = 2, scripts: Sequence[Script] = ()) -> Any:
    Scripted.scripts = iter(scripts)
    bench = Bench(made, workers)
    try:
        async with bench.fleet.running():
            yield bench
    finally:
        os.close(bench.fleet._turn)


def numbers() -> list[int | None]:
    return [one.order.number if one.order is not None else None for one in Scripted.made]


def test_all_build_before_any_publishes(tmp_path: Path) -> None:
    async def run() -> None:
        async with running(site(tmp_path)) as bench:
            generation = await bench.publish()
            assert bench.fleet.generation is generation
            assert [one.done for one in Scripted.made] == [["begin", "prepare", "commit", "prepare", "commit"]] * 2
            assert numbers() == [2, 2]

    asyncio.run(run())


def test_one_that_refuses_keeps_all_from_it(tmp_path: Path) -> None:
    async def run() -> None:
        async with running(site(tmp_path), scripts=[{}, {"prepare": [None, WorkerRefused("no memory")]}]) as bench:
            with pytest.raises(WorkerRefused, match="no memory"):
                await bench.publish()
            assert bench.fleet.generation.number == 1
            assert numbers() == [1, 1]
            assert "kill" not in Scripted.made[0].done + Scripted.made[1].done

    asyncio.run(run())


@pytest.mark.parametrize("step", ["prepare", "commit"])
def test_one_that_is_lost_is_ended_and_its_successor_has_the_new(tmp_path: Path, step: str) -> None:
    async def run() -> None:
        async with running(site(tmp_path), scripts=[{}, {step: [None, WorkerLost("silent")]}]) as bench:
            await bench.publish()
            assert bench.fleet.generation.number == 2
            assert Scripted.made[1].done[-1] == "kill"
            await bench.replaced(3)
            assert Scripted.made[0].order is Scripted.made[2].order
            assert numbers() == [2, 1, 2]
            assert Scripted.made[2].number == 2

    asyncio.run(run())


def test_what_nobody_lives_through_is_not_published(tmp_path: Path) -> None:
    lost: Script = {"prepare": [None, WorkerLost("gone")]}

    async def run() -> None:
        async with running(site(tmp_path), scripts=[dict(lost), {"prepare": [None, WorkerLost("gone")]}]) as bench:
            with pytest.raises(WorkerLost, match="lived through"):
                await bench.publish()
            assert bench.fleet.generation.number == 1
            await bench.replaced(4)
            assert {one.order.number for one in Scripted.made[2:] if one.order is not None} == {1}

    asyncio.run(run())


def test_one_that_starts_during_a_publication_begins_with_what_came_of_it(tmp_path: Path) -> None:
    async def run() -> None:
        async with running(site(tmp_path)) as bench:
            held, slow = asyncio.Event(), asyncio.Event()
            prepare = Scripted.prepare

            async def late(self: Scripted, order: Order) -> None:
                await prepare(self, order)
                if len(Scripted.made) == 3 and self is Scripted.made[2] and len(self.prepared) == 1:
                    held.set()
                    await slow.wait()

            Scripted.prepare = late  # type: ignore[method-assign]
            try:
                Scripted.made[0].kill()
                async with asyncio.timeout(10):
                    await held.wait()
                await bench.publish()
                slow.set()
                await bench.replaced(3)
            finally:
                Scripted.prepare = prepare  # type: ignore[method-assign]
            assert Scripted.made[2].prepared == [1, 2]
            assert numbers() == [1, 2, 2]

    asyncio.run(run())


@pytest.mark.parametrize(
    ("outcome", "raised"), [(WorkerRefused("tls.key: no"), WorkerRefused), (WorkerLost("gone"), NeverServed)]
)
@pytest.mark.parametrize("step", ["begin", "prepare", "commit"])
def test_one_that_never_served_ends_the_start(
    tmp_path: Path, outcome: BaseException, raised: type[BaseException], step: str
) -> None:
    async def run() -> None:
        with pytest.raises(raised, match=str(outcome)):
            async with running(site(tmp_path), scripts=[{}, {step: [outcome]}]):
                pytest.fail("it serves")

    asyncio.run(run())


def test_numbers_find_their_worker(tmp_path: Path) -> None:
    async def run() -> None:
        async with running(site(tmp_path), workers=3) as bench:
            asked: list[tuple[int, int]] = []

            async def ask(self: Scripted, do: str, *, deadline: float, number: int) -> bytes:
                assert (do, deadline > 0) == ("cut", True)
                asked.append((self.number, number))
                return b"true"

            Scripted.ask = ask  # type: ignore[attr-defined]
            for number in range(1, 8):
                assert await bench.fleet.cut(number)
            assert asked == [(1, 1), (2, 2), (3, 3), (1, 4), (2, 5), (3, 6), (1, 7)]

    asyncio.run(run())


def test_a_worker_builds_the_very_same(tmp_path: Path) -> None:
    made = site(tmp_path)
    inputs = read_inputs(made.config, made.environ)
    generation = made.build(inputs=inputs)
    order = order_of(generation, inputs)
    made.write("server.key", b"the files are bad by now")
    again = built(order.encoded, made.config, made.environ, generation.config, None)
    assert b"PRIVATE KEY" in order.encoded
    assert "PRIVATE KEY" not in repr(order)
    assert again.digest == generation.digest == order.digest
    for name in ("number", "config", "material", "upstream_addresses", "warnings", "built_at", "resolved", "documents"):
        assert getattr(again, name) == getattr(generation, name), name


def test_who_answers_in_time_is_considered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that is stuck keeps nobody waiting. What was considered is built once, and let go if not published."""
    monkeypatch.setattr(module, "PATIENCE", 0.05)
    heard: list[tuple[int, str]] = []
    stuck = asyncio.Event()

    async def ask(self: Scripted, do: str, body: bytes = b"", **_: Any) -> bytes:
        heard.append((self.number, do))
        if self.number == 2 and do == "ping":
            await stuck.wait()
        return orjson.dumps(Consequences(connections=3)) if do == "consider" else body[:0]

    async def run() -> None:
        async with running(site(tmp_path)) as bench:
            for name in ("prepare", "consider", "dismiss"):
                monkeypatch.setattr(Scripted, name, getattr(WorkerProcess, name), raising=False)
            monkeypatch.setattr(Scripted, "ask", ask, raising=False)
            monkeypatch.setattr(Scripted, "_prepared", None, raising=False)
            generation, inputs = bench.candidate()
            assert await bench.fleet.consider(generation, inputs) == Consequences(connections=3, unheard=1)
            assert [do for number, do in heard if number == 1] == ["ping", "prepare", "consider"]
            assert [do for number, do in heard if number == 2] == ["ping"]
            await bench.fleet.dismiss()
            stuck.set()
            heard.clear()
            assert (await bench.fleet.consider(generation, inputs)).connections == 6
            assert {number for number, do in heard if do == "prepare"} == {1, 2}

    asyncio.run(run())
