"""The part of a gateway that speaks with the store: draws, presence, failed authentications, locks.

One task, in one process of the gateway, beside all requests: none waits for it. Locks are read, joined and written in a
thread, one step at a time: those of thousands take a tenth of a second and more. When the store fails, leases end at
once, and each rate and number is kept by this gateway alone, divided by the number of gateways (never open, never
closed); the next answer ends that.
"""

from __future__ import annotations

import asyncio
import logging
import random
import secrets
import socket
import struct
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final, Protocol

from tlsproxy.admin.readiness import OK, Part, degraded
from tlsproxy.config.locks import LockFile
from tlsproxy.config.shared import store_address
from tlsproxy.proxy.limits.addresses import TURN, Addresses, Failing, turn_of
from tlsproxy.proxy.limits.draws import Draw, Granted
from tlsproxy.proxy.limits.gcra import SECOND, Penalty
from tlsproxy.proxy.limits.leases import Due, Failures
from tlsproxy.proxy.limits.table import LimitTable
from tlsproxy.service.shared.lock_exchange import MAX_ENTRIES, LockExchange
from tlsproxy.service.shared.rounds import LOOK, MOST_DRAWS, Rounds
from tlsproxy.service.shared.store import Script, Store, StoreAccess, StoreError
from tlsproxy.snapshot.generation import Generation
from tlsproxy.snapshot.lock_file import lock_state
from tlsproxy.snapshot.states import InputState
from tlsproxy.text import printable
from tlsproxy.threads import in_thread

MEETING: Final = 0.5
"""Seconds between two meetings: of presence, failed authentications and locks."""
WHOLE: Final = 10.0
"""Seconds between two readings of all failed authentications and locks."""
PRESENCE: Final = 3.0
"""Seconds after its last meeting for which a gateway is counted."""
MOST: Final = 1000
"""Accounts, and locks, in one answer."""
MOST_SAID: Final = 100
"""Locks told in one round trip."""
MOST_TOLD: Final = 1024
"""Accounts with failed authentications told in one round trip."""
MOST_FAILING: Final = 20_000
"""Accounts with failed authentications in the store."""
FORGOTTEN: Final = 7200
"""Seconds after which an account's last failure is forgotten: more than any delay."""
FIRST_PAUSE: Final = 0.1
LONGEST_PAUSE: Final = 2.0
MAX_LISTED: Final = 100
"""Gateways that a status names."""
_MICROSECOND: Final = 1000
_MET: Final = ("gateways", "failures", "failed", "locks", "locked", "ends")
"""Keys that a meeting reads, after the prefix."""
_DRAW: Final = struct.Struct("<6d")
_GRANT: Final = struct.Struct("<2d")

_log = logging.getLogger(__name__)


class SharedMetrics(Protocol):
    def shared(self, outcome: str) -> None: ...
    def sharing(self, *, up: bool, gateways: int) -> None: ...


class Coordinator:
    """``generation`` gives the one in force, ``changed`` is called when the store goes or comes back."""

    def __init__(
        self,
        table: LimitTable,
        metrics: SharedMetrics,
        generation: Callable[[], Generation],
        changed: Callable[[], None],
    ) -> None:
        if table.leases is None:
            raise ValueError("the table has no leases")
        self._leases = table.leases
        self._addresses = Addresses(table)
        self._metrics, self._generation, self._changed = metrics, generation, changed
        self._seen = generation()
        self._config = config = self._seen.config.shared
        self._access, self._refused, self._renewal_at = StoreAccess.of(self._seen), "", float("inf")
        self._store = Store(store_address(config.url or ""), config.timeout, self._access)
        self._draw, self._fail, self._lock, self._meet = map(Script.named, ("draw", "fail", "lock", "meet"))
        self._name = f"{printable(socket.gethostname())}/{secrets.token_hex(6)}"
        self._keys = {name: f"{config.prefix}:{name}" for name in _MET}
        self._validity = round((2 * MEETING + config.timeout) * SECOND)
        self._gateways: Sequence[str] = ()
        self._least, self._least_until = 0, float("-inf")
        self._number, self._locks_stored, self._locks_refused = config.gateways, 0, 0
        self._trouble, self._asked = "it has not been asked yet", False
        self._since = time.time()
        self._rounds = Rounds(random.Random())  # noqa: S311 - no secret
        self._heard: bytes | str = "0"
        self._read: bytes | str = "0"
        self._whole_at = self._meeting_at = float("-inf")
        self._reading = False
        self._exchange = LockExchange(lambda: secrets.token_hex(12))
        self._exchanging = asyncio.Lock()
        self._untold: list[Failures] = []
        self._merged: tuple[str, int, InputState[LockFile]] | None = None
        self._counts: Counter[str] = Counter()
        self._leases.adopt(self._number, 0)
        self._leases.invalid()
        metrics.sharing(up=False, gateways=self._number)

    # Answers to the service

    @property
    def part(self) -> Part:
        """The part of readiness: degraded while the store is away."""
        if self._trouble and self._asked:
            text = f"{self._store.address}: {self._trouble}"
            return degraded(f"{text}; each limit is kept by this gateway alone, divided by {self._number}")
        if self._refused:
            return degraded(f"{self._store.address}: an older connection serves on: {self._refused}")
        if self._locks_refused:
            return degraded(f"{self._locks_refused} locks find no room in {self._store.address}")
        return OK

    def status(self) -> Mapping[str, Any]:
        return {
            "store": str(self._store.address),
            "reached": not self._trouble,
            "error": self._trouble,
            "since": self._since,
            "name": self._name,
            "gateways": self._number,
            "names": list(self._gateways[:MAX_LISTED]),
            "locks": self._locks_stored,
            "unread_locks": len(self._exchange.unread),
            "round_trips": dict(self._counts),
        }

    async def locked(self, own: InputState[LockFile]) -> InputState[LockFile]:
        """The locks of this gateway's file, and of all others. Must not be cancelled before the end of the service."""
        async with self._exchanging:
            known = self._merged
            if known is None or known[:2] != (own.digest, self._exchange.version):
                state = await in_thread(self._locked, own)
                known = self._merged = own.digest, self._exchange.version, state
            return known[2]

    def _locked(self, own: InputState[LockFile]) -> InputState[LockFile]:
        self._exchange.look(own.value)
        return lock_state(self._exchange.merged(own.value))

    # The task

    async def run(self) -> None:
        """Until cancelled; then :meth:`leave`."""
        pause = FIRST_PAUSE
        while True:
            try:
                await self._round()
            except StoreError as error:
                self._lose(error)
                await asyncio.sleep(pause * random.uniform(0.5, 1.0))  # noqa: S311 - so that not all come at once
                pause = min(2 * pause, LONGEST_PAUSE)
            except Exception as error:  # noqa: BLE001 - nothing may end this: leases would never come back
                self._lose(StoreError("error", f"{type(error).__name__}: {error}"))
                _log.critical("a defect in the sharing of limits", exc_info=error)
                await asyncio.sleep(LONGEST_PAUSE)
            else:
                pause = FIRST_PAUSE
                await asyncio.sleep(LOOK)

    async def leave(self) -> None:
        """Say goodbye, if the store is there, so that the others divide by one less at once."""
        try:
            if not self._trouble:
                await self._met(presence=0.0)
        except StoreError as error:
            self._lose(error)
        finally:
            self._leases.invalid()
            await self._store.close()

    async def _round(self) -> None:
        now = time.monotonic()
        await self._renew(now)
        if self._trouble or now >= self._meeting_at:
            await self._met(presence=PRESENCE)
            self._meeting_at = now + MEETING
            self._metrics.sharing(up=not self._trouble, gateways=self._number)
        if self._exchange.unsaid:
            await self._say()
        whole = self._rounds.whole()
        if whole:
            await self._tell_failures()
        whole = whole or self._leases.turning
        due = self._leases.due(MOST_DRAWS, urgent=not whole)
        if due:
            await self._draw_for(due)
        if self._trouble:  # over once all that there is to be said was taken
            self._find()

    async def _renew(self, now: float) -> None:
        """Connect anew if a reload has changed what we are let in by, or the CAs of the store."""
        generation = self._generation()
        if generation is not self._seen:
            self._seen = generation
            access = StoreAccess.of(generation)
            # Another URL counts after a restart, and its files with it.
            if access != self._access and generation.config.shared.url == self._config.url:
                self._access, self._renewal_at = access, now
        if now < self._renewal_at:
            return
        refused, self._refused, self._renewal_at = self._refused, "", float("inf")
        try:
            await self._store.renew(self._access)
        except StoreError as error:
            if not self._store.connected:
                raise
            self._refused, self._renewal_at = str(error), now + WHOLE
        if self._refused != refused:
            self._changed()

    async def _run(self, script: Script, keys: Sequence[str], values: Sequence[bytes | str | float]) -> Any:
        answer = await self._store.run(script, keys, values)
        self._count("ok")
        self._leases.valid(self._validity)
        return answer

    def _count(self, outcome: str) -> None:
        self._asked = True
        self._counts[outcome] += 1
        self._metrics.shared(outcome)

    def _lose(self, error: StoreError) -> None:
        lost = not self._trouble or not self._asked
        self._leases.invalid()
        self._count(error.outcome)
        if not self._trouble:
            self._since = time.time()
        self._trouble = str(error)
        self._whole_at = float("-inf")
        self._metrics.sharing(up=False, gateways=self._number)
        if lost:
            self._changed()

    def _find(self) -> None:
        self._trouble, self._since = "", time.time()
        self._changed()
        self._metrics.sharing(up=True, gateways=self._number)

    # Draws

    async def _draw_for(self, due: Sequence[Due]) -> None:
        draws = [one.draw for one in due]
        keys = [f"{self._config.prefix}:r:{one.account.hex()}" for one in draws]
        try:
            answer = await self._run(self._draw, keys, [draw_values(draws)])
        except BaseException:
            self._leases.forfeit(due)
            raise
        self._leases.settle(due, grants_in(answer))

    # Meetings

    async def _met(self, *, presence: float) -> None:
        now = time.monotonic()
        begin = False
        if now >= self._whole_at:
            begin = self._reading = True
            self._whole_at, self._heard, self._read = now + WHOLE, "0", "0"
            async with self._exchanging:
                await in_thread(self._exchange.forget, time.time())
        keys = [self._keys[name] for name in _MET]
        values: list[bytes | str | float] = [self._name, presence, self._heard, self._read, MOST, FORGOTTEN]
        values.append(0 if begin else len(self._gateways))
        penalty = self._penalty()
        values += [*largest(penalty)] if penalty is not None else ["inf", "inf"]
        gateways, accounts, heard, locks, read, stored, joined = await self._run(self._meet, keys, values)
        self._count_gateways([name.decode() for name in gateways], now, joined=bool(joined))
        self._heard, self._read, self._locks_stored = heard, read, stored
        self._learn_failures(accounts)
        end = len(locks) < 2 * MOST
        if locks or begin or (end and self._reading):
            texts = ((name.decode(), text.decode()) for name, text in zip(locks[::2], locks[1::2], strict=True))
            async with self._exchanging:
                await in_thread(self._exchange.hear, texts, begin=begin, end=end and self._reading)
        self._reading = self._reading and not end

    def _count_gateways(self, names: Sequence[str], now: float, *, joined: bool) -> None:
        """A store that does not know this gateway may have forgotten the others too: for as long as it takes them to
        be present again, they are no fewer than before.
        """
        if joined and self._gateways:
            self._least, self._least_until = self._number, now + PRESENCE
            self._whole_at = min(self._whole_at, now + MEETING)
        if self._name in names:
            self._gateways = sorted(names)
        number = len(self._gateways)
        if now < self._least_until:
            number = max(number, self._least)
        self._number = number
        known = number == len(self._gateways)
        self._leases.adopt(number, self._gateways.index(self._name) if known else number - 1)

    async def _say(self) -> None:
        said = list(self._exchange.unsaid.values())[:MOST_SAID]
        now = time.time()
        values: list[str | float] = [MAX_ENTRIES]
        for one in said:
            values += [one.id, one.state, one.text, one.kept(now)]
        keys = [self._keys[name] for name in ("locks", "locked", "ends")]
        self._locks_refused = await self._run(self._lock, keys, values)
        async with self._exchanging:
            self._exchange.said(said)

    # Failed authentications

    async def _tell_failures(self) -> None:
        self._untold = [*self._untold, *self._leases.failures(MOST_TOLD)][-MOST_TOLD:]
        penalty = self._penalty()
        if not self._untold or penalty is None:
            return
        keys = [self._keys["failures"], self._keys["failed"]]
        answer = await self._run(self._fail, keys, failure_values(self._untold, penalty))
        self._untold = []
        self._learn_failures(answer)

    def _penalty(self) -> Penalty | None:
        self._addresses.adopt(self._seen.config.limits)
        return self._addresses.penalty

    def _learn_failures(self, answer: Sequence[Any]) -> None:
        for account, owed, delay in zip(answer[::3], answer[1::3], answer[2::3], strict=True):
            self._addresses.learn(Failing(account, owed * _MICROSECOND, delay * _MICROSECOND))


async def tried(generation: Generation) -> None:
    """Meet and draw once, as no gateway and from an account that is gone after a second. Raises StoreError."""
    shared = generation.config.shared
    store = Store(store_address(shared.url or ""), shared.timeout, StoreAccess.of(generation))
    meeting: list[bytes | str | float] = ["trial", 0, "inf", "inf", 1, FORGOTTEN, 0, "inf", "inf"]
    one = Draw(b"", interval=1, room=1, balance=0, wish=1, owed=0)
    try:
        await store.run(Script.named("meet"), [f"{shared.prefix}:{name}" for name in _MET], meeting)
        await store.run(Script.named("draw"), [f"{shared.prefix}:r:trial"], [draw_values([one])])
    finally:
        await store.close()


def draw_values(draws: Iterable[Draw]) -> bytes:
    return b"".join(_DRAW.pack(one.interval, one.room, one.balance, one.wish, one.owed, one.gateways) for one in draws)


def grants_in(answer: bytes) -> list[Granted]:
    return [Granted(int(tokens), int(ahead)) for tokens, ahead in _GRANT.iter_unpack(answer)]


def largest(penalty: Penalty) -> tuple[float, float]:
    """Debt and delay of an account, in microseconds."""
    return penalty.most / _MICROSECOND, (penalty.longest + TURN) / _MICROSECOND


def failure_values(failures: Sequence[Failures], penalty: Penalty) -> list[bytes | float]:
    rate = penalty.rate
    values: list[bytes | float] = [
        rate.interval / _MICROSECOND,
        rate.room / _MICROSECOND,
        penalty.longest / _MICROSECOND,
        MOST_FAILING,
        FORGOTTEN * 1000,
    ]
    for one in failures:
        values += [one.account, one.count, turn_of(identified=one.identified) / _MICROSECOND]
    return values
