"""When the names of upstreams are resolved again, and what comes of it, with a resolver that does as it is told."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Awaitable, Callable, Mapping
from types import SimpleNamespace
from typing import Any

import pytest

from tlsproxy.config.model import Config
from tlsproxy.snapshot import name_watch
from tlsproxy.snapshot.name_resolution import NameResolver, Resolved
from tlsproxy.snapshot.name_watch import NameWatch

URL = "http://qdrant.example:6333"
OLD, NEW = (2, ("127.0.0.1", 6333)), (2, ("127.0.0.2", 6333))


class Resolver(NameResolver):
    """``answers``: by URL. ``asked``: the names of each question; the event is set with each."""

    def __init__(self) -> None:
        super().__init__()
        self.answers: dict[str, Resolved | Exception] = {URL: Resolved(URL, (OLD,))}
        self.asked: list[dict[str, str]] = []
        self.was_asked = asyncio.Event()
        self._loop = asyncio.get_running_loop()

    def resolve(self, urls: Mapping[str, str], deadline: float) -> dict[str, Resolved]:
        assert deadline == name_watch.DEADLINE
        self.asked.append(dict(urls))
        answers = {name: self.answers[url] for name, url in urls.items()}
        self._loop.call_soon_threadsafe(self.was_asked.set)
        found = {}
        for name, answer in answers.items():
            if isinstance(answer, Exception):
                raise answer
            found[name] = answer
        return found

    async def again(self, times: int = 1) -> None:
        for _ in range(times):
            self.was_asked.clear()
            await asyncio.wait_for(self.was_asked.wait(), 10)


def generation(url: str = URL, addresses: tuple[Any, ...] = (OLD,), interval: float = 86400) -> Any:
    upstream = {"rest": url, "grpc": "http://127.0.0.1:6334", "resolve_interval": interval}
    config = Config.model_validate({"tls": {"cert": "/c", "key": "/k"}, "upstream": upstream})
    states = SimpleNamespace(names={"upstream.rest": Resolved(url, addresses)})
    return SimpleNamespace(config=config, started=config, states=states)


class Bench:
    def __init__(self, serving: Any) -> None:
        self.serving = serving
        self.resolver = Resolver()
        self.watch = NameWatch(self.resolver)
        self.reloads: asyncio.Queue[str] = asyncio.Queue()
        self.holds = False

    async def reload(self, trigger: str) -> None:
        answer = self.resolver.answers[URL]
        if isinstance(answer, Resolved) and not self.holds:
            self.serving = generation(URL, answer.addresses, self.serving.config.upstream.resolve_interval)
        self.reloads.put_nowait(trigger)


@pytest.fixture(autouse=True)
def _hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(name_watch, "PAUSE", 0.01)
    monkeypatch.setattr(name_watch, "UNRESOLVED", 0.01)
    monkeypatch.setattr(name_watch, "HELD", 0.02)
    monkeypatch.setattr(name_watch, "CHECK", 0.01)


def watching(serving: Any, script: Callable[[Bench], Awaitable[None]]) -> None:
    async def run() -> None:
        bench = Bench(serving)
        running = asyncio.create_task(bench.watch.run(lambda: bench.serving, bench.reload))
        try:
            async with asyncio.timeout(20):
                await script(bench)
            assert not running.done()
        finally:
            running.cancel()

    asyncio.run(run())


def test_a_failed_connection_asks_at_once_and_the_same_addresses_change_nothing() -> None:
    async def script(bench: Bench) -> None:
        for _ in range(3):
            bench.watch.connect_failed()
            await bench.resolver.again()
        assert bench.resolver.asked == [{"upstream.rest": URL}] * 3, "an address is no name"
        bench.resolver.answers[URL] = Resolved(URL, (NEW,))
        bench.watch.connect_failed()
        assert await bench.reloads.get() == "names"
        assert bench.reloads.empty()

    watching(generation(), script)


def test_a_publication_that_is_held_is_asked_for_again() -> None:
    async def script(bench: Bench) -> None:
        bench.holds = True
        bench.resolver.answers[URL] = Resolved(URL, (NEW,))
        for _ in range(2):
            bench.watch.connect_failed()
            assert await bench.reloads.get() == "names"
        bench.holds = False
        bench.watch.connect_failed()
        assert await bench.reloads.get() == "names"
        bench.watch.connect_failed()
        await bench.resolver.again()
        assert bench.reloads.empty()

    watching(generation(), script)


def test_a_changed_interval_counts_at_once() -> None:
    async def script(bench: Bench) -> None:
        assert bench.resolver.asked == []
        bench.serving = generation(interval=1)
        await bench.resolver.again()

    watching(generation(), script)


def test_the_order_of_addresses_is_no_change() -> None:
    async def script(bench: Bench) -> None:
        bench.resolver.answers[URL] = Resolved(URL, (NEW, OLD))
        for _ in range(2):
            bench.watch.connect_failed()
            await bench.resolver.again()
        assert bench.reloads.empty()

    watching(generation(addresses=(OLD, NEW)), script)


def test_a_name_without_an_address_is_asked_for_until_it_has_one() -> None:
    async def script(bench: Bench) -> None:
        bench.resolver.answers[URL] = Resolved(URL, error="is not known")
        await bench.resolver.again(3)
        assert bench.reloads.empty()
        bench.resolver.answers[URL] = Resolved(URL, (NEW,))
        assert await bench.reloads.get() == "names"

    watching(generation(addresses=()), script)


def test_errors_are_logged_when_they_begin_and_end_and_change_nothing(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)

    async def script(bench: Bench) -> None:
        for answer in (Resolved(URL, error="cannot be resolved"), Resolved(URL, (OLD,))):
            bench.resolver.answers[URL] = answer
            for _ in range(3):
                bench.watch.connect_failed()
                await bench.resolver.again()
        assert bench.reloads.empty()

    watching(generation(), script)
    said = [record.message for record in caplog.records if record.name == name_watch.__name__]
    assert said == [
        "upstream.rest: cannot be resolved; its former addresses serve",
        "upstream.rest: can be resolved again",
    ]


def test_a_watch_outlives_a_process_without_threads(caplog: pytest.LogCaptureFixture) -> None:
    async def script(bench: Bench) -> None:
        bench.resolver.answers[URL] = RuntimeError("can't start new thread")
        bench.watch.connect_failed()
        await bench.resolver.again()
        bench.resolver.answers[URL] = Resolved(URL, (NEW,))
        bench.watch.connect_failed()
        assert await bench.reloads.get() == "names"

    watching(generation(), script)
    assert "can't start new thread" in caplog.text


def test_a_resolver_that_hangs_holds_nothing_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """One lookup hangs, and no second is begun; its late answer counts."""
    lookups, release = [], threading.Event()

    def hang(host: str, *_rest: Any, **_more: Any) -> list[Any]:
        lookups.append(host)
        release.wait(20)
        return [(NEW[0], 1, 6, "", NEW[1])]

    monkeypatch.setattr("tlsproxy.snapshot.name_resolution.socket.getaddrinfo", hang)
    resolver = NameResolver()
    for _ in range(3):
        assert "has not been resolved within" in resolver.resolve({"upstream.rest": URL}, 0.01)["upstream.rest"].error
    assert lookups == ["qdrant.example"]
    release.set()
    assert resolver.resolve({"upstream.rest": URL}, 10)["upstream.rest"].addresses == (NEW,)
