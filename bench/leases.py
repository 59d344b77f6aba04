"""Simulation of leases: many gateways, one store, and requests that come where they like. The gateways run the code
that serves (:mod:`tlsproxy.proxy.limits.leases`); time, network and store are simulated.

The limit that one gateway alone would keep is the measure: it hears the same requests.
"""

from __future__ import annotations

import heapq
import itertools
import random
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Final

from tlsproxy.proxy.limits.draws import Draw, Granted, granted
from tlsproxy.proxy.limits.gcra import SECOND, Charge, Rate
from tlsproxy.proxy.limits.leases import Due, Leases, size
from tlsproxy.service.shared.rounds import LOOK, MOST_DRAWS, Rounds

ROWS: Final = 9
"""Rows of a simulated table; the last one is the overflow row."""
MICROSECOND: Final = 1000


@dataclass(frozen=True, slots=True)
class Scenario:
    """``demand`` gives the requests per second, and ``placed`` the gateway of one, at a time in seconds."""

    name: str
    gateways: int
    per_second: float
    burst: int
    demand: Callable[[float], float]
    placed: Callable[[float, random.Random], int]
    seconds: float = 30.0


@dataclass(frozen=True, slots=True)
class Figures:
    """``asked``, ``admitted`` and ``alone`` are requests: all, those that were admitted, and those that one gateway
    alone would have admitted. ``over`` is the largest excess over the limit in any ten seconds, as a fraction of it.
    ``draws`` and ``round_trips`` are those of all gateways in a second.
    """

    asked: int
    admitted: int
    alone: int
    over: float
    round_trips: float
    draws: float

    @property
    def error(self) -> float:
        return self.admitted / self.alone - 1 if self.alone else 0.0


class _Time:
    def __init__(self) -> None:
        self.now = SECOND

    def __call__(self) -> int:
        return self.now


class Store:
    """The store's numbers, by its own clock."""

    def __init__(self, clock: Callable[[], int]) -> None:
        self._clock = clock
        self._arrivals: dict[bytes, float] = {}

    def draw(self, draws: Sequence[Draw]) -> list[Granted]:
        now = self._clock() / MICROSECOND
        grants = []
        for one in draws:
            stored = self._arrivals.get(one.account)
            grant = granted(None if stored is None else stored - now, one)
            self._arrivals[one.account] = now + grant.ahead
            grants.append(grant)
        return grants


class Gateway:
    """One gateway with one limited account."""

    def __init__(self, clock: Callable[[], int], gateways: int, rank: int, rate: Rate, chance: random.Random) -> None:
        self.leases = Leases(
            memoryview(bytearray(size(ROWS))), memoryview(array("q", [0] * ROWS)), nullcontext(), clock
        )
        self.leases.adopt(gateways, rank)
        self.leases.valid(SECOND)
        self.rounds = Rounds(chance)
        self._clock, self._rate = clock, rate
        self._charge = Charge(1, "", rate, 0, b"account---------")

    def admits(self) -> bool:
        now = self._clock()
        if self.leases.wait(0, self._charge, self._rate, now):
            return False
        self.leases.count(0, self._rate, now)
        return True


def simulated(scenario: Scenario, *, round_trip: float = 0.002, seed: int = 1) -> Figures:  # noqa: C901 - all that happens, in one place
    """``round_trip`` to the store, in seconds."""
    chance, clock = random.Random(seed), _Time()  # noqa: S311 - a simulation
    rate = Rate.of(scenario.per_second, scenario.burst)
    store = Store(clock)
    gateways = [Gateway(clock, scenario.gateways, rank, rate, chance) for rank in range(scenario.gateways)]
    alone, admitted_at = 0, list[float]()
    arrival, asked, trips, draws = 0, 0, 0, 0
    half = round(round_trip * SECOND / 2)
    order = itertools.count()
    events: list[tuple[int, int, Callable[[], None]]] = []

    def later(pause: int, what: Callable[[], None]) -> None:
        heapq.heappush(events, (clock.now + pause, next(order), what))

    def request() -> None:
        nonlocal alone, arrival, asked
        moment = (clock.now - SECOND) / SECOND
        asked += 1
        if not rate.wait(arrival, clock.now):
            arrival, alone = rate.after(arrival, clock.now), alone + 1
        if gateways[scenario.placed(moment, chance)].admits():
            admitted_at.append(moment)
        later(round(chance.expovariate(max(scenario.demand(moment), 0.001)) * SECOND), request)

    def look(gateway: Gateway) -> None:
        nonlocal trips, draws
        gateway.leases.valid(SECOND)
        whole = gateway.rounds.whole() or gateway.leases.turning
        due = gateway.leases.due(MOST_DRAWS, urgent=not whole)
        if due:
            trips, draws = trips + 1, draws + len(due)
            later(half, partial(drawn, gateway, due))
        else:
            later(round(LOOK * SECOND), partial(look, gateway))

    def drawn(gateway: Gateway, due: Sequence[Due]) -> None:
        later(half, partial(settled, gateway, due, store.draw([one.draw for one in due])))

    def settled(gateway: Gateway, due: Sequence[Due], grants: Sequence[Granted]) -> None:
        gateway.leases.settle(due, grants)
        later(round(LOOK * SECOND), partial(look, gateway))

    for gateway in gateways:
        later(round(chance.random() * LOOK * SECOND), partial(look, gateway))
    later(0, request)
    end = clock.now + round(scenario.seconds * SECOND)
    while events and events[0][0] < end:
        clock.now, _, what = heapq.heappop(events)
        what()
    over = _over(admitted_at, scenario)
    return Figures(asked, len(admitted_at), alone, over, trips / scenario.seconds, draws / scenario.seconds)


def _over(moments: Sequence[float], scenario: Scenario, window: float = 10.0) -> float:
    """The largest number in any window beyond what a token bucket lets through, as a fraction of that."""
    limit = scenario.per_second * window + scenario.burst
    most = first = 0
    for last, moment in enumerate(moments):
        while moments[first] <= moment - window:
            first += 1
        most = max(most, last - first + 1)
    return max(0.0, most / limit - 1)


def _evenly(gateways: int) -> Callable[[float, random.Random], int]:
    return lambda _moment, chance: chance.randrange(gateways)


def _skewed(gateways: int) -> Callable[[float, random.Random], int]:
    """Nine of ten requests at one gateway."""
    return lambda _moment, chance: 0 if chance.randrange(10) else chance.randrange(gateways)


def _moving(gateways: int) -> Callable[[float, random.Random], int]:
    """All at one gateway, another one every second."""
    return lambda moment, _chance: int(moment) * 7 % gateways


def _steady(per_second: float) -> Callable[[float], float]:
    return lambda _moment: per_second


def _bursts(per_second: float) -> Callable[[float], float]:
    """Ten times as much for half a second, then little for two."""
    return lambda moment: per_second / 20 if int(moment * 2) % 5 else per_second * 10


def scenarios(gateways: int, per_second: float, seconds: float = 30.0) -> Iterator[Scenario]:
    burst = max(1, round(per_second))
    make = partial(Scenario, gateways=gateways, per_second=per_second, burst=burst, seconds=seconds)
    yield make("twice the limit, evenly", demand=_steady(2 * per_second), placed=_evenly(gateways))
    yield make("twice the limit, skewed", demand=_steady(2 * per_second), placed=_skewed(gateways))
    yield make("twice the limit, moving", demand=_steady(2 * per_second), placed=_moving(gateways))
    yield make("bursts, evenly", demand=_bursts(per_second), placed=_evenly(gateways))
    yield make("bursts, moving", demand=_bursts(per_second), placed=_moving(gateways))
    yield make("half the limit, evenly", demand=_steady(per_second / 2), placed=_evenly(gateways))
    yield make("half the limit, moving", demand=_steady(per_second / 2), placed=_moving(gateways))


def lease_report(figures: Mapping[Scenario, Figures]) -> Iterator[str]:
    """A Markdown table."""
    yield "| gateways | limit/s | demand | error | over, in 10 s | round trips/s | draws/s |"
    yield "|---|---|---|---|---|---|---|"
    for one, found in figures.items():
        yield (
            f"| {one.gateways} | {one.per_second:g} | {one.name} | {found.error:+.1%} | {found.over:.1%}"
            f" | {found.round_trips:.0f} | {found.draws:.0f} |"
        )
