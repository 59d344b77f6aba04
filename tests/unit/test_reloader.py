from __future__ import annotations

import asyncio
import gc
import json
import os
import socket
import ssl
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from snapshot_site import OTHER, ROOT, SERVER, SnapshotSite, site

from tlsproxy.errors import MaterialError
from tlsproxy.proxy.core.impact import Affected, Consequences, Group
from tlsproxy.proxy.core.wall_clock import Clock
from tlsproxy.service import reloader
from tlsproxy.service.lock_publisher import LockPublisher
from tlsproxy.service.lock_trail import LockTrail
from tlsproxy.service.node_trail import NodeTrail
from tlsproxy.service.reloader import Reloader
from tlsproxy.service.systemd.notify import Notifier
from tlsproxy.service.workers.process import WorkerLost
from tlsproxy.snapshot import files, reading, watch
from tlsproxy.snapshot.bundles import Bundles
from tlsproxy.snapshot.files import read_inputs
from tlsproxy.snapshot.generation import Generation
from tlsproxy.snapshot.jwks import KeySets
from tlsproxy.snapshot.lock_file import LockFileWatch
from tlsproxy.snapshot.watch import Watcher


@pytest.fixture(autouse=True)
def _hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "PAUSE", 0.005)


class Bench:
    """A reloader over real files. What it publishes, counts and writes down is kept."""

    def __init__(self, made: SnapshotSite) -> None:
        self.generation = made.build()
        self.lines: list[dict[str, Any]] = []
        self.consequences = Consequences()
        self.considered: list[int | str] = []
        self.counted: list[tuple[str, str]] = []
        self.told = asyncio.Event()
        self.audit = SimpleNamespace(write=self._write)
        metrics = SimpleNamespace(reload=lambda result, trigger, _when: self.counted.append((result, trigger)))
        metrics.published = lambda _generation: None
        metrics.judged = lambda _inputs: None
        metrics.locked = lambda _kinds: None
        self.clock = Clock()
        lock_watch = LockFileWatch(made.config, self.generation.states.locks)
        watcher = Watcher(made.config, made.environ, read_inputs(made.config, made.environ))
        self.reloader = Reloader(
            target=self,
            audit=self.audit,  # type: ignore[arg-type]
            metrics=metrics,  # type: ignore[arg-type]
            config_path=made.config,
            environ=made.environ,
            watcher=watcher,
            key_sets=KeySets(),
            bundles=Bundles(made.config, made.environ),
            observer=Notifier(),
            faults={},
            locks=LockPublisher(
                self,
                lock_watch,
                LockTrail(self.audit, metrics, lock_watch.path),  # type: ignore[arg-type]
                NodeTrail(self.audit),  # type: ignore[arg-type]
            ),
        )

    async def consider(self, generation: Any) -> Consequences:
        self.considered.append(generation.number)
        return self.consequences

    async def dismiss(self) -> None:
        self.considered.append("dismissed")

    async def publish(self, generation: Any) -> None:
        self.generation = generation

    def _write(self, line: str) -> None:
        self.lines.append(json.loads(line))
        self.told.set()

    async def until(self, reached: Callable[[], bool]) -> None:
        async with asyncio.timeout(10):
            while not reached():
                self.told.clear()
                await self.told.wait()


def fresh(made: SnapshotSite) -> str:
    issued = ROOT.issue(dns=["localhost"], server=True)
    made.serve(issued)
    return f"{issued.serial:x}"


def test_callers_that_come_during_a_build_share_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = site(tmp_path)
    begun, go_on = threading.Semaphore(0), threading.Semaphore(0)
    propose = reloader.propose

    def held(*arguments: Any, **named: Any) -> Any:
        begun.release()
        assert go_on.acquire(timeout=10)
        return propose(*arguments, **named)

    async def run() -> None:
        bench = Bench(made)
        monkeypatch.setattr(reloader, "propose", held)
        first = asyncio.create_task(bench.reloader.reload("sighup"))
        assert await asyncio.to_thread(begun.acquire, timeout=10)
        serial = fresh(made)  # too late for the build that is at work
        others = [asyncio.create_task(bench.reloader.reload("admin")) for _ in range(50)]
        go_on.release(2)
        await asyncio.sleep(0)
        verdicts = await asyncio.gather(*others)

        assert (await first).result == "unchanged"
        assert {verdict.generation for verdict in verdicts} == {2}
        assert {verdict.result for verdict in verdicts} == {"ok"}
        assert bench.generation.material.leaf.serial == serial
        assert bench.counted == [("unchanged", "sighup"), ("ok", "admin")]

    asyncio.run(run())


class SetClock(Clock):
    """Shows what it is set to."""

    def __init__(self) -> None:
        self.moment = time.time()

    def now(self) -> float:
        return self.moment


def test_a_pair_may_be_half_replaced_for_a_while(tmp_path: Path) -> None:
    made = site(tmp_path, tls={"settle_time": 5})
    first, second = (ROOT.issue(dns=["localhost"], server=True) for _ in range(2))

    async def run() -> None:
        bench = Bench(made)
        bench.clock = SetClock()

        async def reloaded(trigger: str, seconds: float = 0) -> tuple[str, str]:
            bench.clock.moment += seconds
            result = await bench.reloader.reload(trigger)
            (pair,) = [one for one in result.inputs if one.input == "certificate"]
            return result.result, pair.state

        made.write("server.pem", first.chain_pem)
        assert await reloaded("watch") == ("ok", "waits")
        assert await reloaded("poll", 3) == ("ok", "waits")
        assert (bench.counted, bench.lines, bench.reloader.faults) == ([], [], ())
        made.serve(first)
        assert await reloaded("watch", 1) == ("ok", "published")

        made.write("server.pem", second.chain_pem)
        assert await reloaded("watch", 10) == ("ok", "waits")
        made.configure(tls={"settle_time": 5}, limits={"idle_timeout": 9})
        assert await reloaded("watch", 4) == ("ok", "waits"), "what has changed beside it is published"
        assert bench.generation.config.limits.idle_timeout == 9
        (tmp_path / "server.key").unlink()
        assert await reloaded("time", 2) == ("failed", "refused"), "from the first of them on, whatever follows"
        assert bench.reloader.faults
        made.serve(second)
        assert await reloaded("watch") == ("ok", "published")

        made.write("server.pem", first.chain_pem)
        assert (await bench.reloader.rehearse())["result"] == "failed"
        assert await reloaded("watch") == ("ok", "waits")
        assert await reloaded("admin") == ("failed", "refused"), "who asks is told at once"
        assert await reloaded("watch") == ("failed", "refused")
        made.serve(first)
        assert await reloaded("watch", -20) == ("ok", "published")
        made.write("server.pem", second.chain_pem)
        assert await reloaded("watch") == ("ok", "waits")
        assert await reloaded("watch", -20) == ("ok", "waits")
        assert await reloaded("time", 6) == ("failed", "refused"), "a clock that was set back prolongs nothing"

    asyncio.run(run())


def test_a_passphrase_that_comes_after_its_key_is_waited_for(tmp_path: Path) -> None:
    made, issued = site(tmp_path, tls={"key_passphrase_file": "pass"}), ROOT.issue(dns=["localhost"], server=True)
    key = serialization.load_pem_private_key(issued.key_pem, None)

    def encrypted(passphrase: bytes) -> bytes:
        encryption = serialization.BestAvailableEncryption(passphrase)
        return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption)

    async def run() -> None:
        made.write("server.pem", issued.chain_pem)
        made.write("server.key", encrypted(b"one"))
        made.write("pass", b"one")
        bench = Bench(made)
        made.write("server.key", encrypted(b"two"))
        assert (await bench.reloader.reload("watch")).result == "ok"
        assert (bench.counted, bench.generation.number) == ([], 1)
        made.write("pass", b"two")
        assert (await bench.reloader.reload("watch")).generation == 2
        assert bench.counted == [("ok", "watch")]

    asyncio.run(run())


@pytest.mark.parametrize("late", [0.0, 1.0], ids=["ahead", "passed while the reload ended"])
def test_the_end_of_waiting_for_a_pair_needs_no_trigger(tmp_path: Path, late: float) -> None:
    made = site(tmp_path, tls={"settle_time": 0.1})

    async def run() -> None:
        bench = Bench(made)
        bench.clock = Clock() if not late else SetClock()
        made.write("server.pem", ROOT.issue(dns=["localhost"], server=True).chain_pem)
        await bench.reloader.reload("watch")
        if isinstance(bench.clock, SetClock):
            bench.clock.moment += late
        retrying = asyncio.create_task(bench.reloader.retry())
        await bench.until(lambda: bool(bench.lines))
        assert bench.counted == [("failed", "time")]
        retrying.cancel()
        await asyncio.gather(retrying, return_exceptions=True)

    asyncio.run(run())


def test_a_caller_that_gave_up_takes_nobody_with_it(tmp_path: Path) -> None:
    made = site(tmp_path)

    async def run() -> None:
        bench = Bench(made)
        first = asyncio.create_task(bench.reloader.reload("admin"))
        await asyncio.sleep(0)
        second = asyncio.create_task(bench.reloader.reload("admin"))
        await asyncio.sleep(0)
        first.cancel()
        assert (await second).result == "unchanged"
        assert first.cancelled()

    asyncio.run(run())


def test_files_that_were_caught_in_the_writing_are_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A signal came while their writer, for a moment, had them cut off."""
    made = site(tmp_path, tls={"poll_interval": 0.02})
    failures = [MaterialError(str(tmp_path / "server.key"), "does not exist; create it")]

    def unlucky_once(*arguments: Any, **more: Any) -> Any:
        inputs = read_inputs(*arguments, **more)
        if not failures:
            return inputs
        path = tmp_path / "server.key"
        files = {each: data for each, data in inputs.files.items() if each != path}
        return replace(inputs, files=files, failures={path: failures.pop()}, digest="without the key")

    async def run() -> None:
        bench = Bench(made)
        monkeypatch.setattr(watch, "read_inputs", unlucky_once)
        serial = fresh(made)
        assert (await bench.reloader.reload("sighup")).result == "failed"
        watching = asyncio.create_task(bench.reloader.run())
        await bench.until(lambda: bench.generation.material.leaf.serial == serial)
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)

    asyncio.run(run())


@pytest.mark.parametrize("poll", ["before", "meanwhile"])
def test_a_file_that_is_being_written_stays_as_the_reload_before_read_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, poll: str
) -> None:
    """The last poll began before that reload; else what was taken away would be back."""
    made, read, busy = site(tmp_path), reading.read, tmp_path / "server.pem"
    polled, go_on = threading.Event(), threading.Event()

    def late(*arguments: Any, **named: Any) -> Any:
        inputs = read_inputs(*arguments, **named)
        polled.set()
        assert go_on.wait(10)
        return inputs

    def disturbed(path: Path, *arguments: Any) -> Any:
        if path == busy:
            made.write(busy.name, os.urandom(8))
        return read(path, *arguments)

    async def run() -> None:
        bench = Bench(made)
        with monkeypatch.context() as patch:
            patch.setattr(watch, "read_inputs", late)
            polling = asyncio.create_task(bench.reloader._watcher.read())
            assert await asyncio.to_thread(polled.wait, 10)
        if poll == "before":
            go_on.set()
            await polling
        serial = fresh(made)
        reloading = asyncio.create_task(bench.reloader.reload("sighup"))
        await asyncio.wait([reloading], timeout=0.2)  # it waits for the poll, which would end after it
        go_on.set()
        await polling
        assert (await reloading).result == "ok"
        monkeypatch.setattr(reading, "read", disturbed)
        assert (await bench.reloader.reload("sighup")).result == "unchanged"
        assert bench.generation.material.leaf.serial == serial

    asyncio.run(run())


@pytest.mark.parametrize("spoil", [b"", None], ids=["unusable", "unreadable"])
def test_the_watcher_does_not_repeat_what_a_signal_has_tried(tmp_path: Path, spoil: bytes | None) -> None:
    made = site(tmp_path, tls={"poll_interval": 0.02})

    async def run() -> None:
        bench = Bench(made)
        watcher = bench.reloader._watcher
        poll = watcher._poll
        if spoil is None:
            (tmp_path / "server.key").unlink()
        else:
            made.write("server.key", spoil)
        assert (await bench.reloader.reload("sighup")).result == "failed"
        polls, polled = 0, asyncio.Event()

        async def counted() -> Any:
            nonlocal polls
            outcome = await poll()
            polls += 1
            polled.set()
            return outcome

        watcher._poll = counted  # type: ignore[method-assign]
        watching = asyncio.create_task(bench.reloader.run())
        async with asyncio.timeout(10):
            while polls < 4:
                polled.clear()
                await polled.wait()
        assert bench.counted == [("failed", "sighup")]
        fresh(made)
        await bench.until(lambda: bench.generation.number > 1)
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)

    asyncio.run(run())


def test_a_configuration_that_is_refused_leaves_the_files_of_the_one_that_serves_read(tmp_path: Path) -> None:
    made = site(tmp_path, tls={"crl": ["a.crl"]})
    made.write("a.crl", ROOT.crl_pem())
    made.write("b.crl", ROOT.crl_pem())

    async def run() -> None:
        bench = Bench(made)
        unnamed = {"ca": "CN=nobody", "dns": ["nobody.example"]}
        made.configure(tls={"crl": ["b.crl"], "ca_constraints": [unnamed]})
        made.write("a.crl", ROOT.crl_pem([7], number=2))
        assert (await bench.reloader.reload("admin")).result == "partial"
        assert [(crl.number, crl.count) for crl in bench.generation.material.crls] == [(2, 1)]

        made.configure(tls={"crl": ["b.crl"]})
        made.write("b.crl", ROOT.crl_pem([7], number=3))
        assert (await bench.reloader.reload("admin")).result == "ok"
        watcher = bench.reloader._watcher
        served = watcher.inputs.digest
        made.write("a.crl", b"nobody's by now")
        assert (await watcher.read()).digest == served == watcher._state

    asyncio.run(run())


def test_a_failure_names_the_file_and_changes_nothing(tmp_path: Path) -> None:
    made = site(tmp_path)

    async def run() -> None:
        bench = Bench(made)
        before = bench.generation
        made.write("server.pem", OTHER.issue(dns=["localhost"], server=True).chain_pem)
        verdict = await bench.reloader.reload("admin")
        assert verdict.result == "failed"
        assert verdict.error.startswith(f"{tmp_path / 'server.key'}: does not belong")
        assert bench.generation is before
        assert bench.reloader.status()["error"] == verdict.error

    asyncio.run(run())


def test_what_changed_is_found_beside_the_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = site(tmp_path)
    threads = []
    changes_between = reloader.changes_between

    def noted(*generations: Any) -> Any:
        threads.append(threading.current_thread())
        return changes_between(*generations)

    async def run() -> None:
        bench = Bench(made)
        monkeypatch.setattr(reloader, "changes_between", noted)
        fresh(made)
        verdict = await bench.reloader.reload("sighup")
        assert [change.what for change in verdict.changes] == ["certificate"]

    asyncio.run(run())
    assert threads
    assert threading.main_thread() not in threads


def cutting(count: int, of: int) -> Consequences:
    return Consequences(
        of, Group.of(Affected(each, "rest", "::1", str(each), "CN=a", "r", "", "no_role") for each in range(count))
    )


UNGUARDED = {"limits": {"mass_cut": {"number": None}}}
"""Of no use: what serves decides."""


@pytest.mark.parametrize("trigger", ["watch", "ttl", "sighup", "admin"])
def test_a_publication_that_cuts_too_much_is_held_until_it_is_forced(tmp_path: Path, trigger: str) -> None:
    made = site(tmp_path, limits={"mass_cut": {"number": 2}})

    async def run() -> None:
        bench = Bench(made)
        made.configure(**UNGUARDED)
        bench.consequences = cutting(3, 4)
        for _ in range(2):
            verdict = await bench.reloader.reload(trigger)
            assert (verdict.result, verdict.generation, bench.generation.number) == ("held", 1, 1)
            assert "3 of 4 live connections cut (no_role 3): CN=a" in verdict.error
            assert bench.lines[-1]["error"] == verdict.error == bench.reloader.faults[0]
            assert bench.reloader._watcher._state == made.digest()
            assert bench.reloader._next_retry() is None
        assert bench.considered == [2, "dismissed"] * 2
        bench.consequences = cutting(2, 2)  # one has left by itself
        assert (await bench.reloader.reload(trigger)).result == "ok"
        assert bench.generation.config.limits.mass_cut.number is None
        assert bench.reloader.faults == ()
        assert bench.counted == [("held", trigger)] * 2 + [("ok", trigger)]

    asyncio.run(run())


def test_what_is_forced_is_what_the_files_say_by_then(tmp_path: Path) -> None:
    made = site(tmp_path, limits={"mass_cut": {"number": 2}})

    async def run() -> None:
        bench = Bench(made)
        made.configure(**UNGUARDED)
        bench.consequences = cutting(3, 4)
        assert (await bench.reloader.reload("watch")).result == "held"
        made.configure(limits={"mass_cut": {"number": 7}})
        assert (await bench.reloader.reload("admin", force=True)).result == "ok"
        assert bench.generation.config.limits.mass_cut.number == 7
        made.configure(**UNGUARDED)
        bench.consequences = cutting(8, 9)
        assert (await bench.reloader.reload("watch")).result == "held"
        made.config.write_text("roles: [")
        assert (await bench.reloader.reload("admin", force=True)).result == "failed"
        assert bench.generation.config.limits.mass_cut.number == 7

    asyncio.run(run())


def test_who_forces_shares_no_verdict_of_one_that_was_held(tmp_path: Path) -> None:
    made = site(tmp_path, limits={"mass_cut": {"share": 0.5}})

    async def run() -> None:
        bench = Bench(made)
        made.configure(**UNGUARDED)
        bench.consequences = cutting(3, 4)
        asked = [(False, "held"), (False, "held"), (True, "ok"), (True, "ok"), (False, "ok")]
        outcomes = await asyncio.gather(*(bench.reloader.reload("admin", force=force) for force, _ in asked))
        assert [verdict.result for verdict in outcomes] == [result for _, result in asked]
        assert bench.generation.number == 2

    asyncio.run(run())


def test_the_certificate_is_renewed_beside_what_is_held(tmp_path: Path) -> None:
    made = site(tmp_path, limits={"mass_cut": {"number": 2}})

    async def run() -> None:
        bench = Bench(made)
        made.configure(**UNGUARDED)
        bench.consequences = cutting(3, 4)
        assert (await bench.reloader.reload("watch")).generation == 1
        was, serial = bench.generation.material.leaf, fresh(made)
        beside = "held back by limits.mass_cut, but for the server's own certificate until"
        assert (await bench.reloader.rehearse())["error"].startswith(beside)
        verdict = await bench.reloader.reload("watch")
        assert (verdict.result, verdict.generation) == ("held", 2)
        assert verdict.error.startswith(beside)
        assert [change.what for change in verdict.changes] == ["certificate"]
        line = bench.lines[-1]
        present = bench.generation.material.leaf
        assert (line["old_certificate_sha256"], line["new_certificate_sha256"]) == (was.sha256, present.sha256)
        assert bench.generation.material.leaf.serial == serial
        assert bench.generation.config.limits.mass_cut.number == 2
        assert (await bench.reloader.reload("watch")).error.startswith("held back by limits.mass_cut until")
        made.configure(limits={"mass_cut": {"number": 2}})  # taken back
        assert (await bench.reloader.reload("watch")).result == "unchanged"
        assert (bench.generation.number, bench.reloader.faults) == (2, ())

    asyncio.run(run())


def test_a_moment_that_comes_while_something_is_held_is_tried_once(tmp_path: Path) -> None:
    made = site(tmp_path, limits={"mass_cut": {"number": 2}})
    ahead = 0.0

    async def run() -> None:
        nonlocal ahead
        bench = Bench(made)
        bench.clock = Clock(
            SimpleNamespace(time=lambda: time.time() + ahead, monotonic=lambda: time.monotonic() + ahead)
        )
        made.configure(**UNGUARDED)
        later = ROOT.issue(dns=["localhost"], server=True, not_before=datetime.now(UTC) + timedelta(seconds=100))
        made.serve(later)
        bench.consequences = cutting(3, 4)
        assert (await bench.reloader.reload("watch")).generation == 1
        quiet = bench.reloader._next_retry()
        assert quiet is not None
        assert quiet > 0
        ahead = 200.0
        trying = asyncio.create_task(bench.reloader.retry())
        await bench.until(lambda: bench.generation.number == 2)
        assert bench.generation.material.leaf.serial == f"{later.serial:x}"
        assert (bench.reloader.last.result, bench.reloader._next_retry()) == ("held", None)
        trying.cancel()
        await asyncio.gather(trying, return_exceptions=True)
        assert bench.counted == [("held", "watch"), ("held", "time")]

    asyncio.run(run())


def test_a_pair_that_never_matches_is_reported_while_something_is_held(tmp_path: Path) -> None:
    made = site(tmp_path, limits={"mass_cut": {"number": 2}}, tls={"settle_time": 1})

    async def run() -> None:
        bench = Bench(made)
        bench.clock = clock = SetClock()
        made.configure(**UNGUARDED, tls={"settle_time": 1})
        made.write("server.pem", ROOT.issue(dns=["localhost"], server=True).chain_pem)
        bench.consequences = cutting(3, 4)
        assert "does not belong" not in (await bench.reloader.reload("watch")).error
        for connections in (4, 5):
            bench.consequences = cutting(3, connections)
            clock.moment += 2
            await bench.reloader.reload("time")
        assert bench.counted == [("held", "watch"), ("held", "time")]
        assert "does not belong" in bench.lines[-1]["error"]

    asyncio.run(run())


def test_a_defect_in_considering_keeps_nothing_from_being_published(tmp_path: Path) -> None:
    made = site(tmp_path, limits={"mass_cut": {"number": 0}})

    async def run() -> None:
        bench = Bench(made)
        bench.consequences = None  # type: ignore[assignment]
        serial = fresh(made)
        assert (await bench.reloader.reload("watch")).result == "ok"
        assert bench.generation.material.leaf.serial == serial

    asyncio.run(run())


def test_a_rehearsal_says_what_a_reload_would_and_changes_nothing(tmp_path: Path) -> None:
    made = site(tmp_path, limits={"mass_cut": {"number": 2}})

    async def run() -> None:
        bench = Bench(made)
        before, state = bench.reloader.status(), bench.reloader._watcher._state
        assert (await bench.reloader.rehearse())["result"] == "unchanged"
        fresh(made)
        bench.consequences = cutting(1, 4)
        told = await bench.reloader.rehearse()
        assert (told["result"], told["generation"], told["consequences"]["cut"]["count"]) == ("ok", 1, 1)
        assert [change["what"] for change in told["changes"]] == ["certificate"]
        bench.consequences = cutting(3, 4)
        told = await bench.reloader.rehearse()
        assert (told["result"], told["error"].startswith("held back by limits.mass_cut")) == ("held", True)
        made.write("server.key", b"")
        told = await bench.reloader.rehearse()
        assert (told["result"], "server.key: is empty" in told["error"]) == ("failed", True)
        assert bench.considered == [2, "dismissed"] * 2  # what is unchanged has none
        assert (bench.reloader.status(), bench.reloader._watcher._state) == (before, state)
        assert (bench.lines, bench.counted, bench.generation.number) == ([], [], 1)

    asyncio.run(run())


def test_reloads_that_are_refused_leave_no_errors_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error has frames, and they have files: in a circle each would be kept until the collector comes to it."""
    monkeypatch.setattr(files, "PAUSE", 0)
    made = site(tmp_path)
    good = made.config.read_bytes()

    def errors() -> int:
        return sum(isinstance(each, BaseException) for each in gc.get_objects())

    async def run() -> None:
        bench = Bench(made)
        before = errors()
        for turn in range(12):
            made.config.write_bytes(good if turn % 3 else b"roles: [\n" + b"#" * turn)
            made.write("ca.pem", b"bad %d" % turn)
            if turn % 2:
                (tmp_path / "ca.pem").unlink()
            assert (await bench.reloader.reload("admin")).result == "failed"
        assert errors() - before <= 2

    gc.collect()
    gc.disable()
    try:
        asyncio.run(run())
    finally:
        gc.enable()


@asynccontextmanager
async def mending(bench: Bench) -> AsyncIterator[None]:
    """What waits is tried again."""
    task = asyncio.create_task(bench.reloader.retry())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def test_what_cannot_be_published_is_tried_again_and_told_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lost workers, and descriptors that are gone, are not the fault of the files."""
    monkeypatch.setattr(reloader, "FIRST_RETRY", 0.01)
    monkeypatch.setattr(reloader, "LAST_RETRY", 0.02)
    made = site(tmp_path)

    async def run() -> None:
        bench = Bench(made)
        failures: list[Exception] = [WorkerLost("gone"), WorkerLost("gone"), OSError(24, "Too many open files")]
        publish = bench.publish

        async def unlucky(generation: Any) -> None:
            if failures:
                raise failures.pop(0)
            await publish(generation)

        bench.publish = unlucky  # type: ignore[method-assign]
        serial = fresh(made)
        async with mending(bench):
            verdict = await bench.reloader.reload("sighup")
            assert (verdict.result, verdict.error, verdict.inputs[0].state) == ("failed", "gone", "retried")
            await bench.until(lambda: bench.generation.material.leaf.serial == serial)
        assert [line["error"].partition(":")[0] for line in bench.lines if "error" in line] == [
            "gone",
            "cannot be built now",
        ]
        assert bench.counted == [("failed", "sighup"), ("failed", "retry"), ("ok", "retry")]
        assert bench.reloader.last.error == ""

    asyncio.run(run())


@pytest.mark.parametrize("back", [False, True], ids=["ahead", "set back"])
def test_what_waits_is_published_at_its_moment_by_the_clock_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, back: bool
) -> None:
    monkeypatch.setattr(reloader, "CLOCK_CHECK", 0.01)
    made = site(tmp_path)

    async def run() -> None:
        bench = Bench(made)
        wall = [time.time()]
        bench.clock = SimpleNamespace(now=lambda: wall[0])  # type: ignore[assignment]
        issued = ROOT.issue(dns=["localhost"], server=True, not_before=datetime.now(UTC) + timedelta(hours=1))
        made.serve(issued)
        async with mending(bench):
            verdict = await bench.reloader.reload("sighup")
            (waiting,) = [one for one in verdict.inputs if one.state != "published"]
            assert (waiting.input, waiting.state, waiting.kept) == ("certificate", "waits", True)
            assert waiting.until == pytest.approx(time.time() + 3600, abs=60)
            if back:  # what was judged by a wrong clock is judged anew, by whatever trigger
                wall[0] -= 7200
                assert (await bench.reloader.reload("clock")).result == "failed"
            wall[0] = waiting.until or 0
            await bench.until(lambda: bench.generation.material.leaf.serial == f"{issued.serial:x}")
        assert bench.counted[-1] == ("ok", "time")

    asyncio.run(run())


def test_a_name_is_asked_for_until_it_resolves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reloader, "FIRST_RETRY", 0.01)
    made = site(tmp_path)
    known, ask = False, socket.getaddrinfo

    def resolve(host: str, *rest: Any, **more: Any) -> Any:
        if host == "qdrant.example" and not known:
            raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
        return ask("127.0.0.1" if host == "qdrant.example" else host, *rest, **more)

    monkeypatch.setattr("tlsproxy.snapshot.name_resolution.socket.getaddrinfo", resolve)

    async def run() -> None:
        nonlocal known
        bench = Bench(made)
        made.configure(upstream={"rest": "http://qdrant.example:1", "grpc": "http://127.0.0.1:2"})
        assert (await bench.reloader.reload("sighup")).result == "partial"
        assert bench.generation.nodes[0].rest.addresses == ()
        assert (await bench.reloader.reload("retry")).result == "partial"  # as it was told
        known = True
        async with mending(bench):
            await bench.until(lambda: bench.generation.nodes[0].rest.addresses != ())
        known = False
        assert (await bench.reloader.reload("sighup")).result == "unchanged"  # its former addresses do
        counted = list(bench.counted)
        await bench.reloader.reload("retry")
        assert bench.counted == counted

    asyncio.run(run())


def test_rotations_good_and_bad_leave_nothing_behind(tmp_path: Path) -> None:
    """No generation, context or error stays, and nobody needs the collector for it."""
    made = site(tmp_path, tls={"crl": ["a.crl"]})
    made.write("a.crl", ROOT.crl_pem())
    other = ROOT.issue(dns=["localhost"], server=True)
    rotations: list[Callable[[], object]] = [
        lambda: made.serve(SERVER),
        lambda: made.write("server.key", b"-----BEGIN PRIVATE KEY-----\n"),
        lambda: made.serve(other),
        lambda: made.write("a.crl", b"no CRL"),
    ]

    async def run() -> None:
        bench = Bench(made)

        async def rotate(times: int) -> None:
            for turn in range(times):
                rotations[turn % len(rotations)]()
                await bench.reloader.reload("admin")
                bench.lines.clear()

        await rotate(8)
        gc.collect()
        gc.disable()
        try:
            kinds = (Generation, BaseException, ssl.SSLContext)
            before = Counter(type(one).__name__ for one in gc.get_objects() if isinstance(one, kinds))
            await rotate(20)
            after = Counter(type(one).__name__ for one in gc.get_objects() if isinstance(one, kinds))
        finally:
            gc.enable()
        assert after - before == Counter()

    asyncio.run(run())
