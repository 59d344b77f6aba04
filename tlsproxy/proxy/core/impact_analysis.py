"""Impact of a candidate generation on connected clients and on recent visitors.

The same :class:`tlsproxy.proxy.core.authorization.Standing` and the same rules as after the publication decide, on a
copy: nothing that serves changes.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Final, Protocol, Self

from tlsproxy.memo import Memo
from tlsproxy.proxy.core.authorization import Standing
from tlsproxy.proxy.core.impact import Affected
from tlsproxy.proxy.decision.call_plan import CallPlans
from tlsproxy.proxy.decision.request_plan import Plans
from tlsproxy.snapshot.generation import Generation
from tlsproxy.tls.peer import Peer

MOVED: Final = "upstream_changed"
"""Reason for a relayed connection to an address that is no upstream any more. Its client may come back."""
REMEMBERED: Final = 1024
"""Visitors at most."""
RECENT: Final = 600.0
"""Seconds for which a visitor is remembered."""


@dataclass(frozen=True, slots=True)
class Outlook:
    """Candidate generation, with its plans of requests and calls."""

    generation: Generation
    plans: Plans
    calls: CallPlans


@dataclass(frozen=True, slots=True)
class Altered:
    """Names of the present roles, keys and token verifiers that a candidate changes or removes.

    A verifier is changed with each rule and role that may be of its tokens: the claims of a connection's last token are
    not kept.
    """

    roles: frozenset[str]
    keys: frozenset[str]

    @classmethod
    def between(cls, present: Generation, candidate: Generation) -> Self:
        before, after = present.policy, candidate.policy
        return cls(
            roles=_altered(present.config.roles, candidate.config.roles),
            keys=_altered({one.name: one for one in before.keys.keys}, {one.name: one for one in after.keys.keys})
            | _altered(_verifiers(present), _verifiers(candidate)),
        )

    def concern(self, role: str, key: str) -> bool:
        """Whether they concern a connection in this role, whose last request had this key."""
        return role in self.roles or key in self.keys


def _verifiers(generation: Generation) -> dict[str, object]:
    """Token verifiers by name, each with all that gives its tokens rights."""
    roles, rules = generation.config.roles, [rule for rule in generation.policy.rules if rule.claims]
    return {
        one.name: (
            one,
            roles.get(one.role),
            [(rule, roles.get(rule.role)) for rule in rules if one.issuer and rule.concerns(one.issuer)],
        )
        for one in generation.policy.tokens.verifiers
    }


def _altered(before: Mapping[str, object], after: Mapping[str, object]) -> frozenset[str]:
    return frozenset(name for name, one in before.items() if after.get(name) != one)


class Busy(Protocol):
    """Protocol handler of a connection. ``losses``: reasons for which its requests or calls under way would end though
    the connection stays, one for each. ``standing`` is a copy. Changes nothing.
    """

    def losses(self, outlook: Outlook, standing: Standing, now: float) -> Iterator[str]: ...


class Seen(Protocol):
    """Connection, live or ended, as :class:`tlsproxy.proxy.core.connection_manager.Entry` has it."""

    @property
    def number(self) -> int: ...
    @property
    def protocol(self) -> str: ...
    @property
    def address(self) -> str: ...
    @property
    def route(self) -> str: ...


def affected(
    seen: Seen, standing: Standing, present: Generation, candidate: Generation, now: float
) -> Iterator[Affected]:
    """Effect of publishing ``candidate`` on a client that ``present`` admits; nothing if there is none."""
    if _refusal(standing, seen.route, present, now):
        return
    after = standing.under(candidate, now)
    reason = _refusal(after, seen.route, candidate, now)
    if not reason and _moves(seen.route, present, candidate):
        reason = MOVED
    role, becomes = standing.principal.role, after.principal.role
    if reason or (role and becomes != role):
        yield _affected(seen, standing, becomes, reason)


def interrupted(seen: Seen, session: Busy, standing: Standing, outlook: Outlook, now: float) -> Iterator[Affected]:
    """Requests and calls that would end on a connection that stays."""
    for reason in session.losses(outlook, standing.under(outlook.generation, now), now):
        yield _affected(seen, standing, standing.principal.role, reason)


def _affected(seen: Seen, standing: Standing, becomes: str, reason: str) -> Affected:
    name, role = standing.identity.name if standing.identity is not None else "", standing.principal.role
    return Affected(seen.number, seen.protocol, seen.address, client(seen, standing), name, role, becomes, reason)


def affects_nobody(present: Generation, candidate: Generation) -> bool:
    """Whether no standing can differ, e.g. where only the server's own certificate is new."""
    return (
        candidate.config is present.config
        and candidate.policy is present.policy
        and candidate.material.trust is present.material.trust
        and candidate.tunnels == present.tunnels
    )


def client(seen: Seen, standing: Standing) -> str:
    """Key of a client on all its connections: its certificate's digest, else its address."""
    return standing.identity.sha256 if standing.identity is not None else seen.address


def _refusal(standing: Standing, route: str, generation: Generation, now: float) -> str:
    return standing.turned_away(generation, route, now) if route else standing.withdrawn(generation, now)


def _moves(route: str, present: Generation, candidate: Generation) -> bool:
    """Whether `upstream.on_change` would end connections there, which lead to the first address as a rule."""
    if not route or candidate.config.upstream.on_change == "keep":
        return False
    return not set(present.tunnels[route].upstream.addresses[:1]) <= set(candidate.tunnels[route].upstream.addresses)


@dataclass(frozen=True, slots=True)
class Visit:
    """A connection that has ended; ``when`` is monotonic seconds."""

    number: int
    protocol: str
    address: str
    route: str
    peer: Peer | None
    when: float


class Visitors:
    """Latest ended connection of each client, for some minutes: a client that polls is affected too."""

    def __init__(self) -> None:
        self._visits = Memo[tuple[str, str], Visit](REMEMBERED)

    def keep(self, seen: Seen, standing: Standing) -> None:
        if (standing.refusal or standing.principal.refusal) is not None:
            return
        key = client(seen, standing), seen.route
        visit = Visit(seen.number, seen.protocol, seen.address, seen.route, standing.peer, time.monotonic())
        self._visits.remember(key, visit)

    def absent(self, connected: Collection[str]) -> list[Visit]:
        """Visits of the last minutes by clients that are not ``connected`` now."""
        since = time.monotonic() - RECENT
        return [visit for (key, _), visit in self._visits.items() if visit.when >= since and key not in connected]
