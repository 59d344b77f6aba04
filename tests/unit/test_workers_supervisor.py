"""The supervisor's decisions, over workers that do as they are told: what is published, by whom, and who is ended."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import orjson
import pytest
from snapshot_site import ROOT, SnapshotSite, site

from tlsproxy.audit.files import Turn
from tlsproxy.audit.log import NoAudit
from tlsproxy.errors import FailureKind
from tlsproxy.metrics.metrics import Metrics
from tlsproxy.proxy.core.gateway import Notice
from tlsproxy.proxy.core.impact import Consequences
from tlsproxy.service.workers import supervisor as module
from tlsproxy.service.workers.merged_metrics import report
from tlsproxy.service.workers.process import WorkerLost, WorkerProcess, WorkerRefused
from tlsproxy.service.workers.snapshot_codec import EncodedGeneration, decode, encode
from tlsproxy.service.workers.supervisor import NeverServed, Supervisor, WorkerSlot
from tlsproxy.snapshot.generation import Generation

Script = dict[str, list[BaseException | None]]


class Scripted:
    """A worker. ``script`` has what happens at each step, by its name; nothing does where it has no more to say."""

    made: list[Scripted]
    commits: asyncio.Event
    scripts: Iterator[Script]

    def __init__(self, number: int, script: Script) -> None:
        self.number = number
        self.committed: EncodedGeneration | None = None
        self.pid, self.started_at = 1000 + len(self.made), 0.0
        self.script = script
        self.prepared: list[int] = []
        self.done: list[str] = []
        self.over = asyncio.Event()
        self.silence, self.stopped, self.building_time = 0.0, False, 0.01
        self.made.append(self)

    @classmethod
    async def start(cls, number: int, descriptors: Sequence[int], notice: Notice) -> Scripted:
        assert descriptors
        assert notice
        return cls(number, next(cls.scripts, {}))

    def _step(self, name: str) -> None:
        self.done.append(name)
        if (outcome := next(iter(self.script.get(name, [])), None)) is not None:
            raise outcome
        if name in self.script:
            self.script[name].pop(0)

    async def begin(self, started: Sequence[bytes], **facts: Any) -> None:
        assert started[0].startswith(b"identities:")
        assert facts["number"] == self.number
        self._step("begin")

    async def ping(self, deadline: float = 1.0) -> None:
        assert deadline > 0
        self._step("ping")
        if self.stopped:
            self.silence = 1.0
            await self.over.wait()
            raise WorkerLost("it has ended")

    async def prepare(self, encoded: EncodedGeneration) -> None:
        self.prepared.append(encoded.number)
        self._step("prepare")

    async def commit(self, encoded: EncodedGeneration) -> None:
        assert self.prepared[-1] == encoded.number
        self.committed = encoded
        self._step("commit")
        self.commits.set()

    async def ask(self, do: str, *, deadline: float, **_fields: Any) -> bytes:
        assert deadline > 0
        self._step(do)
        return b""

    async def watch(self) -> None:
        await self.ended()

    async def ended(self) -> None:
        await self.over.wait()

    @property
    def has_ended(self) -> bool:
        return self.over.is_set()

    ending = has_ended

    def kill(self) -> None:
        self.done.append("kill")
        self.over.set()

    async def end(self) -> str:
        return "SIGKILL"


@pytest.fixture(autouse=True)
def _scripted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WorkerProcess", Scripted)
    Scripted.made = []
    Scripted.commits = asyncio.Event()
    Scripted.scripts = iter(())


class Bench:
    def __init__(self, made: SnapshotSite, workers: int) -> None:
        self.made = made
        turn = Turn(os.memfd_create("turn"))
        self.supervisor = Supervisor(made.config, made.build(), [], NoAudit(), turn, lambda _event: None)
        self.supervisor._slots = [WorkerSlot(number) for number in range(1, workers + 1)]

    def candidate(self) -> Generation:
        """Of a new certificate."""
        self.made.serve(ROOT.issue(dns=["localhost"], server=True))
        return self.made.build(self.supervisor.generation)

    async def publish(self) -> Generation:
        generation = self.candidate()
        await self.supervisor.publish(generation)
        return generation

    async def replaced(self, count: int) -> None:
        async with asyncio.timeout(10):
            while len(Scripted.made) < count or Scripted.made[-1].committed is None:
                Scripted.commits.clear()
                await Scripted.commits.wait()


@asynccontextmanager
async def running(made: SnapshotSite, workers: int = 2, scripts: Sequence[Script] = ()) -> Any:
    Scripted.scripts = iter(scripts)
    bench = Bench(made, workers)
    try:
        async with bench.supervisor.running():
            yield bench
    finally:
        os.close(bench.supervisor._turn)


def numbers() -> list[int | None]:
    return [one.committed.number if one.committed is not None else None for one in Scripted.made]


def test_each_serves_what_it_has_built(tmp_path: Path) -> None:
    async def run() -> None:
        async with running(site(tmp_path)) as bench:
            generation = await bench.publish()
            assert bench.supervisor.generation is generation
            steps = ["begin", "prepare", "commit", "ping", "prepare", "commit"]
            assert [one.done for one in Scripted.made] == [steps] * 2
            assert numbers() == [2, 2]

    asyncio.run(run())


def test_what_all_refuse_is_not_published(tmp_path: Path) -> None:
    refusing = [{"prepare": [None, WorkerRefused("no memory")]}, {"prepare": [None, WorkerRefused("no descriptor")]}]

    async def run() -> None:
        async with running(site(tmp_path), scripts=refusing) as bench:
            with pytest.raises(WorkerRefused, match="no memory") as raised:
                await bench.publish()
            assert raised.value.kind is FailureKind.ENVIRONMENT
            assert bench.supervisor.generation.number == 1
            assert numbers() == [1, 1]
            assert "kill" not in Scripted.made[0].done + Scripted.made[1].done

    asyncio.run(run())


LEFT_BEHIND: dict[str, Script] = {
    "does not answer": {"ping": [WorkerLost("silent")]},
    "is lost in building": {"prepare": [None, WorkerLost("gone")]},
    "is lost in serving it": {"commit": [None, WorkerLost("gone")]},
    "cannot build it": {"prepare": [None, WorkerRefused("no memory")]},
    "cannot serve it": {"commit": [None, WorkerRefused("something else")]},
}


@pytest.mark.parametrize("script", LEFT_BEHIND.values(), ids=LEFT_BEHIND)
def test_one_that_does_not_follow_is_ended_and_its_successor_has_the_new(tmp_path: Path, script: Script) -> None:
    async def run() -> None:
        async with running(site(tmp_path), scripts=[{}, {step: list(said) for step, said in script.items()}]) as bench:
            await bench.publish()
            assert bench.supervisor.generation.number == 2
            assert Scripted.made[1].done[-1] == "kill"
            await bench.replaced(3)
            assert Scripted.made[0].committed is Scripted.made[2].committed
            assert Scripted.made[0].committed is not None
            assert Scripted.made[0].committed.number == 2
            assert Scripted.made[2].number == 2

    asyncio.run(run())


def test_one_that_is_stopped_holds_up_nobody_and_has_ended_when_it_is_told_that_all_serve(tmp_path: Path) -> None:
    async def run() -> None:
        async with running(site(tmp_path)) as bench:
            first, second = Scripted.made
            second.stopped = True
            publishing = asyncio.create_task(bench.publish())
            first.commits.clear()
            await first.commits.wait()
            assert (first.done[-1], bench.supervisor.generation.number) == ("commit", 2)
            assert not publishing.done()
            await publishing
            assert second.has_ended
            assert second.prepared == [1], "it is not even sent what it would not read"

    asyncio.run(run())


def test_what_nobody_lives_through_is_not_published(tmp_path: Path) -> None:
    lost: Script = {"prepare": [None, WorkerLost("gone")]}

    async def run() -> None:
        async with running(site(tmp_path), scripts=[dict(lost), {"prepare": [None, WorkerLost("gone")]}]) as bench:
            with pytest.raises(WorkerLost, match="lived through") as raised:
                await bench.publish()
            assert raised.value.kind is FailureKind.ENVIRONMENT
            assert bench.supervisor.generation.number == 1
            await bench.replaced(4)
            assert {one.committed.number for one in Scripted.made[2:] if one.committed is not None} == {1}

    asyncio.run(run())


def test_while_draining_it_is_published_and_nobody_is_replaced(tmp_path: Path) -> None:
    async def run() -> None:
        async with running(site(tmp_path)) as bench:
            ended = asyncio.Event()
            draining = asyncio.create_task(bench.supervisor.drain(ended))
            await asyncio.sleep(0)
            Scripted.made[1].kill()
            await bench.publish()
            assert numbers() == [2, 1]
            Scripted.made[0].kill()
            async with asyncio.timeout(10):
                await draining
            assert len(Scripted.made) == 2

    asyncio.run(run())


def test_a_drain_waits_for_no_successor(tmp_path: Path) -> None:
    """The slot of one that has ended is empty for up to half a minute."""

    async def run() -> None:
        async with running(site(tmp_path)) as bench:
            for one in Scripted.made:
                one.kill()
            async with asyncio.timeout(10):
                await bench.supervisor.drain(asyncio.Event())
            assert len(Scripted.made) == 2

    asyncio.run(run())


def test_one_that_starts_during_a_publication_begins_with_what_came_of_it(tmp_path: Path) -> None:
    async def run() -> None:
        async with running(site(tmp_path)) as bench:
            held, slow = asyncio.Event(), asyncio.Event()
            prepare = Scripted.prepare

            async def late(self: Scripted, encoded: EncodedGeneration) -> None:
                await prepare(self, encoded)
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


def test_numbers_find_their_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def run() -> None:
        async with running(site(tmp_path), workers=3) as bench:
            asked: list[tuple[int, int]] = []

            async def ask(self: Scripted, do: str, *, deadline: float, number: int) -> bytes:
                assert (do, deadline > 0) == ("cut", True)
                asked.append((self.number, number))
                return b"true"

            monkeypatch.setattr(Scripted, "ask", ask)
            for number in range(1, 8):
                assert await bench.supervisor.cut(number)
            assert asked == [(1, 1), (2, 2), (3, 3), (1, 4), (2, 5), (3, 6), (1, 7)]

    asyncio.run(run())


def test_the_metrics_of_one_that_has_ended_are_not_those_of_its_successor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It answered, and was replaced before another answered."""
    counted = Metrics(pool=lambda: (0, 0, 0), audit=lambda: (0, 0, 0, 0), limits=lambda: (0, 0))
    counted.connection("accepted")

    async def run() -> None:
        async with running(site(tmp_path)) as bench:

            async def ask(self: Scripted, do: str, *, deadline: float) -> bytes:
                assert (do, deadline > 0) == ("metrics", True)
                if self.number == 2:
                    next(one for one in Scripted.made if one.number == 1).over.set()
                    await bench.replaced(3)
                return report(counted.series())

            monkeypatch.setattr(Scripted, "ask", ask)
            body, _ = await bench.supervisor.metrics()
            assert b'tlsproxy_connections_total{outcome="accepted"} 1.0\n' in body

    asyncio.run(run())


def test_a_worker_builds_the_very_same(tmp_path: Path) -> None:
    made = site(tmp_path)
    generation = made.build()
    encoded = encode(generation)
    made.write("server.key", b"the files are bad by now")
    again = decode(b"".join(encoded.data), made.config, made.environ, generation.config, None)
    assert b"PRIVATE KEY" in b"".join(encoded.data)
    assert "PRIVATE KEY" not in repr(encoded)
    assert again.digest == generation.digest == encoded.digest
    for name in ("number", "states", "config", "material", "nodes", "warnings", "built_at"):
        assert getattr(again, name) == getattr(generation, name), name


def test_who_answers_in_time_is_considered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that is stuck keeps nobody waiting. What was considered is built once, and let go if not published."""
    monkeypatch.setattr(module, "LOOP_DEADLINE", 0.05)
    heard: list[tuple[int, str]] = []
    stuck = asyncio.Event()

    async def ask(self: Scripted, do: str, body: bytes = b"", *, deadline: float) -> bytes:
        heard.append((self.number, do))
        if self.number == 2 and do == "ping" and not stuck.is_set():
            assert deadline == 0.05
            raise WorkerLost("stuck")
        return orjson.dumps(Consequences(connections=3)) if do == "consider" else body[:0]

    async def run() -> None:
        async with running(site(tmp_path)) as bench:
            for name in ("ping", "prepare", "consider", "dismiss"):
                monkeypatch.setattr(Scripted, name, getattr(WorkerProcess, name), raising=False)
            monkeypatch.setattr(Scripted, "_unanswered_since", None, raising=False)
            monkeypatch.setattr(Scripted, "ask", ask, raising=False)
            monkeypatch.setattr(Scripted, "_prepared", None, raising=False)
            generation = bench.candidate()
            assert await bench.supervisor.consider(generation) == Consequences(connections=3, unheard=1)
            assert [do for number, do in heard if number == 1] == ["ping", "prepare", "consider"]
            assert [do for number, do in heard if number == 2] == ["ping"]
            await bench.supervisor.dismiss()
            stuck.set()
            heard.clear()
            assert (await bench.supervisor.consider(generation)).connections == 6
            assert {number for number, do in heard if do == "prepare"} == {1, 2}

    asyncio.run(run())


def test_what_is_wrong_with_a_worker() -> None:
    async def run() -> None:
        slot = WorkerSlot(2)
        assert slot.trouble(1) == "worker 2 is being started"
        worker = Scripted(2, {})
        slot.process = worker  # type: ignore[assignment]
        assert slot.trouble(1) == "worker 2 is being started"
        worker.committed = EncodedGeneration(1, "", ())
        assert slot.trouble(1) == ""
        assert slot.trouble(2) == "worker 2 is still at generation 1"
        worker.silence = 0.9
        assert (slot.silent, slot.trouble(1)) == (0.0, "")
        worker.silence = 4.04
        assert (slot.silent, slot.trouble(1)) == (4.0, "worker 2 has not answered for 4 s")
        assert slot.described()["silent"] == 4.0
        worker.kill()
        assert slot.trouble(1) == "worker 2 is being started"

    asyncio.run(run())
