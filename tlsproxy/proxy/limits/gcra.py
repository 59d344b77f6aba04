"""What a caller may use of the service, as numbers: a rate with its burst, requests at a time.

A rate is GCRA (the generic cell rate algorithm of ATM, ITU-T I.371), which decides as a token bucket does and keeps one
number for each caller: the *theoretical arrival time*, by which all that was taken would have been earned back. One
that is past says that nothing is owed, so that whoever is not heard of for a while need not be remembered.

Times are nanoseconds of one monotonic clock.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from typing import Final

SECOND: Final = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Rate:
    """``interval`` is what one request costs, ``room`` what a full burst does."""

    interval: int
    room: int

    @classmethod
    def of(cls, per_second: float, burst: int | None) -> Rate:
        """Without a ``burst``: as many as a second allows, and at least one."""
        interval = max(1, round(SECOND / per_second))
        return cls(interval, interval * (burst or max(1, ceil(per_second))))

    def capped(self, arrival: int, now: int) -> int:
        """An arrival time that is no worse than a burst owed: it may be from before the rate was changed."""
        return min(arrival, now + self.room)

    def wait(self, arrival: int, now: int) -> int:
        """How long until one more conforms; 0: it does now."""
        return max(0, arrival - now + self.interval - self.room)

    def after(self, arrival: int, now: int) -> int:
        """The arrival time once one more has been counted."""
        return max(arrival, now) + self.interval


@dataclass(frozen=True, slots=True)
class Charge:
    """One of the limits that a request is counted against. ``key`` names whose it is (a row of the table).

    ``whose`` says so to the client. ``concurrent`` is 0 where requests at a time are not limited.
    """

    key: int
    whose: str
    rate: Rate | None
    concurrent: int


@dataclass(frozen=True, slots=True)
class Excess:
    """What a request is too much for. ``wait`` is 0 where there are too many at a time: until one of them ends."""

    charge: Charge
    wait: int


@dataclass(frozen=True, slots=True)
class Penalty:
    """How long whoever fails too often is not heard: a second, and twice as long for each further failure.

    ``rate`` forgives: failures within it go without. ``heard`` is a time after each delay in which none begins: whoever
    shares an address with one that always fails gets a turn, while failures count on.
    """

    rate: Rate
    longest: int

    @classmethod
    def of(cls, per_minute: int, longest: float) -> Penalty:
        """``longest`` is seconds."""
        interval = 60 * SECOND // per_minute
        return cls(Rate(interval, interval * per_minute), round(longest * SECOND))

    def after(self, owed: int, now: int) -> int:
        """The arrival time once one more failure has been counted. No more is kept than the longest delay needs."""
        most = self.rate.room + self.rate.interval * (self.longest // SECOND).bit_length()
        return min(self.rate.after(owed, now), now + most + self.rate.interval)

    def until(self, owed: int, now: int, heard: int) -> int:
        """Until when the delay that a failure begins keeps another from beginning; 0: none begins."""
        excess = -(-(owed - now - self.rate.room) // self.rate.interval)
        if excess <= 0:
            return 0
        return now + min(self.longest, SECOND << (excess - 1)) + heard

    def left(self, until: int, now: int, heard: int) -> int:
        """How much of the delay is left."""
        return max(0, until - heard - now)
