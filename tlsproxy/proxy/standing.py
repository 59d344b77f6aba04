"""Who a connection's client is under the generation that is current, and whether it may still be here.

A connection outlives generations. Before each request its standing is brought up to date: a role that was changed, a
certificate that was revoked or ran out, a CA that was removed count from the next request on.
"""

from __future__ import annotations

from typing import Final

from tlsproxy.authz.access import Decision, forbidden
from tlsproxy.authz.identity import Identity
from tlsproxy.authz.roles import Principal
from tlsproxy.tls.generation import Generation
from tlsproxy.tls.peer import Peer

_ENDED: Final = {
    "certificate_expired": "the client certificate has expired",
    "certificate_revoked": "the client certificate was revoked",
    "issuer_not_trusted": "the client certificate's issuer is not trusted any more",
    "certificate_required": "a client certificate is required",
}


class Standing:
    """``principal`` is what decisions are made for; ``ended`` is the refusal of whatever is asked, or None."""

    __slots__ = ("_admitted", "_ended", "_expires", "_peer", "generation", "principal")

    def __init__(self, generation: Generation, peer: Peer | None, now: float) -> None:
        self._peer = peer
        self._admitted = False
        self._expires = peer.identity.not_after if peer is not None else float("inf")
        self.renew(generation, now)

    def renew(self, generation: Generation, now: float) -> None:
        self.generation = generation
        self.principal: Principal = generation.principal_of(self._peer)
        self._admitted |= self.principal.refusal is None
        reason = ""
        if self._peer is not None:
            reason = generation.refusal_of(self._peer, now)
        elif generation.config.service.verify_https_client_certificate:
            reason = "certificate_required"
        self._ended: Decision | None = _ended(reason) if reason else None

    @property
    def identity(self) -> Identity | None:
        return self.principal.identity

    @property
    def peer(self) -> Peer | None:
        return self._peer

    def withdrawn(self, generation: Generation, now: float) -> str:
        """Why a client that was admitted would not be now; "" where it would, and where it never was."""
        ended = self.ended(generation, now)
        if ended is not None:
            return ended.reason
        refusal = self.principal.refusal
        return refusal.reason if refusal is not None and self._admitted else ""

    def ended(self, generation: Generation, now: float) -> Decision | None:
        """Brings the standing up to date first. ``now`` is seconds since the epoch."""
        if self.generation is not generation:
            self.renew(generation, now)
        if self._ended is None and now > self._expires:
            self._ended = _ended("certificate_expired")
        return self._ended

    def turned_away(self, generation: Generation, route: str, now: float) -> str:
        """Why its client may not connect through the listener of mode tcp at ``route``; "" where it may."""
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
