"""Blocking work in a thread: what it gives, and that nobody waits for one that hangs."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
import threading
import weakref
from contextlib import suppress

import pytest

from tlsproxy import threads
from tlsproxy.service.runtime import loop_factory
from tlsproxy.snapshot.http_connector import HttpResolver
from tlsproxy.threads import free_in_parts, in_thread

HANGING = """
import asyncio, threading
from tlsproxy.threads import free_in_parts, in_thread

async def main():
    hanging = in_thread(threading.Event().wait)
    hanging.cancel()
    try:
        await hanging
    except asyncio.CancelledError:
        print("ended")

asyncio.run(main())
"""


class Refused(Exception):
    pass


def test_a_result_and_an_error() -> None:
    def refuse(text: str, *, by: str) -> None:
        assert threading.current_thread().daemon
        raise Refused(f"{text} by {by}")

    async def run() -> None:
        assert await in_thread(divmod, 7, 2) == (3, 1)
        with pytest.raises(Refused, match="no by a test"):
            await in_thread(refuse, "no", by="a test")

    asyncio.run(run())


def test_a_large_value_is_freed_in_parts_by_a_thread_once_nobody_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "MOMENT", 0.1)

    class Whole:
        def __init__(self, parts: list[Part]) -> None:
            self.parts = parts

    class Part:
        def __del__(self) -> None:
            freed.append(threading.get_ident())
            if len(freed) == threads.MANY:
                ended.set()

    freed: list[int] = []
    ended = threading.Event()
    whole = Whole([Part() for _ in range(threads.MANY)])
    free_in_parts(whole, whole.parts)
    kept = whole
    del whole
    assert not freed
    del kept
    assert ended.wait(20)
    assert threading.get_ident() not in freed


def test_an_error_is_freed_without_the_collector() -> None:
    kept: list[weakref.ref[Refused]] = []

    def refuse() -> None:
        error = Refused()
        kept.append(weakref.ref(error))
        try:
            raise error
        finally:
            del error

    async def run() -> None:
        with suppress(Refused):
            await in_thread(refuse)

    gc.disable()
    try:
        asyncio.run(run())
        assert kept[0]() is None
    finally:
        gc.enable()


def test_the_end_of_the_process_waits_for_none() -> None:
    done = subprocess.run([sys.executable, "-c", HANGING], capture_output=True, text=True, timeout=20, check=True)
    assert (done.stdout, done.stderr) == ("ended\n", "")


def test_names_are_resolved() -> None:
    async def resolved() -> None:
        found = await HttpResolver().resolve("localhost", 443)
        assert {(each["hostname"], each["host"], each["port"]) for each in found} == {("localhost", "127.0.0.1", 443)}

    asyncio.run(resolved())


def test_a_resolver_that_hangs_ends_with_whoever_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    let = threading.Event()

    async def run() -> None:
        loop, asked = asyncio.get_running_loop(), asyncio.Event()

        def hang(*_arguments: object, **_named: object) -> list[object]:
            loop.call_soon_threadsafe(asked.set)
            let.wait(20)
            return []

        monkeypatch.setattr("socket.getaddrinfo", hang)
        task = asyncio.ensure_future(HttpResolver().resolve("hung.example", 443))
        await asked.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    try:
        with asyncio.Runner(loop_factory=loop_factory) as runner:
            runner.run(run())
        assert not let.is_set()
    finally:
        let.set()
