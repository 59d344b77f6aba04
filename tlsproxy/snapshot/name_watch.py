"""Addresses of the upstream's names, looked up again while they serve.

`getaddrinfo` tells no TTL, so a name is resolved each `upstream.resolve_interval`, and at once where a connection to
the upstream has failed. Other addresses than those in force are a reload. While a name cannot be resolved, its former
addresses serve.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import Any, Final

from tlsproxy.snapshot.generation import Generation
from tlsproxy.snapshot.name_resolution import DEADLINE, NameResolver, Resolved, is_fixed, names_of
from tlsproxy.threads import in_thread

UNRESOLVED: Final = 2.0
"""Most seconds between two attempts while a name has no address at all."""
PAUSE: Final = 1.0
"""Least seconds between two attempts, however many connections fail."""
HELD: Final = 10.0
"""Least seconds after a reload that did not bring the addresses into force (`limits.mass_cut`)."""
CHECK: Final = 5.0
"""Seconds between two looks at the interval in force."""

_log = logging.getLogger(__name__)


class NameWatch:
    """Watch of one process. For one event loop."""

    def __init__(self, resolver: NameResolver) -> None:
        self._resolver = resolver
        self._failed = asyncio.Event()
        self._tried = time.monotonic()
        self._errors: dict[str, str] = {}

    def connect_failed(self) -> None:
        """Note that an upstream could not be connected to: its name may have another address by now."""
        self._failed.set()

    async def run(self, generation: Callable[[], Generation], reload: Callable[[str], Awaitable[Any]]) -> None:
        """Resolve the names of the generation in force, and reload when an address has changed. Never ends."""
        while True:
            await self._wait(generation)
            serving = generation()
            answers = await self._answers(_watched(serving))
            self._tried = time.monotonic()
            self._log_errors(serving, answers)
            if _differ(serving, answers):
                await reload("names")
                if _differ(generation(), answers):
                    await asyncio.sleep(HELD)

    async def _answers(self, names: Mapping[str, str]) -> Mapping[str, Resolved]:
        if not names:
            return {}
        try:
            return await in_thread(self._resolver.resolve, names, DEADLINE)
        except (OSError, RuntimeError, MemoryError) as error:  # no thread can be started
            _log.error("names cannot be resolved now: %s", error)
            return {}

    async def _wait(self, generation: Callable[[], Generation]) -> None:
        while not self._failed.is_set() and (left := self._tried + _interval(generation()) - time.monotonic()) > 0:
            with suppress(TimeoutError):
                async with asyncio.timeout(min(left, CHECK)):
                    await self._failed.wait()
        await asyncio.sleep(self._tried + PAUSE - time.monotonic())
        self._failed.clear()

    def _log_errors(self, serving: Generation, answers: Mapping[str, Resolved]) -> None:
        """Log once that a name cannot be resolved any more, and once that it can again."""
        errors = {name: answer.error for name, answer in answers.items() if answer.error}
        for name in errors.keys() - self._errors.keys():
            if serving.states.names[name].addresses:
                _log.warning("%s: %s; its former addresses serve", name, errors[name])
        for name in (self._errors.keys() - errors.keys()) & answers.keys():
            _log.info("%s: can be resolved again", name)
        self._errors = errors


def _watched(serving: Generation) -> dict[str, str]:
    """URLs by configuration key, but for those that name an address."""
    urls = names_of(serving.config, serving.started)
    return {name: url for name, url in urls.items() if not is_fixed(url)}


def _interval(serving: Generation) -> float:
    """Seconds between two attempts."""
    interval: float = serving.config.upstream.resolve_interval
    unresolved = any(not serving.states.names[name].addresses for name in _watched(serving))
    return min(interval, UNRESOLVED) if unresolved else interval


def _differ(serving: Generation, answers: Mapping[str, Resolved]) -> bool:
    """Whether a name has other addresses than those in force; their order does not matter."""
    known = serving.states.names
    return any(
        name in known and answer.addresses and set(answer.addresses) != set(known[name].addresses)
        for name, answer in answers.items()
    )
