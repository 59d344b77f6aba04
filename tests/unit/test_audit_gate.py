from __future__ import annotations

import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from tlsproxy.errors import AuditUnavailable
from tlsproxy.proxy.core.audit_gate import SLICE, AuditGate

pytestmark = pytest.mark.plain  # stand-ins for compiled classes

TIMEOUT = 5.0


class Log:
    """Counts the calls that are due; ``room`` is that of lines."""

    def __init__(self) -> None:
        self.room = 0
        self.due: list[Callable[[], None]] = []

    def when_writable(self, callback: Callable[[], None]) -> None:
        self.due.append(callback)

    def writes(self, lines: int) -> None:
        self.room += lines
        callback, *others = self.due
        self.due.clear()
        assert not others  # one call for all that wait
        callback()


class Bench:
    """``ended``: requests in the order in which their waits ended, each with its error."""

    def __init__(self, *, blocks: bool = True) -> None:
        self.log = Log()
        self.bounds: Any = SimpleNamespace(write_timeout=TIMEOUT)
        self.gate = AuditGate(self.log, self.bounds, blocks=blocks)
        self.ended: list[tuple[int, AuditUnavailable | None]] = []
        self.broken: list[Exception] = []

    def tell(self, callback: Callable[..., None], *args: object) -> None:
        try:
            callback(*args)
        except ValueError as error:
            self.broken.append(error)

    def request(self, number: int, since: float) -> None:
        def resume(late: AuditUnavailable | None) -> None:
            if late is None and not self.log.room:
                self.gate.wait(since, self, resume)
                return
            self.log.room -= late is None
            self.ended.append((number, late))

        self.gate.wait(since, self, resume)

    @property
    def served(self) -> list[int]:
        return [number for number, late in self.ended if late is None]


def test_without_block_nobody_waits() -> None:
    bench = Bench(blocks=False)
    with pytest.raises(AuditUnavailable, match="cannot be written"):
        bench.request(0, time.monotonic())
    assert not bench.log.due


def test_room_is_given_in_the_order_of_arrival_however_little_there_is_at_a_time() -> None:
    bench, now = Bench(), time.monotonic()
    for number in range(2 * SLICE + 5):
        bench.request(number, now + number / 1000)
    for lines in (1, 1, 3, SLICE, 0, 2 * SLICE):
        bench.log.writes(lines)
    while bench.log.due:
        bench.log.writes(0)
    assert bench.served == list(range(2 * SLICE + 5))


def test_one_iteration_resumes_a_slice() -> None:
    bench, now = Bench(), time.monotonic()
    for number in range(2 * SLICE):
        bench.request(number, now)
    bench.log.writes(2 * SLICE)
    assert bench.served == list(range(SLICE))


def test_a_wait_ends_in_time_though_it_came_first_and_found_no_room_again(monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now)
    bench = Bench()
    for number, since in enumerate((now - TIMEOUT, now - TIMEOUT + 1, now)):
        bench.request(number, since)
    bench.log.writes(0)
    bench.gate.sweep()
    [(number, late)] = bench.ended
    assert (number, str(late)) == (0, "The audit log has no room")
    bench.bounds.write_timeout = TIMEOUT - 1  # a shorter limit counts for those that wait by now
    bench.gate.sweep()
    assert [number for number, late in bench.ended if late is not None] == [0, 1]
    bench.log.writes(1)
    assert bench.served == [2]


def test_an_error_of_one_ends_that_one_alone() -> None:
    def fails(_: AuditUnavailable | None) -> None:
        raise ValueError("of one connection")

    bench, now = Bench(), time.monotonic()
    bench.gate.wait(now, bench, fails)
    bench.request(1, now)
    bench.log.writes(1)
    assert (len(bench.broken), bench.served) == (1, [1])
