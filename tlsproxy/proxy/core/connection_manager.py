"""Live connections of a process, and the end of those that have lost their right to exist.

A connection is entered before its first decision. After each publication, and when a certificate, key or token expires,
its requests are decided again, and so is its admission: some hundred connections in one iteration of the loop, with
others served in between. (A connection with something to do before its turn is judged first.) A connection that would
not be admitted drains: at once if idle, else after its present request; ``limits.expel_after`` seconds later it is
ended. Where many end together, their ends are spread over ``limits.end_spread``.

Example: a role is removed while its caller has one idle connection and one with an upload. The idle one is closed at
once, the other refuses the rest of its upload or, if the upstream has all of it already, is closed after the response.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Final, Protocol

from tlsproxy.audit.line import Refusal, json_string, members
from tlsproxy.proxy.core.authorization import Standing
from tlsproxy.proxy.core.gateway import Gateway
from tlsproxy.proxy.core.impact import Affected, Consequences, Group
from tlsproxy.proxy.core.impact_analysis import (
    MOVED,
    Altered,
    Outlook,
    Visitors,
    affected,
    affects_nobody,
    client,
    interrupted,
)
from tlsproxy.proxy.core.jitter import FEW, share
from tlsproxy.proxy.core.refusals import record_refusal
from tlsproxy.proxy.limits.addresses import network_of
from tlsproxy.proxy.limits.fair_shares import Account
from tlsproxy.slices import SLICE, act_in_slices, slices
from tlsproxy.snapshot.generation import Generation
from tlsproxy.threads import in_thread
from tlsproxy.tls.negotiated import UNKNOWN, Negotiated

TICK: Final = 0.25
"""Seconds between two looks for expired rights."""
OPERATOR: Final = "cut_by_operator"
TOO_OLD: Final = "max_connection_age"
EARLY: Final = 0.1
"""Part of the greatest age by which a connection may end early: connections that began together end apart."""


class Session(Protocol):
    """Protocol handler of a connection.

    ``judge`` decides its requests again after a publication or an expiry, and ends those that lost their right. It
    returns the reason for which the connection must end, after which nothing is relayed, or "". ``patient``: it may
    finish its present request. ``drain``: it ends by itself; ``expel``: it ends now, with a refusal where the client
    can still be sent one. ``losses`` as in :class:`tlsproxy.proxy.core.impact_analysis.Busy`.
    """

    patient: bool

    def judge(self, now: float) -> str: ...
    def drain(self) -> None: ...
    def expel(self, reason: str) -> None: ...
    def losses(self, outlook: Outlook, standing: Standing, now: float) -> Iterator[str]: ...


class Entry:
    """One connection. ``opened`` is on the monotonic clock; ``key`` names the key or issuer of its latest request.

    ``account`` is the holder of its shares in common budgets. ``end_reason`` is why it is about to end, ``expel_at``
    when it is ended if it has not by then; ``end_audited``: an audit line has that reason. ``route`` is the address of
    its listener as configured, where that is of mode tcp. ``via`` is the balancer that told the client's address, if
    one did. ``negotiated`` is what its TLS handshake agreed on.
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
        "negotiated",
        "number",
        "opened",
        "protocol",
        "requests",
        "route",
        "session",
        "standing",
        "via",
    )

    def __init__(  # noqa: PLR0913 - the facts of a connection, by name
        self,
        number: int,
        protocol: str,
        address: str,
        standing: Standing,
        opened: float,
        *,
        route: str = "",
        via: str = "",
        negotiated: Negotiated = UNKNOWN,
    ) -> None:
        self.number = number
        self.protocol = protocol
        self.address = address
        self.route = route
        self.via = via
        self.negotiated = negotiated
        self.standing = standing
        self.opened = opened
        self.session: Session | None = None
        self.requests = self.bytes_in = self.bytes_out = 0
        self.key = ""
        self.end_reason = ""
        self.end_audited = False
        self.expel_at = float("inf")
        self.account = _account(standing, address)

    def beside(self) -> Entry:
        """Another one of the same connection, with counts of its own."""
        other = Entry(
            self.number,
            self.protocol,
            self.address,
            self.standing,
            self.opened,
            route=self.route,
            via=self.via,
            negotiated=self.negotiated,
        )
        other.account, other.session, other.key = self.account, self.session, self.key
        other.end_reason, other.end_audited, other.expel_at = self.end_reason, self.end_audited, self.expel_at
        return other

    def count(self, bytes_in: int, bytes_out: int, key: str) -> None:
        """Adds a request that has ended."""
        self.requests += 1
        self.bytes_in += bytes_in
        self.bytes_out += bytes_out
        self.key = key

    @property
    def remote(self) -> str:
        """The members `remote`, `via` and those of TLS of an audit line, from the first one's value on, as JSON."""
        return json_string(self.address) + members(self.transport())

    @property
    def label(self) -> str:
        """Role, else the key of the last request (`key NAME`); "" for neither."""
        return self.standing.principal.role or (f"key {self.key}" if self.key else "")

    def request_ended(self, gateway: Gateway, reason: str) -> None:
        """Counts a request or call that lost its right (a key, a role) on a connection that goes on."""
        if not self.standing.withdrawn(gateway.generation, gateway.clock.now()):
            gateway.metrics.connection_ended(reason)

    def transport(self) -> dict[str, str]:
        """Fields of an audit line on the balancer and on TLS, as far as there are any."""
        return ({"via": self.via} if self.via else {}) | self.negotiated.fields()

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

    def named(self, subject: str) -> bool:
        """Whether the name of its certificate or key has this part, in whichever case."""
        part, identity = subject.casefold(), self.standing.identity
        return not part or part in self.key.casefold() or (identity is not None and part in identity.name.casefold())

    def described(self, now: float) -> dict[str, Any]:
        """As JSON values. ``now`` is of the monotonic clock."""
        identity, principal = self.standing.identity, self.standing.principal
        return {
            "number": self.number,
            "protocol": self.protocol,
            "address": self.address,
            "via": self.via or None,
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
            "tls_version": self.negotiated.version or None,
            "tls_cipher": self.negotiated.cipher or None,
            "tls_group": self.negotiated.group or None,
            "ending": self.end_reason or None,
        }


def _account(standing: Standing, address: str) -> Account:
    """Account of the certificate's identity, else of the address."""
    identity = standing.identity
    return ("address", network_of(address)) if identity is None else identity.account


class ConnectionManager:
    """Connections by number, which is the next of ``numbers``. Ended by :meth:`close`.

    ``negotiated``: numbers of live connections by what their TLS handshakes agreed on.
    """

    def __init__(self, gateway: Gateway, numbers: Iterator[int]) -> None:
        self._gateway = gateway
        self._entries: dict[int, Entry] = {}
        self._ending: dict[int, Entry] = {}
        self.negotiated: Counter[Negotiated] = Counter()
        self._numbers = numbers
        self._visitors = Visitors()
        self._handle: asyncio.TimerHandle = gateway.loop.call_later(TICK, self._tick)
        self._to_judge: Iterator[int] = iter(())
        self._ending_together = self._jumps_followed = 0
        self._slice: asyncio.Handle | None = None

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[Entry]:
        return iter(list(self._entries.values()))

    def close(self) -> None:
        self._handle.cancel()
        if self._slice is not None:
            self._slice.cancel()

    def enter(
        self,
        protocol: str,
        address: str,
        standing: Standing,
        route: str = "",
        via: str = "",
        negotiated: Negotiated = UNKNOWN,
    ) -> Entry:
        """``route`` is the address of a listener of mode tcp, ``via`` that of a balancer before the client."""
        number, now = next(self._numbers), time.monotonic()
        entry = Entry(number, protocol, address, standing, now, route=route, via=via, negotiated=negotiated)
        self._entries[number] = entry
        self.negotiated[negotiated] += 1
        return entry

    def leave(self, entry: Entry) -> None:
        """Removes a connection that has ended; it and its session no longer refer to each other."""
        self._visitors.keep(entry, entry.standing)
        if self._entries.pop(entry.number, None) is not None:
            self.negotiated[entry.negotiated] -= 1
        self._ending.pop(entry.number, None)
        entry.session = None

    def cut(self, number: int) -> bool:
        """Ends a connection by an operator's hand, at once. False if there is no such connection."""
        entry = self._entries.get(number)
        if entry is None:
            return False
        self._end(entry, OPERATOR, 0.0, 0.0)
        return True

    async def consider(self, candidate: Generation) -> Consequences:
        """Consequences of publishing this generation now. Changes nothing; others are served in between."""
        present, now = self._gateway.generation, self._gateway.clock.now()
        connections = len(self._entries)
        if affects_nobody(present, candidate):
            return Consequences(connections)
        outlook, altered = self._gateway.outlook(candidate), await in_thread(Altered.between, present, candidate)
        found: list[Affected] = []
        ended: list[Affected] = []
        clients: set[str] = set()
        concerned: Counter[str] = Counter()
        for entries in slices(list(self._entries.values())):
            for entry in entries:
                if entry.session is not None and not entry.end_reason:
                    clients.add(client(entry, entry.standing))
                    here = list(affected(entry, entry.standing, present, candidate, now))
                    found += here
                    if here or altered.concern(entry.standing.principal.role, entry.key):
                        concerned[entry.label] += 1
                    if not any(one.reason for one in here):
                        ended += interrupted(entry, entry.session, entry.standing, outlook, now)
            await asyncio.sleep(0)
        barred: list[Affected] = []
        for visits in slices(self._visitors.absent(clients)):
            for visit in visits:
                barred += affected(visit, Standing(present, visit.peer, now), present, candidate, now)
            await asyncio.sleep(0)
        return Consequences(
            connections,
            cut=Group.of(one for one in found if one.reason),
            ended=Group.of(ended),
            barred=tuple(one for one in barred if one.reason not in {"", MOVED}),
            moved=Group.of(one for one in found if not one.reason),
            affected=concerned,
        )

    def publish(self, generation: Generation) -> None:
        """Decides by this generation from now on, and ends the connections that lose their right by it."""
        self._gateway.publish(generation)
        self._gateway.loop.call_soon(self.review)  # after the publication is logged

    def review(self) -> None:
        """Judges all connections, in slices. Those opened after this call need not be.

        Those that the review before did not come to are the first, so that frequent publications delay none of them.
        """
        if self._slice is not None:
            self._slice.cancel()
        left = [*self._to_judge]
        # Four times a second there are none, and 14,000 keys of a dict cost 3 ms.
        self._to_judge = iter(dict.fromkeys([*left, *self._entries]) if left else [*self._entries])
        self._ending_together = 0
        self._look()

    def _look(self) -> None:
        now, generation = self._gateway.clock.now(), self._gateway.generation
        limits, monotonic = self._gateway.bounds, time.monotonic()
        oldest = limits.max_connection_age
        self._slice = following = self._gateway.loop.call_soon(self._look)  # also after a defect in one connection
        for number in self._to_judge:
            entry = self._entries.get(number)
            if entry is None or entry.end_audited or entry.session is None:
                continue
            reason = entry.session.judge(now) or entry.standing.withdrawn(generation, now)
            if reason:
                self._end(entry, reason, limits.expel_after if entry.session.patient else 0.0, self._pause(number))
            elif oldest and not entry.end_reason and monotonic - entry.opened > oldest * (1 - EARLY * share(number)):
                entry.end_reason = TOO_OLD
                self._gateway.metrics.connection_ended(TOO_OLD)
                self._drain(entry, limits.drain_timeout, self._pause(number))
            # It costs 10 µs or, where thousands of rules or locks are asked for the first time, a millisecond.
            if time.monotonic() >= monotonic + SLICE:
                return
        following.cancel()
        self._slice = None

    def _pause(self, number: int) -> float:
        """Seconds until this connection drains: 0 for the first few of a review, spread for the others."""
        self._ending_together += 1
        return self._gateway.bounds.end_spread * share(number) if self._ending_together > FEW else 0.0

    def _tick(self) -> None:
        self._handle = self._gateway.loop.call_later(TICK, self._tick)
        followed = self._gateway.clock.followed
        if self._jumps_followed != followed:
            self._jumps_followed = followed
            self.publish(replace(self._gateway.generation))  # dates are judged by another clock now
        elif self._slice is None:
            self.review()
        now = time.monotonic()
        over = [entry for entry in self._ending.values() if now >= entry.expel_at]
        act_in_slices(self._gateway.loop, over, self._expel)

    def _expel(self, entry: Entry) -> None:
        if entry.session is not None and time.monotonic() >= entry.expel_at:
            entry.expel_at = float("inf")
            entry.session.expel(entry.end_reason)

    def _end(self, entry: Entry, reason: str, after: float, pause: float) -> None:
        entry.end_reason, entry.end_audited = reason, True
        self._gateway.metrics.connection_ended(reason)
        detail: dict[str, str | int] = {
            "protocol": entry.protocol,
            **entry.transport(),
            **entry.certificate(),
            "requests": entry.requests,
            "age_ms": round((time.monotonic() - entry.opened) * 1000),
        }
        record_refusal(self._gateway, "connection", entry.refusal(time.time(), "connection", reason), detail)
        self._drain(entry, after, pause)

    def _drain(self, entry: Entry, after: float, pause: float) -> None:
        """Drains the connection after ``pause`` seconds, and expels it ``after`` seconds from now; 0: at once."""
        self._ending[entry.number] = entry
        entry.expel_at = time.monotonic() + max(after, pause) if after else float("inf")
        if pause:
            self._gateway.loop.call_later(pause, self._end_session, entry, after)
        else:
            self._end_session(entry, after)

    def _end_session(self, entry: Entry, after: float) -> None:
        if entry.session is None:
            return
        if after:
            entry.session.drain()
        else:
            entry.session.expel(entry.end_reason)
