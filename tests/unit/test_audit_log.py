from __future__ import annotations

import asyncio
import errno
import json
import logging
import os
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tlsproxy.audit import counters
from tlsproxy.audit.counters import Count
from tlsproxy.audit.files import StandardOutput
from tlsproxy.audit.log import AuditLog, AuditNotWritable, NoAudit, audit_log
from tlsproxy.config.model import AuditConfig

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

FILE = "audit.1970-01-01.log"
WAIT = 10.0


def settings(directory: Path | str, *, queue_size: int = 100, flush_interval: float = 0.01) -> AuditConfig:
    return AuditConfig.model_validate({"dir": directory, "queue_size": queue_size, "flush_interval": flush_interval})


def epoch() -> float:
    return 0.0


class Gate:
    """A sink that writes into memory, and only while it is open."""

    def __init__(self) -> None:
        self.opened = threading.Event()
        self.asked = threading.Event()
        self.data = b""

    def ready(self, when: float) -> bool:
        assert when == 0.0
        return False

    def append(self, data: memoryview) -> int:
        self.asked.set()
        assert self.opened.wait(WAIT)
        self.data += data
        return len(data)

    def close(self) -> None:
        pass


class Script:
    """A sink that does what it is told: at most so many bytes, an error, or the next file."""

    def __init__(self, steps: list[int | str]) -> None:
        self.steps = steps
        self.files = [b""]

    def ready(self, when: float) -> bool:
        assert when == 0.0
        if not self.steps or self.steps[0] != "move":
            return False
        self.steps.pop(0)
        self.files.append(b"")
        return True

    def append(self, data: memoryview) -> int:
        step = self.steps.pop(0) if self.steps else len(data)
        if isinstance(step, str):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        self.files[-1] += data[:step]
        return min(step, len(data))

    def close(self) -> None:
        pass


@contextmanager
def running(log: AuditLog) -> Iterator[AuditLog]:
    log.start()
    try:
        yield log
    finally:
        log.close(WAIT)


@contextmanager
def log_message(part: str) -> Iterator[threading.Event]:
    """Set when the writer logs a message that contains `part`."""
    seen = threading.Event()

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if part in record.getMessage():
                seen.set()

    handler = Handler()
    logger = logging.getLogger("tlsproxy.audit.log")
    logger.addHandler(handler)
    try:
        yield seen
    finally:
        logger.removeHandler(handler)


def test_lines_are_in_the_file_in_order_after_close(tmp_path: Path) -> None:
    with running(AuditLog(settings(tmp_path / "a" / "b", queue_size=5000), epoch)) as log:
        for number in range(3000):
            log.write(f"{number}\n")
    assert (tmp_path / "a" / "b" / FILE).read_text() == "".join(f"{number}\n" for number in range(3000))
    assert (log.queued, log.written, log.dropped) == (0, 3000, 0)
    assert not log.accepts()


def test_lines_reach_the_file_while_it_runs_without_more_of_them() -> None:
    gate = Gate()
    gate.opened.set()
    with running(AuditLog(settings("-"), epoch, gate)) as log:
        log.write("one\n")
        assert gate.asked.wait(WAIT)


def test_half_a_queue_does_not_wait_for_the_flush_interval() -> None:
    gate = Gate()
    gate.opened.set()
    with running(AuditLog(settings("-", queue_size=10, flush_interval=3600), epoch, gate)) as log:
        for number in range(6):
            log.write(f"{number}\n")
        assert gate.asked.wait(WAIT)


def test_rotation_by_the_clock(tmp_path: Path) -> None:
    now = [0.0]
    log = AuditLog(settings(tmp_path), lambda: now[0])
    log.start()
    log.write("one\n")
    log.close(WAIT)
    now[0] = 86_400.0
    log = AuditLog(settings(tmp_path), lambda: now[0])
    log.start()
    log.write("two\n")
    log.close(WAIT)
    assert (tmp_path / FILE).read_text() == "one\n"
    assert (tmp_path / "audit.1970-01-02.log").read_text() == "two\n"


def test_before_it_is_started_nothing_is_accepted(tmp_path: Path) -> None:
    assert not AuditLog(settings(tmp_path), epoch).accepts()


@pytest.mark.parametrize("obstacle", ["a file", "a file's child"])
def test_a_directory_that_cannot_be_made_is_an_error_that_says_what_to_do(tmp_path: Path, obstacle: str) -> None:
    (tmp_path / "file").touch()
    directory = tmp_path / "file" if obstacle == "a file" else tmp_path / "file" / "audit"
    log = AuditLog(settings(directory), epoch)
    with pytest.raises(AuditNotWritable, match=r"audit\.dir .*file.*; let the user that tlsproxy runs as write there"):
        log.start()
    assert not log.accepts()
    log.close()


def test_a_full_queue_accepts_nothing_and_counts_what_comes_nevertheless() -> None:
    gate = Gate()
    with running(AuditLog(settings("-", queue_size=3), epoch, gate)) as log:
        assert log.take()
        log.put("one\n")
        assert gate.asked.wait(WAIT)  # taken by the writer, and still counted: it is not written
        log.write("two\n")
        assert log.take()  # promised, so that nobody else has it
        assert not log.take()
        assert not log.accepts()
        log.write("four\n")
        assert (log.dropped, log.queued) == (1, 2)
        log.put("three\n")
        log.write("five\n")
        assert (log.dropped, log.queued) == (2, 3)
        gate.opened.set()
    lines = gate.data.splitlines()
    assert [line for line in lines if line[:1] != b"{"] == [b"one", b"two", b"three"]
    told = [json.loads(line) for line in lines if line[:1] == b"{"]
    assert [(one["event"], one["result"], one["reason"], one["lost"]) for one in told] == [
        ("audit", "failed", "queue_full", 2)
    ]


def test_whoever_waits_for_room_is_called_when_there_is_some() -> None:
    async def scenario() -> None:
        gate = Gate()
        with running(AuditLog(settings("-", queue_size=1), epoch, gate)) as log:
            log.write("one\n")
            assert not log.take()
            called = asyncio.Event()
            log.when_writable(called.set)
            await asyncio.sleep(0)
            assert not called.is_set()
            gate.opened.set()
            async with asyncio.timeout(WAIT):
                await called.wait()
            assert log.accepts()

    asyncio.run(scenario())


def test_room_that_came_between_the_refusal_and_the_wait_is_not_missed() -> None:
    async def scenario() -> None:
        gate = Gate()
        with running(AuditLog(settings("-", queue_size=1), epoch, gate)) as log:
            log.write("one\n")
            assert not log.take()
            gate.opened.set()
            await asyncio.to_thread(log.close, WAIT)
            called = asyncio.Event()
            log.when_writable(called.set)
            async with asyncio.timeout(WAIT):
                await called.wait()

    asyncio.run(scenario())


def test_a_waiter_for_the_lines_of_others_in_flight_is_not_called_again_and_again() -> None:
    async def scenario() -> None:
        gate = Gate()
        gate.opened.set()
        with running(AuditLog(settings("-", queue_size=2), epoch, gate)) as log:
            calls: list[bool] = []
            called = asyncio.Event()

            def ask_again() -> None:
                calls.append(log.take())
                if calls[-1]:
                    called.set()
                else:
                    log.when_writable(ask_again)

            assert [log.take(), log.take(), log.take()] == [True, True, False]
            log.when_writable(ask_again)
            for _ in range(100):
                await asyncio.sleep(0)
            assert calls == []
            log.put("one\n")
            async with asyncio.timeout(WAIT):
                await called.wait()
            assert len(calls) == 1

    asyncio.run(scenario())


def test_a_loop_that_ended_does_not_end_the_writer() -> None:
    gate = Gate()
    log = AuditLog(settings("-", queue_size=2), epoch, gate)
    log.start()

    async def wait_and_leave() -> None:
        log.write("one\n")
        log.write("two\n")
        assert not log.take()
        log.when_writable(pytest.fail)

    asyncio.run(wait_and_leave())
    with log_message("a loop ended") as told:
        logging.getLogger("tlsproxy.audit.log").setLevel(logging.DEBUG)
        gate.opened.set()
        assert told.wait(WAIT)
    logging.getLogger("tlsproxy.audit.log").setLevel(logging.NOTSET)
    log.write("three\n")
    log.close(WAIT)
    assert gate.data == b"one\ntwo\nthree\n"


def test_a_directory_that_vanishes_refuses_until_it_is_back_and_no_line_is_lost(tmp_path: Path) -> None:
    directory = tmp_path / "audit"

    async def scenario() -> None:
        with running(AuditLog(settings(directory), epoch)) as log:
            directory.rename(tmp_path / "gone")
            changed = threading.Event()
            log.when_health_changes(changed.set)
            log.write("one\n")
            assert await asyncio.to_thread(changed.wait, WAIT)
            assert not log.healthy
            assert not log.accepts()
            assert "No such file" in log.last_error
            log.write("two\n")
            assert not log.take()
            back = asyncio.Event()
            log.when_writable(back.set)
            changed.clear()
            (tmp_path / "gone").rename(directory)
            assert await asyncio.to_thread(changed.wait, WAIT)
            async with asyncio.timeout(WAIT):
                await back.wait()
            assert log.healthy
            assert log.accepts()
            assert log.last_error == ""

    asyncio.run(scenario())
    assert (directory / FILE).read_text() == "one\ntwo\n"


def test_a_full_disk_fails_and_closing_tells_what_is_lost(caplog: pytest.LogCaptureFixture) -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    log = AuditLog(settings("-"), epoch, StandardOutput(full))
    log.start()
    failed = threading.Event()
    log.when_health_changes(failed.set)
    log.write("one\n")
    assert failed.wait(WAIT)
    assert log.last_error == "the standard output cannot be written: No space left on device"
    log.close(0.05)
    os.close(full)
    assert "lines lost: 1 (" in caplog.text


def test_a_writer_that_fails_for_good_accepts_nothing(caplog: pytest.LogCaptureFixture) -> None:
    class Broken(Gate):
        def append(self, data: memoryview) -> int:
            raise RuntimeError(f"a bug at {len(data)} bytes")

    log = AuditLog(settings("-"), epoch, Broken())
    log.start()
    log.write("one\n")
    log._writer.join(WAIT)
    assert not log.accepts()
    assert "a bug" in log.last_error
    assert "the writer has failed" in caplog.text
    log.close()


def test_the_standard_output_gets_whole_lines(capfd: pytest.CaptureFixture[str]) -> None:
    with running(AuditLog(settings("-"), epoch)) as log:
        log.write("one\n")
        log.write("two\n")
    assert capfd.readouterr().out == "one\ntwo\n"


def test_a_line_after_close_is_counted(tmp_path: Path) -> None:
    with running(AuditLog(settings(tmp_path), epoch)) as log:
        pass
    log.write("late\n")
    assert log.dropped == 1


@given(
    st.lists(st.text("abc", max_size=5), min_size=1, max_size=8),
    st.lists(st.integers(0, 12) | st.sampled_from(["fail", "move"]), max_size=20),
)
def test_lines_stay_whole_however_the_writing_fails(texts: list[str], steps: list[int | str]) -> None:
    script = Script(steps)
    lines = [f"{number}{text}\n" for number, text in enumerate(texts)]
    log = AuditLog(settings("-", flush_interval=0.0001), epoch, script, first_pause=0)
    with running(log):
        for line in lines:
            log.write(line)
    assert log.queued == 0
    assert log.healthy is False
    assert script.files[-1].endswith(b"\n") or script.files[-1] == b""
    whole = [line for data in script.files for line in data.decode().splitlines(keepends=True) if line.endswith("\n")]
    assert whole == lines


def test_switched_off_it_is_in_nobodys_way() -> None:
    log = audit_log(AuditConfig(enabled=False))
    assert isinstance(log, NoAudit)
    log.start()
    log.write("one\n")
    assert log.take()
    log.put("two\n")
    log.lose(1, "queue_full")
    log.write_out(0)
    log.close()
    assert (log.queued, log.written, log.dropped, log.healthy) == (0, 0, 0, True)
    assert isinstance(audit_log(AuditConfig()), AuditLog)


def test_repr_shows_the_state(tmp_path: Path) -> None:
    log = AuditLog(settings(tmp_path), epoch)
    assert repr(log) == f"AuditLog(AuditFiles({tmp_path}), healthy=False, queued=0, dropped=0)"
    assert repr(StandardOutput()) == "StandardOutput()"


def test_what_is_about_to_end_writes_out_what_is_queued_whatever_its_thread_was_doing() -> None:
    """The writer waits for its flush interval; the locks that the interrupted thread may hold are held."""
    gate = Gate()
    gate.opened.set()
    log = AuditLog(settings("-", flush_interval=3600), epoch, gate)
    log.start()
    for number in range(5):
        log.write(f"{number}\n")
    with log._lock, log._available._cond, log._closing._cond:
        log.write_out(WAIT)
    assert gate.data == b"0\n1\n2\n3\n4\n"
    assert (log.queued, log.written) == (0, 5)
    log.close(WAIT)
    assert gate.data == b"0\n1\n2\n3\n4\n"


def test_it_waits_for_a_batch_that_is_being_written_and_not_for_long() -> None:
    gate = Gate()
    log = AuditLog(settings("-"), epoch, gate)
    log.start()
    log.write("one\n")
    assert gate.asked.wait(WAIT)
    log.write("two\n")
    log.write_out(0.01)
    assert gate.data == b""
    writing = threading.Thread(target=log.write_out, args=(WAIT,))
    writing.start()
    gate.opened.set()
    writing.join(WAIT)
    log.close(WAIT)
    assert gate.data == b"one\ntwo\n"


def test_lines_that_cannot_be_written_out_stay_owed(tmp_path: Path) -> None:
    counts = counters.private()
    directory = tmp_path / "audit"
    log = AuditLog(settings(directory, queue_size=3, flush_interval=3600), epoch, counts=counts)
    log.start()
    directory.rename(tmp_path / "gone")
    for line in ("one\n", "two\n", "three\n", "four\n"):
        log.write(line)
    log.write_out(WAIT)
    assert counters.settle(counts) == 4
    assert counters.settle(counts) == 0
    log.close(0.01)


def test_counts_are_seen_by_another_process_and_each_place_is_its_own() -> None:
    descriptor = os.memfd_create("counts")
    ours, theirs = counters.shared(descriptor, 1), counters.shared(descriptor, 1)
    ours[Count.TAKEN], ours[Count.WRITTEN] = 5, 3
    assert counters.settle(counters.shared(descriptor, 0)) == 0
    assert counters.settle(theirs) == 2
    assert list(ours) == [0, 0, 0, 0]
    os.close(descriptor)


def test_lost_lines_are_told_of_as_soon_as_any_can_be_written(tmp_path: Path) -> None:
    directory = tmp_path / "audit"
    with running(AuditLog(settings(directory, queue_size=2), epoch)) as log:
        directory.rename(tmp_path / "gone")
        failed = threading.Event()
        log.when_health_changes(failed.set)
        log.write("one\n")
        assert failed.wait(WAIT)
        log.write("two\n")
        log.write("three\n")
        log.write("four\n")
        log.lose(7, "worker_ended")
        (tmp_path / "gone").rename(directory)
    lines = (directory / FILE).read_text().splitlines()
    assert [line for line in lines if line[0] != "{"] == ["one", "two"]
    told = {one["reason"]: one["lost"] for one in map(json.loads, (line for line in lines if line[0] == "{"))}
    assert told == {"not_writable": 2, "worker_ended": 7}
    assert log.dropped == 9
