"""Rates, charges and penalties, by GCRA.

The generic cell rate algorithm (ATM, ITU-T I.371) decides as a token bucket does and keeps one number for each caller:
the *theoretical arrival time*, at which its bucket is full again. If that is past, the caller owes nothing and its row
can be reused. Example: at 10 requests per second with a burst of 5, each request moves the time on by 100 ms, and a
request is refused if that would take it more than 500 ms into the future.

Times are nanoseconds of one monotonic clock.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from typing import Final

SECOND: Final = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Rate:
    """``interval`` is the cost of one request, ``room`` that of a full burst."""

    interval: int
    room: int

    @classmethod
    def of(cls, per_second: float, burst: int | None) -> Rate:
        """Without a ``burst``: as many as a second allows, and at least one."""
        interval = max(1, round(SECOND / per_second))
        return cls(interval, interval * (burst or max(1, ceil(per_second))))

    def capped(self, arrival: int, now: int) -> int:
        """Arrival time of at most one burst owed: a stored one may be from before the rate was changed."""
        return min(arrival, now + self.room)

    def wait(self, arrival: int, now: int) -> int:
        """Time until one more request conforms; 0: it does now."""
        return max(0, arrival - now + self.interval - self.room)

    def after(self, arrival: int, now: int) -> int:
        """Arrival time with one more request counted."""
        return max(arrival, now) + self.interval


@dataclass(frozen=True, slots=True)
class Charge:
    """Limit that a request is counted against. ``key`` is the account's row in the table, ``whose`` its name for the
    client, e.g. ``role "search"``. ``concurrent`` is 0 if concurrent requests are not limited. ``account`` names it in
    the store that several gateways share, empty if none do.
    """

    key: int
    whose: str
    rate: Rate | None
    concurrent: int
    account: bytes = b""


@dataclass(frozen=True, slots=True)
class Excess:
    """Limit that a request exceeds. ``wait`` is 0 for concurrent requests: until one of them ends."""

    charge: Charge
    wait: int


@dataclass(frozen=True, slots=True)
class Penalty:
    """Delay after too many failures: a second, doubled for each further failure, up to ``longest``.

    Failures within ``rate`` have no delay. ``heard`` is a time after each delay in which no other begins, while
    failures still count: others at the address of a client that always fails get a turn. Example: with 10 a minute,
    the 11th failure at once costs 1 s, the 12th 2 s, the 13th 4 s.
    """

    rate: Rate
    longest: int

    @classmethod
    def of(cls, per_minute: int, longest: float) -> Penalty:
        """``longest`` is seconds."""
        interval = 60 * SECOND // per_minute
        return cls(Rate(interval, interval * per_minute), round(longest * SECOND))

    @property
    def most(self) -> int:
        """The largest debt: one more failure than has the longest delay."""
        return self.rate.room + self.rate.interval * ((self.longest // SECOND).bit_length() + 1)

    def after(self, owed: int, now: int) -> int:
        """Arrival time with one more failure counted, capped where the longest delay is reached."""
        return min(self.rate.after(owed, now), now + self.most)

    def until(self, owed: int, now: int, heard: int) -> int:
        """End of the time in which no further delay begins; 0: this failure has no delay."""
        excess = -(-(owed - now - self.rate.room) // self.rate.interval)
        if excess <= 0:
            return 0
        return now + min(self.longest, SECOND << (excess - 1)) + heard

    def left(self, until: int, now: int, heard: int) -> int:
        """Rest of the delay."""
        return max(0, until - heard - now)
