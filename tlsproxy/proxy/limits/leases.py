"""Leases of rates that several gateways share: tokens drawn ahead (:mod:`tlsproxy.proxy.limits.draws`), spent here.

A request spends a token of its row and never waits for a draw: a process of the gateway draws for all rows in use, in
the background. A row comes into use with the account's first request, which no draw precedes: then, and between two
draws, this gateway's part of what is left may be spent ahead. A row without requests gives all back and rests.

While no draw succeeds, each rate is counted here alone, divided by the number of gateways: neither open nor closed.
What was spent so, and time has not made up for, is paid with the next draw. So a store that comes and goes gives
nobody more.

The columns lie behind the rows of the table (:mod:`tlsproxy.proxy.limits.table`), in the same memory, and are changed
under its lock.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Final

from tlsproxy.proxy.limits.draws import Draw, Granted, allowance, wish
from tlsproxy.proxy.limits.gcra import SECOND, Charge, Rate

HOLD: Final = 2 * SECOND
"""Nanoseconds for which a row that was counted in is kept for its account: until it has been drawn for."""
NAME: Final = 16
"""Bytes of an account's name in the store."""
LOCKED_ROWS: Final = 16
"""Rows that are read or changed under one hold of the lock."""

_VALID_UNTIL, _GATEWAYS, _RANK, _CURSOR = range(4)
_HEAD: Final = 64
_MICROSECOND: Final = 1000

_RESTING, _SHORT, _AMPLE, _URGENT, _ALONE, _FAILED, _FAILED_IDENTITY = range(7)
"""States of a row. Short: less was granted than wished, so more comes with time. Ample: more may be had; urgent: at
once. Alone: counted without draws, so that its debt is in the time of this gateway's part. Failed: the row counts
failed authentications that the others are to be told."""


def size(rows: int) -> int:
    """Bytes of the columns of so many rows."""
    return _HEAD + (4 * 8 + 3 * 4 + NAME + 1) * rows


@dataclass(frozen=True, slots=True)
class Due:
    """A draw that is due, and the row as it was read."""

    row: int
    key: int
    tokens: int
    draw: Draw


@dataclass(frozen=True, slots=True)
class Failures:
    """Failed authentications of an account: ``identified`` by a certificate, else those of an address."""

    account: bytes
    count: int
    identified: bool


class Leases:
    """``memory`` are the columns, ``arrivals`` the table's: a row is free once its arrival is past."""

    def __init__(
        self,
        memory: memoryview,
        arrivals: memoryview[int],
        lock: AbstractContextManager[None],
        clock: Callable[[], int],
    ) -> None:
        rows = len(arrivals)
        self._rows = rows
        self._overflow = rows - 1
        self._arrivals, self._lock, self._clock = arrivals, lock, clock
        at = 0

        def column(width: int, code: str) -> memoryview[int]:
            nonlocal at
            begin, at = at, at + width * rows
            return memory[begin:at].cast(code)  # type: ignore[call-overload, no-any-return]

        self._head = memory[:_HEAD].cast("q")
        at = _HEAD
        self._keys = column(8, "Q")
        self._owed = column(8, "q")
        self._intervals = column(8, "q")
        self._rooms = column(8, "q")
        self._tokens = column(4, "i")
        self._unpaid = column(4, "i")
        self._demand = column(4, "I")
        self._names = memory[at : at + NAME * rows]
        at += NAME * rows
        self._states = memory[at : at + rows]
        self._head[_GATEWAYS] = self._head[_GATEWAYS] or 1

    # Every request

    def wait(self, row: int, charge: Charge, rate: Rate, now: int) -> int:
        """Nanoseconds until one more request conforms; 0: it does now. Needs the lock."""
        if self._keys[row] != charge.key:
            self._begin(row, charge.key, charge.account)
        state = self._states[row]
        if now >= self._head[_VALID_UNTIL] or row == self._overflow:
            if state != _ALONE:
                self._leave(row, rate, now)
            alone = self._alone(rate)
            owed = self._owed[row] = alone.capped(self._owed[row], now)
            return alone.wait(owed, now)
        if state in (_RESTING, _ALONE):
            self._wake(row, rate, now)
        if self._tokens[row] > 0:
            return 0
        self._demand[row] += 1
        if state == _AMPLE:
            self._states[row] = _URGENT
        return max(rate.interval, rate.wait(self._owed[row], now))

    def count(self, row: int, rate: Rate, now: int) -> None:
        """Counts a request that conforms. Needs the lock."""
        if now >= self._head[_VALID_UNTIL] or row == self._overflow:
            self._owed[row] = self._alone(rate).after(self._owed[row], now)
            self._unpaid[row] += 1
        else:
            tokens = self._tokens[row] = self._tokens[row] - 1
            self._demand[row] += 1
            if tokens <= 0 and self._states[row] == _AMPLE:
                self._states[row] = _URGENT
        self._arrivals[row] = max(self._owed[row], now + HOLD)

    def part(self, most: int) -> int:
        """The part of this gateway in a number of concurrent requests, at least 1."""
        gateways = self._head[_GATEWAYS]
        return max(1, most // gateways + (self._head[_RANK] < most % gateways))

    def failed(self, row: int, key: int, account: bytes, *, identified: bool) -> None:
        """Notes a failed authentication for the other gateways. Needs the lock."""
        if row == self._overflow:
            return
        if self._keys[row] != key:
            self._begin(row, key, account)
        self._demand[row] += 1
        self._states[row] = _FAILED_IDENTITY if identified else _FAILED

    def _begin(self, row: int, key: int, account: bytes) -> None:
        self._keys[row] = key
        self._names[NAME * row : NAME * (row + 1)] = account
        self._owed[row] = self._tokens[row] = self._unpaid[row] = self._demand[row] = 0
        self._states[row] = _RESTING

    def _wake(self, row: int, rate: Rate, now: int) -> None:
        self._intervals[row], self._rooms[row] = rate.interval, rate.room
        ahead = max(0, self._owed[row] - now)
        part = allowance(ahead, rate.interval, rate.room, self._head[_GATEWAYS])
        if not part and ahead + rate.interval <= rate.room:
            part = 1
        if self._states[row] == _ALONE:
            self._rejoin(row, now)
        self._tokens[row] = part
        self._unpaid[row] += part
        self._states[row] = _URGENT

    def _leave(self, row: int, rate: Rate, now: int) -> None:
        """Count alone from now on. Tokens that were drawn are left; those spent ahead of a draw are owed."""
        self._intervals[row], self._rooms[row] = rate.interval, rate.room
        spent = self._unpaid[row] = max(0, self._unpaid[row] - self._tokens[row])
        self._owed[row] = max(now, self._owed[row]) + spent * self._alone(rate).interval
        self._tokens[row] = 0
        self._states[row] = _ALONE

    def _rejoin(self, row: int, now: int) -> None:
        """Leave as unpaid what time has not made up for, and of the debt what is that of all."""
        interval = self._intervals[row] * self._head[_GATEWAYS]
        unpaid = self._unpaid[row] = min(self._unpaid[row], -(-max(0, self._owed[row] - now) // interval))
        self._owed[row] -= unpaid * interval

    def _alone(self, rate: Rate) -> Rate:
        interval = rate.interval * self._head[_GATEWAYS]
        return Rate(interval, max(interval, rate.room))

    # The process that draws

    def adopt(self, gateways: int, rank: int) -> None:
        """Note the number of gateways, and the place of this one among them, from 0."""
        self._head[_GATEWAYS], self._head[_RANK] = gateways, rank

    def valid(self, nanoseconds: int) -> None:
        """Let leases count for so long from now on."""
        self._head[_VALID_UNTIL] = self._clock() + nanoseconds

    def invalid(self) -> None:
        """Count here alone, from now on."""
        self._head[_VALID_UNTIL] = 0

    def due(self, most: int, *, urgent: bool) -> list[Due]:
        """Draws that are due: of rows that wait for one, or of all in use, ``most`` at a time in turn: go on while
        :attr:`turning`.
        """
        found: list[Due] = []
        rows = self._in_use(most, urgent=urgent)
        for begin in range(0, len(rows), LOCKED_ROWS):
            with self._lock:
                now = self._clock()
                found += (self._read(row, now) for row in rows[begin : begin + LOCKED_ROWS])
        return found

    @property
    def turning(self) -> bool:
        return self._head[_CURSOR] > 0

    def settle(self, due: Sequence[Due], grants: Sequence[Granted]) -> None:
        """Take over what was granted."""
        pairs = list(zip(due, grants, strict=True))
        for begin in range(0, len(pairs), LOCKED_ROWS):
            with self._lock:
                now = self._clock()
                for one, grant in pairs[begin : begin + LOCKED_ROWS]:
                    self._settle(one, grant, now)

    def forfeit(self, due: Sequence[Due]) -> None:
        """Give up what draws without an answer may have given back."""
        with self._lock:
            for one in due:
                if self._keys[one.row] == one.key and one.draw.balance > 0:
                    self._tokens[one.row] -= one.draw.balance

    def failures(self, most: int) -> list[Failures]:
        """Failed authentications since the last call, of ``most`` accounts."""
        found = []
        for row in _first(bytes(self._states), (_FAILED, _FAILED_IDENTITY), most):
            with self._lock:
                identified = self._states[row] == _FAILED_IDENTITY
                found.append(Failures(self._name(row), self._demand[row], identified))
                self._demand[row] = 0
                self._states[row] = _RESTING
        return found

    def _name(self, row: int) -> bytes:
        return bytes(self._names[NAME * row : NAME * (row + 1)])

    def _in_use(self, most: int, *, urgent: bool) -> list[int]:
        states = bytes(self._states)
        waiting = _first(states, (_URGENT, _ALONE), most)[: most if urgent else most // 2]
        if urgent:
            return waiting
        room = most - len(waiting)
        turn = sorted(_first(states, (_SHORT, _AMPLE), room, self._head[_CURSOR]))[:room]
        self._head[_CURSOR] = turn[-1] + 1 if len(turn) == room else 0
        return waiting + turn

    def _read(self, row: int, now: int) -> Due:
        if self._states[row] == _ALONE:
            self._rejoin(row, now)
        tokens, demand = self._tokens[row], self._demand[row]
        self._demand[row] = 0
        self._states[row] = _SHORT
        draw = Draw(
            self._name(row),
            self._intervals[row] / _MICROSECOND,
            self._rooms[row] / _MICROSECOND,
            tokens - self._unpaid[row],
            wish(demand),
            max(0, min(self._owed[row] - now, self._rooms[row])) / _MICROSECOND,
            self._head[_GATEWAYS],
        )
        return Due(row, self._keys[row], tokens, draw)

    def _settle(self, due: Due, granted: Granted, now: int) -> None:
        row, draw = due.row, due.draw
        if self._keys[row] != due.key:
            return
        if self._states[row] == _ALONE:  # since: what was granted is left, what was paid is paid
            self._unpaid[row] = max(0, self._unpaid[row] + min(0, draw.balance))
            return
        self._owed[row] = now + round(granted.ahead * _MICROSECOND)
        self._arrivals[row] = max(self._arrivals[row], self._owed[row])
        spent = due.tokens - self._tokens[row]
        if not (draw.wish or spent or self._demand[row]):
            self._tokens[row] = self._unpaid[row] = 0
            self._states[row] = _RESTING
            return
        ahead = allowance(granted.ahead, draw.interval, draw.room, self._head[_GATEWAYS])
        self._tokens[row] = granted.tokens + ahead - spent
        self._unpaid[row] = ahead
        more = granted.ahead + draw.interval <= draw.room and 3 * granted.tokens >= draw.wish
        if granted.tokens < draw.wish and not more:
            self._states[row] = _SHORT
        else:
            self._states[row] = _AMPLE if self._tokens[row] > 0 else _URGENT


def _first(states: bytes, wanted: Sequence[int], most: int, begin: int = 0) -> list[int]:
    """The rows from ``begin`` on that are in one of these states, ``most`` of each."""
    return [row for state in wanted for _, row in zip(range(most), _positions(states, state, begin), strict=False)]


def _positions(states: bytes, state: int, begin: int) -> Iterator[int]:
    wanted = bytes((state,))
    at = states.find(wanted, begin)
    while at >= 0:
        yield at
        at = states.find(wanted, at + 1)
