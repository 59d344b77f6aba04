"""Draws of rate limits from an account that several gateways share: pure, and the twin of `service/shared/draw.lua`.

The store keeps one number for each account, its theoretical arrival time (:mod:`tlsproxy.proxy.limits.gcra`), by its
own clock. A gateway draws tokens for the next slice of time, pays for those that it spent beyond what it had drawn, and
gives back what it did not need. So the sum over all gateways is the limit; what is spent ahead of a draw is paid later.

Times are microseconds, and doubles as in Lua.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, floor


@dataclass(frozen=True, slots=True)
class Draw:
    """``account`` is its name in the store. ``interval`` and ``room`` are those of the rate. ``balance`` are tokens
    that are left of earlier draws, negative for those spent beyond; ``wish`` the tokens for the next slice. ``owed`` is
    the account's debt as this gateway knows it, for a store that has lost it. ``gateways`` is their number.
    """

    account: bytes
    interval: float
    room: float
    balance: int
    wish: int
    owed: float
    gateways: int = 1


@dataclass(frozen=True, slots=True)
class Granted:
    """``ahead`` is the account's debt: at ``room`` nothing is left, beyond it was spent what it did not have."""

    tokens: int
    ahead: int


def granted(ahead: float | None, draw: Draw) -> Granted:
    """``ahead`` is the debt in the store, None where it has no such account. More than a full burst and one request of
    each gateway, and once more a burst, is due to a clock that was set back.
    """
    most = 2 * draw.room + draw.gateways * draw.interval
    known = max(0.0, min(most, draw.owed if ahead is None else ahead))
    debt = max(0.0, known - draw.balance * draw.interval)
    left = max(0, floor((draw.room - debt) / draw.interval))
    tokens = min(draw.wish, left - floor(left * reserve(draw.gateways)))
    return Granted(tokens, ceil(debt + tokens * draw.interval))


def wish(demand: int) -> int:
    """Tokens to draw after a slice in which so many were asked for: demand may double from slice to slice."""
    return 2 * demand


def reserve(gateways: int) -> float:
    """The part of what is left that all of them together may spend ahead of their draws, and that none draws."""
    return 0.0 if gateways == 1 else min(0.5, 2 / gateways)


def allowance(ahead: float, interval: float, room: float, gateways: int) -> int:
    """Tokens that one of ``gateways`` may spend ahead of a draw: its part of the reserve, or all if it is alone."""
    left = floor((room - max(0.0, ahead)) / interval)
    return floor(left * (reserve(gateways) or 1.0) / gateways) if left > 0 else 0
