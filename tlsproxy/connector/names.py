"""Addresses of the targets' names, looked up again while they serve.

A name that does not resolve keeps its former addresses.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from typing import Final

from tlsproxy.proxy.transport.dial import Address
from tlsproxy.snapshot.name_resolution import DEADLINE, NameResolver, Resolved, is_fixed
from tlsproxy.snapshot.name_watch import PAUSE, UNRESOLVED
from tlsproxy.threads import in_thread

MOST: Final = 16
"""Addresses of a name that are tried."""

_log = logging.getLogger(__name__)


class TargetNames:
    """For one event loop. ``targets`` are those of the configuration in force, ``interval`` its `resolve_interval`.

    ``moved`` is told the targets that have other addresses now.
    """

    def __init__(
        self,
        targets: Callable[[], Collection[str]],
        interval: Callable[[], float],
        moved: Callable[[Collection[str]], None],
    ) -> None:
        self._moved = moved
        self._targets = targets
        self._interval = interval
        self._resolver = NameResolver()
        self._found: dict[str, tuple[Address, ...]] = {}
        self._errors: Mapping[str, str] = {}
        self._due = asyncio.Event()

    def addresses(self, target: str) -> tuple[Address, ...]:
        return self._found.get(target, ())

    def error(self, target: str) -> str:
        """The reason why there are no addresses."""
        return self._errors.get(target, "its name was not resolved yet")

    def ask(self) -> None:
        """Look up soon: a connection failed, or there are other targets."""
        if not all(is_fixed(f"https://{target}") and target in self._found for target in self._targets()):
            self._due.set()

    async def resolve(self, deadline: float = DEADLINE) -> None:
        """Look up all names once."""
        urls = {target: f"https://{target}" for target in self._targets()}
        try:
            answers = await in_thread(self._resolver.resolve, urls, deadline)
        except (OSError, RuntimeError, MemoryError) as error:  # no thread can be started
            _log.error("names cannot be resolved now: %s", error)
            return
        self._take(answers)

    def _take(self, answers: Mapping[str, Resolved]) -> None:
        errors, former = {target: answer.error for target, answer in answers.items() if answer.error}, self._found
        for target in errors.keys() - self._errors.keys():
            if former.get(target):  # else its connections fail, and say so
                _log.warning("%s; its former addresses serve", errors[target])
        for target in (self._errors.keys() - errors.keys()) & answers.keys():
            _log.info("%s can be resolved again", target)
        self._errors = errors
        self._found = {target: answer.addresses[:MOST] or former.get(target, ()) for target, answer in answers.items()}
        self._moved([name for name, addresses in self._found.items() if set(addresses) != set(former.get(name, ()))])

    async def run(self) -> None:
        """Look up by interval and when asked to, until cancelled."""
        while True:
            resolved = time.monotonic()
            unresolved = not all(self._found.get(target) for target in self._targets())
            with suppress(TimeoutError):
                async with asyncio.timeout(min(self._interval(), UNRESOLVED) if unresolved else self._interval()):
                    await self._due.wait()
            await asyncio.sleep(resolved + PAUSE - time.monotonic())
            self._due.clear()
            await self.resolve()
