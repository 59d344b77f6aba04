"""Leases: what several gateways admit together, and what one row does without the others."""

from __future__ import annotations

from array import array
from contextlib import nullcontext
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.manual_clock import Clock

from bench.leases import Gateway, Store, scenarios, simulated
from tlsproxy.proxy.limits.draws import Draw, Granted, allowance, granted
from tlsproxy.proxy.limits.gcra import SECOND, Charge, Excess, Rate
from tlsproxy.proxy.limits.leases import HOLD, Leases, size
from tlsproxy.proxy.limits.table import BUCKETS, LimitTable, create
from tlsproxy.service.shared.rounds import LOOK

TEN = Rate.of(10, 20)
MS = SECOND // 1000
ALL = 1 << 62


@pytest.fixture
def clock() -> Clock:
    return Clock()


def charge(table: LimitTable, name: str = "a", rate: Rate | None = TEN, concurrent: int = 0) -> Charge:
    key, account = table.account("identity", name)
    return Charge(key, name, rate, concurrent, account)


def leased(clock: Clock, gateways: int = 2, rank: int = 0, *, valid: bool = True) -> tuple[LimitTable, Leases]:
    table = LimitTable.private(clock, leased=True)
    assert table.leases is not None
    table.leases.adopt(gateways, rank)
    if valid:
        table.leases.valid(ALL - clock.now)
    return table, table.leases


def admitted(table: LimitTable, number: int, one: Charge | None = None) -> int:
    charges = (one or charge(table),)
    return sum(isinstance(table.take(charges), tuple) for _ in range(number))


def drawn(leases: Leases, store: Store, *, urgent: bool = False) -> int:
    """A whole round trip; the number of draws."""
    due = leases.due(1000, urgent=urgent)
    leases.settle(due, store.draw([one.draw for one in due]))
    return len(due)


# Together


@pytest.mark.parametrize(("gateways", "per_second"), [(2, 50), (5, 60)])
def test_gateways_admit_what_one_would_within_a_tenth(gateways: int, per_second: float) -> None:
    for scenario in scenarios(gateways, per_second, seconds=12):
        found = simulated(scenario)
        assert abs(found.error) <= 0.1, scenario.name
        assert found.over <= 0.1, scenario.name
        assert found.round_trips <= 41 * gateways, scenario.name


def test_a_thousand_gateways_keep_what_has_been_spent_ahead_in_mind() -> None:
    """Each admits an account's first request, more than the burst together: nobody gets anything until that is paid."""
    clock = Clock()
    store = Store(clock)
    all_of_them = [Leases(memoryview(bytearray(size(2))), memoryview(array("q", [0, 0])), nullcontext(), clock)
                   for _ in range(1000)]  # fmt: skip
    one = Charge(7, "", TEN, 0, bytes(16))
    admitted_first = 0
    for leases in all_of_them:
        leases.adopt(1000, 0)
        leases.valid(ALL)
        if not leases.wait(0, one, TEN, clock.now):
            leases.count(0, TEN, clock.now)
            admitted_first += 1
        drawn(leases, store)
    assert admitted_first == 1000
    clock.now += 90 * SECOND
    assert sum(not leases.wait(0, one, TEN, clock.now) for leases in all_of_them) < 10, "the first of them"
    clock.now += 30 * SECOND
    drawn(all_of_them[0], store)
    assert not all_of_them[0].wait(0, one, TEN, clock.now)


DRAWS = st.lists(
    st.tuples(st.integers(0, 300), st.integers(-5, 0), st.integers(0, 40)), min_size=1, max_size=30
)  # fmt: skip


@pytest.mark.fuzz
@given(steps=DRAWS)
def test_the_store_never_grants_more_than_the_rate_has(steps: list[tuple[int, int, int]]) -> None:
    """Whatever is wished, and paid for later, in whatever order: granted tokens keep to the token bucket."""
    interval, room = 100_000.0, 2_000_000.0
    now, arrival, total = 0.0, 0.0, 0
    for pause, spent, wish in steps:
        now += pause * 1000
        found = granted(arrival - now, Draw(b"", interval, room, spent, wish, 0.0))
        arrival = now + found.ahead
        total += found.tokens - spent
        assert 0 <= found.tokens <= wish
        granted_in_all = total - sum(-each for _, each, _ in steps)
        assert granted_in_all <= now / interval + room / interval + 1
        assert found.ahead <= max(room, room + interval * 5 * len(steps))


@given(ahead=st.floats(-1e6, 4e6), balance=st.integers(0, 30), wish=st.integers(0, 30))
def test_tokens_that_are_given_back_are_there_again(ahead: float, balance: int, wish: int) -> None:
    interval, room = 100_000.0, 2_000_000.0
    kept = granted(ahead, Draw(b"", interval, room, balance, 0, 0.0))
    assert kept.ahead >= max(0.0, ahead - balance * interval)
    again = granted(kept.ahead, Draw(b"", interval, room, 0, wish, 0.0))
    assert again.tokens >= min(wish, int((room - max(0.0, ahead) - 1) // interval))


def test_a_clock_that_was_set_back_owes_no_more_than_can_have_been_spent() -> None:
    hour = 3.6e9
    assert granted(hour, Draw(b"", 10.0, 100.0, 0, 50, 0.0, 4)).ahead == 240


def test_a_store_that_forgot_the_account_hears_its_debt() -> None:
    assert granted(None, Draw(b"", 10.0, 100.0, 0, 50, 60.0)) == Granted(4, 100)
    assert granted(None, Draw(b"", 10.0, 100.0, 0, 50, 0.0)) == Granted(10, 100)


@given(ahead=st.integers(-100, 3000), gateways=st.integers(1, 50))
def test_all_that_is_spent_ahead_is_there(ahead: int, gateways: int) -> None:
    assert allowance(ahead, 100, 2000, gateways) * gateways <= max(0, 2000 - ahead) // 100


# One gateway


def test_a_burst_is_had_at_once_as_far_as_it_is_this_gateways_part(clock: Clock) -> None:
    table, leases = leased(clock, gateways=2)
    store = Store(clock)
    counts = []
    for _ in range(6):
        counts.append(admitted(table, 30))
        drawn(leases, store)
    assert counts[0] == 5
    assert sum(counts) == 20


def test_a_first_request_is_never_refused_for_want_of_a_draw(clock: Clock) -> None:
    table, _ = leased(clock, gateways=1000)
    assert admitted(table, 5) == 1


def test_a_row_without_requests_rests_and_has_given_all_back(clock: Clock) -> None:
    table, leases = leased(clock)
    store = Store(clock)
    assert admitted(table, 3) == 3
    assert [drawn(leases, store) for _ in range(4)] == [1, 1, 0, 0]
    key = charge(table).account
    (left,) = store.draw([Draw(key, TEN.interval / 1000, TEN.room / 1000, 0, 100, 0.0)])
    assert left.tokens == 17


def test_refused_requests_are_drawn_for(clock: Clock) -> None:
    table, leases = leased(clock)
    store = Store(clock)
    for total in (20, 10):
        found = 0
        for _ in range(8):
            found += admitted(table, 100)
            drawn(leases, store)
        assert found == total
        assert admitted(table, 100) == 0
        clock.now += SECOND


def test_the_wait_that_a_client_is_told_is_that_of_all(clock: Clock) -> None:
    table, leases = leased(clock)
    store = Store(clock)
    one = charge(table)
    store.draw([Draw(one.account, TEN.interval / 1000, TEN.room / 1000, -35, 0, 0.0)])
    assert admitted(table, 5) == 5
    drawn(leases, store)
    outcome = table.take((one,))
    assert isinstance(outcome, Excess)
    assert round(outcome.wait / SECOND, 1) == 2.1


def test_without_draws_each_gateway_keeps_its_part_of_rate_and_burst(clock: Clock) -> None:
    table, _ = leased(clock, gateways=4, valid=False)
    assert admitted(table, 100) == 5
    clock.now += 2 * SECOND
    assert admitted(table, 100) == 5
    clock.now += 400 * MS
    assert admitted(table, 100) == 1


def test_leases_end_when_no_draw_succeeds_any_more(clock: Clock) -> None:
    table, leases = leased(clock, gateways=2, valid=False)
    leases.valid(SECOND)
    assert admitted(table, 30) == 5
    drawn(leases, Store(clock))
    clock.now += SECOND
    assert admitted(table, 30) == 8, "half of what is left: five were used, eight drawn, and ten came"
    leases.valid(SECOND)
    leases.invalid()
    assert admitted(table, 1) == 0


def test_tokens_spent_ahead_of_a_draw_count_when_the_store_goes(clock: Clock) -> None:
    table, leases = leased(clock, gateways=2)
    assert admitted(table, 5) == 5
    leases.invalid()
    assert admitted(table, 30) == 5, "half of 20"


def test_tokens_that_were_spent_alone_are_paid_when_the_store_is_back(clock: Clock) -> None:
    tables = [leased(clock, gateways=2, rank=rank, valid=False) for rank in range(2)]
    store = Store(clock)
    assert [admitted(table, 30) for table, _ in tables] == [10, 10]
    for _, leases in tables:
        leases.valid(ALL - clock.now)
        assert drawn(leases, store, urgent=True) == 1
    (left,) = store.draw([Draw(charge(tables[0][0]).account, TEN.interval / 1000, TEN.room / 1000, 0, 100, 0.0)])
    assert left.tokens == 0
    assert [admitted(table, 30) for table, _ in tables] == [2, 0], "the first has not heard of the second yet"


def test_tokens_that_time_has_made_up_for_are_not_paid_again(clock: Clock) -> None:
    table, leases = leased(clock, gateways=2, valid=False)
    for _ in range(10):
        assert admitted(table, 30) == (5 if _ else 10)
        clock.now += SECOND
    leases.valid(ALL - clock.now)
    (due,) = leases.due(10, urgent=True)
    assert due.draw.balance == -5, "ten were spent at most, and five have come since"


def looked(gateways: list[Gateway], store: Store, *, there: bool = True) -> None:
    """Each gateway's look at the store, as every :data:`LOOK`."""
    for one in gateways:
        if not there:
            one.leases.invalid()
            continue
        one.leases.valid(SECOND)
        due = one.leases.due(10, urgent=not one.rounds.whole())
        one.leases.settle(due, store.draw([each.draw for each in due]))


def pair(clock: Clock, rate: Rate) -> list[Gateway]:
    return [Gateway(clock, 2, rank, rate, Random(rank)) for rank in range(2)]  # noqa: S311 - a simulation


@pytest.mark.parametrize("away", [0.3, 0.9, 3.0])
def test_a_store_that_comes_and_goes_gives_nobody_more(clock: Clock, away: float) -> None:
    """Twice the limit is asked for, while both gateways lose the store for some time after each second."""
    gateways, store, admitted = pair(clock, Rate.of(40, 40)), Store(clock), 0
    for step in range(2400):
        clock.now += round(LOOK * SECOND)
        looked(gateways, store, there=(step * LOOK) % (1 + away) < 1)
        admitted += gateways[step % 2].admits()
    assert 0.9 <= admitted / (40 + 30 * 40) <= 1.1


@pytest.mark.parametrize(("pauses", "burst"), [((8, 8), 1), ((8, 250), 1), ((24, 90), 5)])
def test_a_limit_of_less_than_a_token_in_a_slice_holds_and_starves_nobody(
    clock: Clock, pauses: tuple[int, int], burst: int
) -> None:
    """Half a request a second, asked for at both gateways after so many looks."""
    gateways, store, counts = pair(clock, Rate.of(0.5, burst)), Store(clock), [0, 0]
    for step in range(6400):
        clock.now += round(LOOK * SECOND)
        looked(gateways, store)
        for number, pause in enumerate(pauses):
            if step % pause == 0:
                counts[number] += gateways[number].admits()
    assert 0.9 <= sum(counts) / (burst + 40) <= 1.1, counts
    assert min(counts) >= 8, counts


def test_a_draw_without_an_answer_may_have_given_back_what_was_left(clock: Clock) -> None:
    table, leases = leased(clock)
    store = Store(clock)
    assert admitted(table, 2) == 2
    drawn(leases, store)
    due = leases.due(10, urgent=False)
    assert due[0].draw.balance > 0
    leases.forfeit(due)
    assert leases.due(10, urgent=False)[0].draw.balance <= 0


def test_requests_during_a_round_trip_count(clock: Clock) -> None:
    table, leases = leased(clock)
    store = Store(clock)
    assert admitted(table, 4) == 4
    due = leases.due(10, urgent=False)
    assert admitted(table, 1) == 1
    leases.settle(due, store.draw([one.draw for one in due]))
    drawn(leases, store)
    drawn(leases, store)
    drawn(leases, store)
    (left,) = store.draw([Draw(charge(table).account, TEN.interval / 1000, TEN.room / 1000, 0, 100, 0.0)])
    assert left.tokens == 15


def test_a_row_that_counts_is_not_given_to_another_account_until_it_is_drawn_for(clock: Clock) -> None:
    table, leases = leased(clock)
    one = charge(table)
    assert isinstance(table.take((one,)), tuple)
    others = [
        Charge(one.key ^ number * BUCKETS, "other", TEN, 0, bytes(15) + bytes((number,))) for number in range(1, 9)
    ]
    assert all(isinstance(table.take((other,)), tuple) for other in others)
    assert table.overflows == 1
    store = Store(clock)
    for _ in range(3):
        drawn(leases, store)
    clock.now += HOLD + 1
    late = Charge(one.key ^ 9 * BUCKETS, "late", TEN, 0, bytes(16))
    assert isinstance(table.take((late,)), tuple)
    assert table.overflows == 1


def test_what_was_drawn_for_a_former_account_of_a_row_is_not_the_next_ones(clock: Clock) -> None:
    leases = Leases(memoryview(bytearray(size(2))), memoryview(array("q", [0, 0])), nullcontext(), clock)
    leases.valid(ALL)
    first, second = (Charge(key, "", TEN, 0, bytes((key,)) * 16) for key in (1, 2))
    assert not leases.wait(0, first, TEN, clock.now)
    due = leases.due(10, urgent=False)
    assert not leases.wait(0, second, TEN, clock.now)
    leases.settle(due, [Granted(1000, 0)])
    assert leases.due(10, urgent=False)[0].draw == Draw(second.account, 1e5, 2e6, 0, 0, 0.0)


def test_more_rows_than_one_round_trip_has_room_for_take_turns(clock: Clock) -> None:
    table, leases = leased(clock)
    names = [str(number) for number in range(25)]
    for name in names:
        admitted(table, 1, charge(table, name))
    waiting = [one.row for _ in range(3) for one in leases.due(10, urgent=True)]
    assert sorted({*waiting}) == sorted(waiting)
    assert len(waiting) == 25
    turns = []
    while not turns or leases.turning:
        turns.append([one.row for one in leases.due(10, urgent=False)])
    assert [len(turn) for turn in turns] == [10, 10, 5]
    assert [row for turn in turns for row in turn] == sorted(waiting)
    admitted(table, 6, charge(table, "more"))
    assert len(leases.due(10, urgent=False)) == 10
    assert leases.turning


@given(most=st.integers(1, 1000), gateways=st.integers(1, 50))
def test_parts_of_concurrent_requests_are_the_whole_or_one_each(most: int, gateways: int) -> None:
    leases = Leases(memoryview(bytearray(size(2))), memoryview(array("q", [0, 0])), nullcontext(), lambda: 0)
    parts = []
    for rank in range(gateways):
        leases.adopt(gateways, rank)
        parts.append(leases.part(most))
    assert sum(parts) == max(most, gateways)
    assert max(parts) - min(parts) <= 1


def test_concurrent_requests_are_divided(clock: Clock) -> None:
    table, leases = leased(clock, gateways=2, rank=1)
    one = charge(table, rate=None, concurrent=5)
    rows = [table.take((one,)) for _ in range(2)]
    assert isinstance(table.take((one,)), Excess)
    leases.adopt(1, 0)
    assert admitted(table, 5, one) == 3
    for each in rows:
        assert isinstance(each, tuple)
        table.release(each)


def test_the_process_that_draws_sees_the_rows_of_all_workers() -> None:
    descriptor = create(2, leased=True)
    workers = [LimitTable.shared(descriptor, number, 2, leased=True) for number in range(2)]
    drawing = LimitTable.drawing(descriptor, 2).leases
    assert drawing is not None
    drawing.adopt(1, 0)
    drawing.valid(60 * SECOND)
    one = charge(workers[0], rate=Rate.of(0.001, 4))
    assert one.key == charge(workers[1]).key
    assert [admitted(worker, 2, one) for worker in workers] == [2, 2]
    due = drawing.due(10, urgent=False)
    assert [each.draw.balance for each in due] == [-4]
    assert admitted(workers[1], 1, one) == 0
