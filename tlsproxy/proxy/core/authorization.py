"""Authorization of a connection's client under the present generation.

A connection outlives generations, so its standing is brought up to date before each request: a changed role, a revoked
or expired certificate, a removed CA count from the next request on.
"""

from __future__ import annotations

from typing import Final

from tlsproxy.authz.access import Decision, forbidden
from tlsproxy.authz.identity import Identity
from tlsproxy.authz.roles import Principal
from tlsproxy.snapshot.generation import Generation
from tlsproxy.tls.peer import Peer
from tlsproxy.tls.trust import NEVER, REFUSALS, ChainVerdict

_ENDED: Final = {**REFUSALS, "certificate_required": "a client certificate is required"}

_ANONYMOUS: Final = ChainVerdict("", NEVER)
_REQUIRED: Final = ChainVerdict("certificate_required", NEVER)


class Standing:
    """``principal`` is the subject of decisions. ``refusal``, if not None, is the answer to every request."""

    __slots__ = ("_admitted", "_peer", "_until", "generation", "principal", "refusal")

    def __init__(self, generation: Generation, peer: Peer | None, now: float) -> None:
        self._peer = peer
        self._admitted = False
        self.renew(generation, now)

    def renew(self, generation: Generation, now: float) -> None:
        self.generation = generation
        verdict = _ANONYMOUS
        if self._peer is not None:
            verdict = generation.verdict_of(self._peer, now)
        elif generation.config.service.verify_https_client_certificate:
            verdict = _REQUIRED
        reason, self._until = verdict.refusal, verdict.until
        principal, held = generation.policy.held(generation.principal_of(self._peer, verdict.issuers), now)
        self.principal: Principal = principal
        self._until = min(self._until, held)
        self._admitted |= self.principal.refusal is None
        self.refusal: Decision | None = _ended(reason) if reason else None

    def under(self, generation: Generation, now: float) -> Standing:
        """That of the same client as it would be under another generation."""
        other = Standing(generation, self._peer, now)
        other._admitted |= self._admitted
        return other

    @property
    def identity(self) -> Identity | None:
        return self.principal.identity

    @property
    def peer(self) -> Peer | None:
        return self._peer

    def withdrawn(self, generation: Generation, now: float) -> str:
        """Reason for which a client admitted before would be refused now; "" if it would not, or never was admitted."""
        ended = self.ended(generation, now)
        if ended is not None:
            return ended.reason
        refusal = self.principal.refusal
        return refusal.reason if refusal is not None and self._admitted else ""

    def ended(self, generation: Generation, now: float) -> Decision | None:
        """``refusal``, once the standing is up to date. ``now`` is seconds since the epoch."""
        if self.generation is not generation or now >= self._until:
            self.renew(generation, now)
        return self.refusal

    def turned_away(self, generation: Generation, route: str, now: float) -> str:
        """Reason for which its client may not use the listener of mode tcp at ``route``; "" if it may."""
        ended = self.ended(generation, now)
        if ended is not None:
            return ended.reason
        tunnel = generation.tunnels.get(route)
        if tunnel is None:
            return "no_listener"
        if self.principal.refusal is not None:
            return self.principal.refusal.reason
        return "" if self.principal.role in tunnel.allow else "role_not_allowed"


def _ended(reason: str) -> Decision:
    return forbidden(reason, _ENDED.get(reason, reason))
