"""The table of limits: each caller has a row, memory is what it is, and several processes count as one."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Barrier
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.manual_clock import Clock

from tlsproxy.proxy.limits.gcra import SECOND, Charge, Excess, Rate
from tlsproxy.proxy.limits.table import BUCKET, BUCKETS, LimitTable, create, size

MANY = 1_000_000 if os.environ.get("TLSPROXY_SOAK") else 250_000
"""Identities: more than there are rows."""
SPAWN = multiprocessing.get_context("spawn")
SHARED = Rate.of(25, 4000)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def table(clock: Clock) -> LimitTable:
    return LimitTable.private(clock)


@pytest.fixture
def descriptor() -> Iterator[int]:
    made = create(4)
    yield made
    os.close(made)


def charge(table: LimitTable, name: str, rate: Rate | None = None, concurrent: int = 0) -> Charge:
    return Charge(table.key("identity", name), name, rate, concurrent)


STEPS = st.lists(
    st.tuples(st.integers(0, 3 * SECOND), st.lists(st.sampled_from("abc"), min_size=1, max_size=3, unique=True)),
    max_size=60,
)


@pytest.mark.fuzz
@given(steps=STEPS)
def test_each_caller_is_counted_alone_and_all_limits_of_a_request_or_none(steps: list[tuple[int, list[str]]]) -> None:
    """The twin keeps everything it ever heard, in a dictionary. Each example has a table: a fork would share it."""
    clock = Clock()
    table = LimitTable.private(clock)
    rates = {"a": Rate.of(1, 3), "b": Rate.of(0.5, 1), "c": None}
    most = {"a": 2, "b": 0, "c": 1}
    arrivals: dict[str, int] = {}
    going_on = dict.fromkeys("abc", 0)
    open_requests: list[tuple[list[str], tuple[int, ...]]] = []
    for pause, asked in steps:
        clock.now += pause
        now = clock.now
        if pause % 2 and open_requests:
            ended, rows = open_requests.pop(0)
            table.release(rows)
            for name in ended:
                going_on[name] -= 1
        waits = {name: rate.wait(arrivals.get(name, 0), now) for name in asked if (rate := rates[name]) is not None}
        full = [name for name in asked if most[name] and going_on[name] >= most[name]]
        outcome = table.take([charge(table, name, rates[name], most[name]) for name in asked])
        if any(waits.values()) or full:
            assert isinstance(outcome, Excess)
            assert outcome.wait == max(waits.values(), default=0)
            continue
        assert isinstance(outcome, tuple)
        for name in asked:
            if (rate := rates[name]) is not None:
                arrivals[name] = rate.after(arrivals.get(name, 0), now)
            going_on[name] += 1
        open_requests.append((asked, outcome))
    for _, rows in open_requests:
        table.release(rows)


@pytest.mark.soak
@pytest.mark.timeout(180)
def test_a_million_identities_take_the_memory_of_none(table: LimitTable, clock: Clock) -> None:
    """Each owes something for an hour: the table is full long before, and says so, and neither grows nor gives in."""
    assert size(1) < 6 << 20
    slow = Rate.of(1 / 3600, 1)
    before = _resident()
    admitted = sum(isinstance(table.take((charge(table, str(number), slow),)), tuple) for number in range(MANY))
    assert _resident() - before < 2 * size(1)
    assert 200_000 < admitted <= size(1) // 20
    assert table.overflows >= MANY - admitted - 1, "each that found no room was told to share one row"
    # Those with a row are counted as ever, and all of it is free once it is owed no more.
    assert isinstance(table.take((charge(table, "0", slow),)), Excess)
    before_overflows = table.overflows
    clock.now += 2 * 3600 * SECOND
    assert isinstance(table.take((charge(table, str(MANY - 1), slow),)), tuple)
    assert table.overflows == before_overflows


def test_what_is_going_on_keeps_its_row(table: LimitTable, clock: Clock) -> None:
    one = charge(table, "held", concurrent=1)
    rows = table.take((one,))
    assert isinstance(rows, tuple)
    # Others want the same bucket, many more than it has room for, none of whom stays.
    for number in range(1, 100):
        clock.now += SECOND
        assert table.take((Charge(one.key ^ number * BUCKETS, "other", Rate.of(1000, 1), 0),)) == ()
    assert isinstance(table.take((one,)), Excess)
    table.release(rows)
    assert isinstance(table.take((one,)), tuple)


def test_a_smaller_burst_counts_at_once(table: LimitTable) -> None:
    """The debt from an earlier rate is at most one burst of the present one."""
    for _ in range(100):
        assert isinstance(table.take((charge(table, "one", Rate.of(1, 100)),)), tuple)
    outcome = table.take((charge(table, "one", Rate.of(1, 2)),))
    assert isinstance(outcome, Excess)
    assert outcome.wait == SECOND


def full_bucket(table: LimitTable, clock: Clock, key: int) -> None:
    """All rows of the key's bucket are others', for an hour."""
    for number in range(1, BUCKET + 1):
        table.put(key ^ number * BUCKETS, clock.now + 3600 * SECOND, clock.now)


def test_a_time_without_a_row_of_its_own_is_that_of_the_overflow_row(table: LimitTable, clock: Clock) -> None:
    one = table.key("delay", "one")
    assert table.arrival(one, clock.now) <= clock.now
    full_bucket(table, clock, one)
    for used in (1, 2):
        table.put(one, clock.now + SECOND, clock.now)
        assert (table.arrival(one, clock.now), table.overflows) == (clock.now + SECOND, used)


def test_the_first_bucket_has_as_many_rows_as_any(table: LimitTable, clock: Clock) -> None:
    keys = [BUCKETS * number for number in range(1, BUCKET + 1)]
    for key in keys:
        table.put(key, clock.now + key, clock.now)
    assert [table.arrival(key, clock.now) - clock.now for key in keys] == keys
    assert table.overflows == 0


def test_the_longest_wait_is_told_and_the_first_of_equal_ones(table: LimitTable) -> None:
    first, second = (charge(table, name, concurrent=1) for name in ("first", "second"))
    slow, slower = (charge(table, name, Rate.of(rate, 1)) for name, rate in (("slow", 1), ("slower", 0.5)))
    assert isinstance(table.take((first, second, slow, slower)), tuple)
    for charges, told in (((first, second), first), ((first, slow, slower), slower), ((slower, slow, first), slower)):
        outcome = table.take(charges)
        assert isinstance(outcome, Excess)
        assert outcome.charge == told


HOLDER = """
import fcntl, sys
fd = int(sys.argv[1])
for line in sys.stdin:
    try:
        fcntl.lockf(fd, fcntl.LOCK_UN if line == "give\\n" else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        print("refused", flush=True)
    else:
        print("done", flush=True)
"""


def test_a_lock_that_another_keeps_is_gone_without_and_counted(descriptor: int) -> None:
    lock = LimitTable.shared(descriptor, 0, 1).lock
    command = [sys.executable, "-S", "-c", HOLDER, str(descriptor)]
    with subprocess.Popen(
        command, pass_fds=[descriptor], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    ) as other:
        assert other.stdin is not None
        assert other.stdout is not None

        def ask(what: str) -> str:
            other.stdin.write(f"{what}\n")
            return other.stdout.readline().strip()

        with lock:
            assert ask("take") == "refused"
        assert (ask("take"), lock.unlocked) == ("done", 0)
        for unlocked in (1, 2):
            with lock:
                assert lock.unlocked == unlocked
        assert ask("give") == "done"
        with lock:
            assert (ask("take"), lock.unlocked) == ("refused", 2)
        other.stdin.close()


def test_the_overflow_row_owes_what_its_callers_owe_together(table: LimitTable, clock: Clock) -> None:
    one, other = (charge(table, name, Rate.of(1, most)) for name, most in (("one", 10), ("other", 1)))
    full_bucket(table, clock, one.key)
    full_bucket(table, clock, other.key)
    for _ in range(10):
        assert isinstance(table.take((one,)), tuple)
    outcome = table.take((other,))
    assert isinstance(outcome, Excess)
    assert outcome.wait == 10 * SECOND, "not capped by the smaller burst of another caller"


def test_the_overflow_row_has_requests_in_flight_of_its_own(table: LimitTable, clock: Clock) -> None:
    """It is the last row: neither they nor its time are those of a row of the first bucket."""
    one = charge(table, "one", Rate.of(1, 10), concurrent=1)
    full_bucket(table, clock, one.key)
    assert isinstance(table.take((one,)), tuple)
    assert isinstance(table.take((one,)), Excess)
    used = table.overflows
    for number in range(1, BUCKET + 1):
        assert isinstance(table.take((Charge(BUCKETS * number, "other", None, 1),)), tuple)
    assert table.overflows == used


def test_a_worker_that_died_is_forgotten_by_who_takes_its_place(descriptor: int) -> None:
    first, second = (LimitTable.shared(descriptor, worker, 4) for worker in (0, 1))
    one = charge(first, "one", concurrent=3)
    assert second.key("identity", "one") == one.key
    for table in (first, second, second):
        assert isinstance(table.take((one,)), tuple)
    assert isinstance(first.take((one,)), Excess)
    again = LimitTable.shared(descriptor, 1, 4)
    assert isinstance(again.take((one,)), tuple)
    assert isinstance(again.take((one,)), tuple)
    assert isinstance(again.take((one,)), Excess), "what the first has going on still counts"


def test_nobody_can_find_names_that_share_a_row_without_the_secret() -> None:
    tables = [LimitTable.private() for _ in range(2)]
    assert tables[0].key("key", "a", "b") != tables[1].key("key", "a", "b")
    assert tables[0].key("key", "a", "b") != tables[0].key("key", "ab")
    assert len({tables[0].key("key", str(number)) for number in range(10_000)}) == 10_000


def _rounds(parent: int, descriptor: int, worker: int, barrier: Barrier, told: Queue[tuple[int, int, bool]]) -> None:
    """In a process of its own, which inherits nothing: the file is opened through its maker."""
    table = LimitTable.shared(os.open(f"/proc/{parent}/fd/{descriptor}", os.O_RDWR), worker, 4)
    rated, counted = charge(table, "rated", SHARED), charge(table, "counted", concurrent=2)
    admitted = 0
    barrier.wait(30)
    for _ in range(1500):
        admitted += isinstance(table.take((rated,)), tuple)
        rows = table.take((counted,))
        if isinstance(rows, tuple):
            table.release(rows)
    rows = table.take((counted,))
    told.put((admitted, table.lock.unlocked, isinstance(rows, tuple)))


def test_several_processes_keep_one_rate(descriptor: int) -> None:
    """Not one too many, but for those that were counted while the lock could not be had, and none too few.

    However the processes are scheduled: half of the burst, which is spent first, takes longer to earn back than this
    test may take, so that at no time more is earned than there is room for.
    """
    table = LimitTable.shared(descriptor, 3, 4)
    rated = charge(table, "rated", SHARED)
    begun = time.monotonic_ns()
    assert isinstance(table.take((rated,)), tuple)
    counting = time.monotonic_ns()
    burst = SHARED.room // SHARED.interval
    assert all(isinstance(table.take((rated,)), tuple) for _ in range(burst // 2))
    barrier, told = SPAWN.Barrier(3), SPAWN.Queue()
    workers = [
        SPAWN.Process(target=_rounds, args=(os.getpid(), descriptor, number, barrier, told)) for number in range(3)
    ]
    for worker in workers:
        worker.start()
    results = [told.get(timeout=30) for _ in workers]
    for worker in workers:
        worker.join(30)
        assert worker.exitcode == 0
    admitted, unlocked = 1 + burst // 2 + sum(one[0] for one in results), sum(one[1] for one in results)
    while (asked := time.monotonic_ns()) and isinstance(table.take((rated,)), tuple):
        admitted += 1
    most = burst + (time.monotonic_ns() - begun) / SHARED.interval + 1
    assert burst + (asked - counting) / SHARED.interval - 1 <= admitted <= most + unlocked
    holding = sum(one[2] for one in results)
    assert 2 <= holding <= 2 + unlocked, "two requests at a time, of three processes that wanted one each"


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
