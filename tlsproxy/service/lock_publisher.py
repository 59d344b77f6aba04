"""Publication of locks: apart from all other inputs, so that nothing holds them up.

The lock file alone is read four times a second, and its locks are published beside the other inputs in force: no
file that hangs, no broken configuration and no `limits.mass_cut` delays them. A reload that was built meanwhile gets
the present locks as it is published.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, Protocol, TypeAlias

from tlsproxy.config.locks import LockFile
from tlsproxy.errors import TlsproxyError
from tlsproxy.proxy.core.impact import Consequences
from tlsproxy.proxy.core.wall_clock import Clock
from tlsproxy.service.lock_trail import LockTrail
from tlsproxy.service.node_trail import NodeTrail
from tlsproxy.snapshot.generation import Generation, with_locks
from tlsproxy.snapshot.lock_file import LockFileWatch
from tlsproxy.snapshot.states import Fault, Input, InputState
from tlsproxy.threads import in_thread

POLL: Final = 0.25
"""Seconds between two readings of the lock file: a lock counts within two seconds, whatever `tls.poll_interval` is."""
CONSIDERED: Final = 0.5
"""Seconds to find the connections that a lock will end. It is published after them in any case."""

_log = logging.getLogger(__name__)


LockState: TypeAlias = InputState[LockFile]
Joined: TypeAlias = Callable[[LockState], Awaitable[LockState]]


async def _own(own: LockState) -> LockState:
    """The locks of a gateway that shares none."""
    return own


class Publisher(Protocol):
    """Publishes generations. ``publish`` raises TlsproxyError if it cannot, and has changed nothing then."""

    @property
    def generation(self) -> Generation: ...
    @property
    def clock(self) -> Clock: ...
    async def consider(self, generation: Generation) -> Consequences: ...
    async def dismiss(self) -> None: ...
    async def publish(self, generation: Generation) -> None: ...


class LockPublisher:
    """All publications after the start go through :meth:`publish`, one at a time."""

    def __init__(
        self,
        target: Publisher,
        watch: LockFileWatch,
        trail: LockTrail,
        nodes: NodeTrail,
        joined: Joined = _own,
    ) -> None:
        """``joined`` adds the locks of other gateways to those of the file."""
        self._joined = joined
        self._target = target
        self._watch = watch
        self._trail = trail
        self._nodes = nodes
        self._looking, self._publishing = asyncio.Lock(), asyncio.Lock()

    @property
    def faults(self) -> Mapping[Input, Fault]:
        """The reason why the lock file is not in force as it is, if there is one."""
        return {} if self._watch.fault is None else {self._watch.subject: self._watch.fault}

    async def begin(self) -> None:
        """Report the locks of the start."""
        async with self._publishing:
            await self._serve(self._target.generation, start=True)

    async def run(self, reload: Callable[[str], Awaitable[Any]]) -> None:
        """Look until cancelled; a new fault is reported by a reload, which may wait for other files."""
        trouble = ""
        async with asyncio.TaskGroup() as reports:
            while True:
                try:
                    if await self.look():
                        reports.create_task(_reported(reload))
                    trouble = ""
                except (TlsproxyError, OSError, RuntimeError, MemoryError) as error:
                    if trouble != str(error):
                        trouble = str(error)
                        _log.error("locks cannot be read and published now: %s", trouble or type(error).__name__)
                except Exception as error:  # noqa: BLE001 - nothing may end this: locks would not come any more
                    _log.critical("a defect in the publication of locks", exc_info=error)
                await asyncio.sleep(POLL)

    async def look(self) -> bool:
        """Read the lock file, and publish its locks if they differ. Whether the file's fault is another one."""
        async with self._looking:
            changed = await self._watch.read(self._target.clock.now())
            locks = await self._joined(self._watch.state)
            differ = locks != self._target.generation.states.locks
            cut = await self._consequences(locks) if differ else None
            async with self._publishing:
                present = self._target.generation
                await self._serve(await _locked(present, locks) if differ else present, cut=cut)
            return changed

    async def publish(self, generation: Generation) -> Generation:
        """Publish it with the locks that are in force by now. Returns the one that serves."""
        async with self._publishing:
            present = self._target.generation
            if present.number >= generation.number or present.states.locks != generation.states.locks:
                generation = await _locked(generation, present.states.locks, present.number + 1)
            await self._serve(generation)
        return generation

    def status(self) -> Mapping[str, Any]:
        return self._trail.status("" if self._watch.fault is None else self._watch.fault.text)

    async def _consequences(self, locks: LockState) -> int | None:
        """Connections, requests and calls that the locks will end; None if that is not found in time."""
        try:
            async with asyncio.timeout(CONSIDERED):
                found = await self._target.consider(await _locked(self._target.generation, locks))
        except TimeoutError:
            return None
        await self._target.dismiss()
        return found.cut.count + found.ended.count

    async def _serve(self, generation: Generation, *, cut: int | None = None, start: bool = False) -> None:
        """Publish it, unless it serves, and report its locks: before the connections that they end, which are judged
        from the next turn of the loop on.
        """
        file, now = generation.states.locks.value, self._target.clock.now()
        found = await self._trail.differences(generation.policy.locks, file, now)
        if generation is not self._target.generation:
            await self._target.publish(generation)
        await self._trail.tell(found, cut=cut, start=start)
        self._nodes.look(generation.nodes, file, now)


async def _locked(generation: Generation, locks: LockState, number: int | None = None) -> Generation:
    """The generation with these locks, and the next number unless one is given."""
    return await in_thread(with_locks, generation, locks, generation.number + 1 if number is None else number)


async def _reported(reload: Callable[[str], Awaitable[Any]]) -> None:
    try:
        await reload("locks")
    except Exception as error:  # noqa: BLE001 - it must not end the publication of locks
        _log.critical("a defect in the report of a lock file", exc_info=error)
