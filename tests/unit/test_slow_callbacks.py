"""Callbacks that hold a loop for too long are named, on both loops, and nothing is measured unless it is asked for."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import uvloop
from support.rows import rows

from tlsproxy.config.problems import ConfigError
from tlsproxy.connector import program
from tlsproxy.service import server
from tlsproxy.service.slow_callbacks import INTERVAL, NAMES, VARIABLE, SlowLog, measured, seconds_of
from tlsproxy.threads import in_thread

BOTH_LOOPS = pytest.mark.parametrize(
    "factory", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"]
)
DEADLINE = 20.0
LINE = "tests/unit/test_slow_callbacks.py:"


class Sleeper:
    """Blocks, by whatever way it is called."""

    def __init__(self) -> None:
        self.called = asyncio.Event()

    def block(self, *_: object) -> None:
        time.sleep(0.012)
        self.called.set()

    async def block_in_a_task(self) -> None:
        self.block()
        await asyncio.sleep(0.001)


def on_a_measured_loop(factory: Callable[[], asyncio.AbstractEventLoop], main: Callable[[], object]) -> None:
    with asyncio.Runner(loop_factory=measured(factory, {VARIABLE: "10ms"})) as runner:
        runner.run(main())  # type: ignore[arg-type]


def told(caplog: pytest.LogCaptureFixture, name: str) -> str:
    lines = [record.getMessage() for record in caplog.records if name in record.getMessage()]
    assert len(lines) == 1, caplog.text
    return lines[0]


@BOTH_LOOPS
@pytest.mark.parametrize("way", ["soon", "later", "at", "threadsafe", "reader", "writer", "partial"])
def test_a_callback_is_named_however_it_was_scheduled(
    factory: Callable[[], asyncio.AbstractEventLoop], way: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        loop, sleeper, (reading, writing) = asyncio.get_running_loop(), Sleeper(), os.pipe()
        os.write(writing, b".")
        schedule: dict[str, Callable[[], object]] = {
            "soon": lambda: loop.call_soon(sleeper.block, 1),
            "later": lambda: loop.call_later(0.001, sleeper.block),
            "at": lambda: loop.call_at(loop.time(), sleeper.block),
            "threadsafe": lambda: loop.call_soon_threadsafe(sleeper.block),
            "reader": lambda: loop.add_reader(reading, sleeper.block),
            "writer": lambda: loop.add_writer(writing, sleeper.block, 1),
            "partial": lambda: loop.call_soon(partial(partial(sleeper.block, 1), 2)),
        }
        schedule[way]()
        await sleeper.called.wait()
        loop.remove_reader(reading)
        loop.remove_writer(writing)
        os.close(reading)
        os.close(writing)

    on_a_measured_loop(factory, main)
    line = told(caplog, "Sleeper.block")
    assert f"Sleeper.block ({LINE}" in line
    assert " held the loop for " in line
    assert "ms of CPU" in line


@BOTH_LOOPS
def test_a_step_of_a_task_is_named_by_its_coroutine_and_place(
    factory: Callable[[], asyncio.AbstractEventLoop], caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        await asyncio.create_task(Sleeper().block_in_a_task(), name="the slow one")

    on_a_measured_loop(factory, main)
    line = told(caplog, "block_in_a_task")
    assert f"Sleeper.block_in_a_task ({LINE}" in line
    assert "task the slow one, now at" in line


@BOTH_LOOPS
def test_quick_ones_and_their_errors_are_as_ever(
    factory: Callable[[], asyncio.AbstractEventLoop], caplog: pytest.LogCaptureFixture
) -> None:
    failures: list[BaseException] = []

    async def main() -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: failures.append(context["exception"]))
        loop.call_soon(int, "no number")
        await asyncio.sleep(0.001)

    on_a_measured_loop(factory, main)
    assert isinstance(failures[0], ValueError)
    assert "int held" not in caplog.text


def test_a_thread_that_keeps_the_interpreter_is_found(caplog: pytest.LogCaptureFixture) -> None:
    """One call of a C function lets no other thread run."""

    def found() -> bool:
        lines = [record.getMessage() for record in caplog.records]
        return any("perhaps a thread" in line and f"keep {LINE}" in line for line in lines)

    def keep() -> None:
        end = time.monotonic() + DEADLINE
        while not found() and time.monotonic() < end:
            sum(range(2_000_000))

    async def main() -> None:
        await in_thread(keep)

    on_a_measured_loop(uvloop.new_event_loop, main)
    assert found(), caplog.text


def test_lines_are_bounded(caplog: pytest.LogCaptureFixture) -> None:
    now = [0.0]
    log = SlowLog(lambda: now[0])
    for count in range(3):
        log.add("a", 0.02 + count / 100, " (detail)")
    log.tell_more()
    assert [record.getMessage() for record in caplog.records] == ["a held the loop for 20.0 ms (detail)"]
    now[0] = INTERVAL
    log.tell_more()
    log.tell_more()
    assert caplog.records[1].getMessage() == "a held the loop 2 more times, for up to 40.0 ms"
    assert len(caplog.records) == 2
    for number in range(3 * NAMES):
        log.add(f"callback {number}", 0.02, "")
    assert len(caplog.records) == 2 + NAMES
    assert {record.levelno for record in caplog.records} == {logging.WARNING}


def test_without_the_variable_nothing_is_measured() -> None:
    assert measured(uvloop.new_event_loop, {}) is uvloop.new_event_loop
    assert measured(uvloop.new_event_loop, {VARIABLE: ""}) is uvloop.new_event_loop


@rows("text, seconds", [("10ms", 0.01), ("0.5s", 0.5), (" 2s ", 2.0), ("2.5ms", 0.0025)])
def test_times(text: str, seconds: float) -> None:
    assert seconds_of(text) == seconds


@rows("text", ["10", "ten", "0ms", "-1ms", "1 h", "10 ms", "10MS", "ms", "1e3ms", "nan s", "١٠ms", "9" * 400 + "s"])
def test_mistakes_say_what_to_write(text: str) -> None:
    with pytest.raises(ConfigError) as raised:
        seconds_of(text)
    assert str(raised.value) == (
        f"env TLSPROXY_SLOW_CALLBACK {text!r} is not a time above 0 with its unit: write 10ms or 0.5s, or leave it out"
    )


def test_a_mistake_keeps_both_programs_from_starting(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(VARIABLE, "10")
    for run in (server.run, program.run):
        with pytest.raises(ConfigError, match="write 10ms or"):
            run(tmp_path / "none.yaml", None)
