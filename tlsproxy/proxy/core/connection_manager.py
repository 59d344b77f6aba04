"""The register of live connections: whose they are, and the end of those that have lost their right to exist.

A connection is entered before anything is decided on it. After each publication, and when a certificate, key or token
runs out, what it is doing is judged anew, and it is asked whether it would still be admitted: some hundred connections
at a time, and everybody is served in between. (One that has something to do before its turn is judged first.) One that
would not be admitted is told to come to its end (idle: at once, busy: after what it is doing), and is ended
``limits.expel_after`` seconds later if it has not. Where many are ended together, they are told so one after the other.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any, Final, Protocol, TypeVar

from tlsproxy.audit.line import Refusal
from tlsproxy.proxy.core.authorization import Standing
from tlsproxy.proxy.core.gateway import Gateway
from tlsproxy.proxy.core.impact import Affected, Consequences, Group
from tlsproxy.proxy.core.impact_analysis import MOVED, Outlook, Visitors, affected, affects_nobody, client, interrupted
from tlsproxy.proxy.core.jitter import FEW, share
from tlsproxy.proxy.core.refusals import record_refusal
from tlsproxy.proxy.limits.addresses import account as network
from tlsproxy.proxy.limits.fair_shares import Account
from tlsproxy.snapshot.generation import Generation

T = TypeVar("T")

TICK: Final = 0.25
"""Seconds between two looks at what has run out."""
SLICE: Final = 100
"""Connections that are looked at in one go: 20,000 after a publication take 0.3 s, in pieces of 1 to 2 ms."""
ASKED: Final = 100
"""Connections that are asked in one go about a publication that is yet to come: 20,000 take a second."""
OPERATOR: Final = "cut_by_operator"
TOO_OLD: Final = "max_connection_age"
YOUNGER: Final = 0.1
"""Share of the greatest age by which a connection may end before it, so that those of one moment do not end in one."""


class Session(Protocol):
    """What speaks on a connection.

    ``judge``: what it is doing is judged anew, where there has been a publication since or something has run out, and
    what may not go on ends; it returns why the connection has to end, "" where it may stay. Nothing passes after that.
    ``patient``: it may finish what it is doing. ``drain``: it comes to its end by itself; ``expel``: it ends now, and
    who can be told is told why. ``losses`` as :class:`tlsproxy.proxy.core.impact_analysis.Busy` has it.
    """

    patient: bool

    def judge(self, now: float) -> str: ...
    def drain(self) -> None: ...
    def expel(self, reason: str) -> None: ...
    def losses(self, outlook: Outlook, standing: Standing, now: float) -> Iterator[str]: ...


class Entry:
    """One connection. ``opened`` is of the monotonic clock; ``key`` names the key or issuer of its latest request.

    ``account`` is the holder of its shares in common budgets. ``end_reason`` is why it is about to end, ``expel_at``
    when it is ended if it has not by then; ``end_audited``: an audit line has that reason. ``route`` is the address of
    its listener as configured, where that is of mode tcp.
    """

    __slots__ = (
        "account",
        "address",
        "bytes_in",
        "bytes_out",
        "end_audited",
        "end_reason",
        "expel_at",
        "key",
        "number",
        "opened",
        "protocol",
        "requests",
        "route",
        "session",
        "standing",
    )

    def __init__(
        self, number: int, protocol: str, address: str, standing: Standing, opened: float, route: str = ""
    ) -> None:
        self.number = number
        self.protocol = protocol
        self.address = address
        self.route = route
        self.standing = standing
        self.opened = opened
        self.session: Session | None = None
        self.requests = self.bytes_in = self.bytes_out = 0
        self.key = ""
        self.end_reason = ""
        self.end_audited = False
        self.expel_at = float("inf")
        self.account = _account(standing, address)

    def count(self, bytes_in: int, bytes_out: int, key: str) -> None:
        """A request that has ended."""
        self.requests += 1
        self.bytes_in += bytes_in
        self.bytes_out += bytes_out
        self.key = key

    def request_ended(self, gateway: Gateway, reason: str) -> None:
        """Counts a request or call that has lost its right (a key, a role) under way, where its connection goes on."""
        if not self.standing.withdrawn(gateway.generation, gateway.clock.now()):
            gateway.metrics.connection_ended(reason)

    def certificate(self) -> dict[str, str]:
        """Fields of an audit line that name the client's certificate, empty where it has none."""
        identity = self.standing.identity
        if identity is None:
            return {"certificate_subject": "", "certificate_sha256": "", "ca_sha256": ""}
        return {
            "certificate_subject": identity.name,
            "certificate_sha256": identity.sha256,
            "ca_sha256": identity.ca_sha256,
        }

    def refusal(self, now: float, operation: str, reason: str) -> Refusal:
        """Refusal of the connection itself, whatever was requested on it."""
        identity, principal = self.standing.identity, self.standing.principal
        name = identity.name if identity is not None else ""
        return Refusal(now, self.address, operation, reason, identity=name, rule=principal.rule, role=principal.role)

    def described(self, now: float) -> dict[str, Any]:
        """As JSON values. ``now`` is of the monotonic clock."""
        identity, principal = self.standing.identity, self.standing.principal
        return {
            "number": self.number,
            "protocol": self.protocol,
            "address": self.address,
            "identity": identity.name if identity is not None else None,
            "issuer": identity.issuer if identity is not None else None,
            "ca": (identity.ca or None) if identity is not None else None,
            "ca_sha256": (identity.ca_sha256 or None) if identity is not None else None,
            "serial": identity.serial if identity is not None else None,
            "certificate_expires": identity.not_after if identity is not None else None,
            "rule": principal.rule or None,
            "role": principal.role or None,
            "key": self.key or None,
            "age": now - self.opened,
            "requests": self.requests,
            "bytes_in": self.bytes_in,
            "bytes_out": self.bytes_out,
            "ending": self.end_reason or None,
        }


def _account(standing: Standing, address: str) -> Account:
    """The certificate's identity, else the address."""
    identity = standing.identity
    return ("address", network(address)) if identity is None else identity.account


async def _in_slices(items: Sequence[T]) -> AsyncIterator[T]:
    """All others are served in between."""
    for start in range(0, len(items), ASKED):
        for item in items[start : start + ASKED]:
            yield item
        await asyncio.sleep(0)


class ConnectionManager:
    """The connections of one process, by number: the next of ``numbers``. Ended by :meth:`close`."""

    def __init__(self, gateway: Gateway, numbers: Iterator[int]) -> None:
        self._gateway = gateway
        self._entries: dict[int, Entry] = {}
        self._ending: dict[int, Entry] = {}
        self._numbers = numbers
        self._visitors = Visitors()
        self._handle: asyncio.TimerHandle = gateway.loop.call_later(TICK, self._tick)
        self._left: Iterator[int] = iter(())
        self._ended = self._followed = 0
        self._slice: asyncio.Handle | None = None

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[Entry]:
        return iter(list(self._entries.values()))

    def close(self) -> None:
        self._handle.cancel()
        if self._slice is not None:
            self._slice.cancel()

    def enter(self, protocol: str, address: str, standing: Standing, route: str = "") -> Entry:
        """``route`` is the address of a listener of mode tcp."""
        entry = Entry(next(self._numbers), protocol, address, standing, time.monotonic(), route)
        self._entries[entry.number] = entry
        return entry

    def leave(self, entry: Entry) -> None:
        """It has ended: it and what spoke on it no longer hold each other."""
        self._visitors.keep(entry, entry.standing)
        self._entries.pop(entry.number, None)
        self._ending.pop(entry.number, None)
        entry.session = None

    def cut(self, number: int) -> bool:
        """By hand, at once. False where there is no such connection."""
        entry = self._entries.get(number)
        if entry is None:
            return False
        self._end(entry, OPERATOR, 0.0, 0.0)
        return True

    async def consider(self, candidate: Generation) -> Consequences:
        """The consequences of publishing this generation now. Nobody notices, and others are served in between."""
        present, now = self._gateway.generation, self._gateway.clock.now()
        connections = len(self._entries)
        if affects_nobody(present, candidate):
            return Consequences(connections)
        outlook = self._gateway.outlook(candidate)
        found: list[Affected] = []
        ended: list[Affected] = []
        clients: set[str] = set()
        async for entry in _in_slices(list(self._entries.values())):
            if entry.session is not None and not entry.end_reason:
                clients.add(client(entry, entry.standing))
                here = list(affected(entry, entry.standing, present, candidate, now))
                found += here
                if not any(one.reason for one in here):
                    ended += interrupted(entry, entry.session, entry.standing, outlook, now)
        barred: list[Affected] = []
        async for visit in _in_slices(self._visitors.absent(clients)):
            barred += affected(visit, Standing(present, visit.peer, now), present, candidate, now)
        return Consequences(
            connections,
            cut=Group.of(one for one in found if one.reason),
            ended=Group.of(ended),
            barred=tuple(one for one in barred if one.reason not in {"", MOVED}),
            moved=Group.of(one for one in found if not one.reason),
        )

    def publish(self, generation: Generation) -> None:
        """Decides by this generation from now on, and ends the connections that lose their right by it."""
        self._gateway.publish(generation)
        self._gateway.loop.call_soon(self.review)  # once the publication was told

    def review(self) -> None:
        """Looks for connections that would not be admitted now. Connections opened after this call need no look."""
        if self._slice is not None:
            self._slice.cancel()
        self._left, self._ended = iter(list(self._entries)), 0
        self._look()

    def _look(self) -> None:
        now, generation = self._gateway.clock.now(), self._gateway.generation
        limits, steady = self._gateway.bounds, time.monotonic()
        oldest = limits.max_connection_age
        numbers = list(islice(self._left, SLICE))
        self._slice = self._gateway.loop.call_soon(self._look) if numbers else None
        for number in numbers:
            entry = self._entries.get(number)
            if entry is None or entry.end_audited or entry.session is None:
                continue
            reason = entry.session.judge(now) or entry.standing.withdrawn(generation, now)
            if reason:
                self._end(entry, reason, limits.expel_after if entry.session.patient else 0.0, self._pause(number))
            elif oldest and not entry.end_reason and steady - entry.opened > oldest * (1 - YOUNGER * share(number)):
                entry.end_reason = TOO_OLD
                self._gateway.metrics.connection_ended(TOO_OLD)
                self._part(entry, limits.drain_timeout, self._pause(number))

    def _pause(self, number: int) -> float:
        """Seconds until this connection is told to end: the first few of a review at once, the others one by one."""
        self._ended += 1
        return self._gateway.bounds.end_spread * share(number) if self._ended > FEW else 0.0

    def _tick(self) -> None:
        self._handle = self._gateway.loop.call_later(TICK, self._tick)
        followed = self._gateway.clock.followed
        if self._followed != followed:
            self._followed = followed
            self.publish(replace(self._gateway.generation))  # dates are judged by another clock now
        elif self._slice is None:
            self.review()
        now = time.monotonic()
        for entry in [entry for entry in self._ending.values() if now >= entry.expel_at]:
            if entry.session is not None:
                entry.expel_at = float("inf")
                entry.session.expel(entry.end_reason)

    def _end(self, entry: Entry, reason: str, after: float, pause: float) -> None:
        entry.end_reason, entry.end_audited = reason, True
        self._gateway.metrics.connection_ended(reason)
        detail: dict[str, str | int] = {
            "protocol": entry.protocol,
            **entry.certificate(),
            "requests": entry.requests,
            "age_ms": round((time.monotonic() - entry.opened) * 1000),
        }
        record_refusal(self._gateway, "connection", entry.refusal(time.time(), "connection", reason), detail)
        self._part(entry, after, pause)

    def _part(self, entry: Entry, after: float, pause: float) -> None:
        """Tells the connection to end after this pause; ``after`` that long, from now, it is ended, if it is not 0."""
        self._ending[entry.number] = entry
        entry.expel_at = time.monotonic() + max(after, pause) if after else float("inf")
        if pause:
            self._gateway.loop.call_later(pause, self._tell, entry, after)
        else:
            self._tell(entry, after)

    def _tell(self, entry: Entry, after: float) -> None:
        if entry.session is None:
            return
        if after:
            entry.session.drain()
        else:
            entry.session.expel(entry.end_reason)
