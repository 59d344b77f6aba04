"""Max-min fair shares: who is served, who gives way and who is refused once a resource is used up."""

from __future__ import annotations

from functools import partial

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from tlsproxy.errors import GaveWay, Overloaded, RequestError
from tlsproxy.proxy.limits.fair_shares import Share, Shares

CAPACITY, MOST = 8, 6


class Holder:
    """``ended`` is what it was told to end with."""

    def __init__(self, shares: Shares, account: str) -> None:
        self.share = Share(shares, (account,), self)
        self.waits_for_client = False
        self.ended: RequestError | None = None

    def give_way(self, error: RequestError) -> None:
        self.ended = error


@pytest.fixture
def shares() -> Shares:
    return Shares(CAPACITY, MOST, Overloaded)


def holders(shares: Shares, account: str, count: int, size: int = 1, *, idle: bool = False) -> list[Holder]:
    made = [Holder(shares, account) for _ in range(count)]
    for one in made:
        assert one.share.take(size)
        one.waits_for_client = idle
    return made


def waiting(shares: Shares, account: str, size: int = 1) -> Holder:
    one = Holder(shares, account)
    assert not one.share.take(size)
    return one


def test_one_account_may_have_all_of_it(shares: Shares) -> None:
    holders(shares, "a", CAPACITY, idle=True)
    assert shares.held == CAPACITY


def test_the_account_that_holds_least_is_served_first(shares: Shares) -> None:
    held = holders(shares, "a", 6) + holders(shares, "b", 2)
    greedy, modest, stranger = (waiting(shares, account) for account in "abc")
    for released, served in zip(held, (stranger, modest, greedy), strict=False):
        released.share.release()
        assert served.share.size == 1
    assert shares.waiting == 0


def test_who_waits_for_its_client_gives_way_until_shares_are_equal(shares: Shares) -> None:
    dribbling = holders(shares, "a", CAPACITY, idle=True)
    modest = []
    for count in range(1, CAPACITY // 2 + 1):
        modest.append(waiting(shares, "b"))
        victim = dribbling[-count]
        assert isinstance(victim.ended, GaveWay)
        victim.share.release()
        assert modest[-1].share.size == 1
    assert not waiting(shares, "b").share.size
    assert [one.ended for one in dribbling[: CAPACITY // 2]] == [None] * 4


def test_who_is_at_work_is_left_alone(shares: Shares) -> None:
    working = holders(shares, "a", CAPACITY)
    modest = waiting(shares, "b")
    assert not any(one.ended for one in working)
    working[3].waits_for_client = True
    shares.review()
    assert [one for one in working if one.ended] == [working[3]]
    shares.review()
    assert sum(one.ended is not None for one in working) == 1, "one for one"
    working[3].share.release()
    assert modest.share.size == 1


def test_an_account_within_its_fair_share_keeps_it(shares: Shares) -> None:
    holders(shares, "a", CAPACITY // 2)
    idle = holders(shares, "b", CAPACITY // 2, idle=True)
    waiting(shares, "c")
    assert len([one for one in idle if one.ended]) == 1, "four are more than a third of eight"
    waiting(shares, "c", 2)
    assert len([one for one in idle if one.ended]) == 2


def test_the_newest_of_the_greediest_makes_room_in_the_queue(shares: Shares) -> None:
    holders(shares, "a", CAPACITY)
    queue = [waiting(shares, "a") for _ in range(MOST)]
    with pytest.raises(Overloaded):
        Holder(shares, "a").share.take(1)
    waiting(shares, "b")
    assert [one for one in queue if one.ended] == queue[-1:]
    assert shares.waiting == MOST


def test_those_that_hold_and_wait_do_not_wait_for_each_other(shares: Shares) -> None:
    first, second = holders(shares, "a", 2, size=3)
    other = holders(shares, "b", 1, size=2)[0]
    assert not first.share.take(3)
    with pytest.raises(Overloaded):
        second.share.take(3)
    second.share.release()
    assert first.share.size == 6
    assert not other.ended


def test_the_greediest_is_who_holds_and_wants_most_together(shares: Shares) -> None:
    """Six by `a` (5 and 1), seven by `b` (3 and 4): neither who holds most nor who wants least."""
    holders(shares, "a", 1, size=5)
    holders(shares, "b", 1, size=3)
    spared, greedy = waiting(shares, "a", 1), waiting(shares, "b", 4)
    others = [waiting(shares, "c") for _ in range(MOST - 2)]
    waiting(shares, "d")
    assert isinstance(greedy.ended, Overloaded)
    assert [one.ended for one in (spared, *others)] == [None] * (MOST - 1)


def test_room_comes_free_while_another_is_at_work(shares: Shares) -> None:
    (mine,) = holders(shares, "a", 1, size=4)
    assert not shares.is_at_work(mine.share)
    (other,) = holders(shares, "b", 1, size=4)
    assert shares.is_at_work(mine.share)
    other.waits_for_client = True
    assert not shares.is_at_work(mine.share)
    waiting(shares, "c")
    assert other.ended
    assert shares.is_at_work(mine.share), "it gives way"


def test_no_room_comes_free_from_one_that_waits_for_more(shares: Shares) -> None:
    mine, other = holders(shares, "a", 2, size=4)
    assert not other.share.take(1)
    assert not shares.is_at_work(mine.share)
    assert shares.is_at_work(other.share)


def test_a_share_that_shrinks_gives_back_the_rest(shares: Shares) -> None:
    (one,) = holders(shares, "a", 1, size=5)
    other = waiting(shares, "b", 4)
    for size, rest in ((9, 5), (5, 5), (4, 4), (4, 4)):
        one.share.shrink(size)
        assert (one.share.size, other.share.size, shares.held) == (rest, 4 if rest < 5 else 0, rest + (rest < 5) * 4)
    Holder(shares, "c").share.shrink(0)
    assert shares.held == 8


def test_an_account_that_gave_back_is_served_before_one_that_holds_more(shares: Shares) -> None:
    (shrunk,) = holders(shares, "a", 1, size=6)
    holders(shares, "b", 1, size=2)
    shrunk.share.shrink(1)
    (most,) = holders(shares, "c", 1, size=5)
    greedy, modest = waiting(shares, "b"), waiting(shares, "a")
    most.share.shrink(4)
    assert (modest.share.size, greedy.share.size) == (1, 0)


def test_a_share_that_gave_way_may_be_asked_again(shares: Shares) -> None:
    idle = holders(shares, "a", CAPACITY, idle=True)[-1]
    for account in "bc":
        served = waiting(shares, account)
        assert isinstance(idle.ended, GaveWay)
        idle.share.shrink(0)
        assert served.share.size == 1
        served.share.release()
        idle.ended = None
        assert idle.share.take(1)


def test_a_replacement_is_one_beyond_the_capacity(shares: Shares) -> None:
    held = holders(shares, "a", CAPACITY)
    replacement = Holder(shares, "a")
    replacement.share.replace()
    assert (shares.held, replacement.share.size) == (CAPACITY + 1, 1)
    claim = waiting(shares, "b")
    held[0].share.release()
    assert not claim.share.size, "the place that was lost is not free twice"
    held[1].share.release()
    assert (shares.held, claim.share.size) == (CAPACITY, 1)


def test_each_wait_is_told_of_once(shares: Shares) -> None:
    """A claim that is served at once is not told of by what an earlier one waited for."""
    told: list[int] = []
    held = holders(shares, "a", CAPACITY)
    one = waiting(shares, "b")
    one.share.ready = lambda: told.append(one.share.size)
    held[0].share.release()
    assert told == [1]
    held[1].share.release()
    big = waiting(shares, "a", CAPACITY)
    assert one.share.take(1), "who would hold less goes before"
    assert told == [1]
    big.share.release()


def test_what_waits_no_longer_is_not_served(shares: Shares) -> None:
    held = holders(shares, "a", CAPACITY)
    gone, served = waiting(shares, "b"), waiting(shares, "c")
    gone.share.release()
    gone.share.release()
    held[0].share.release()
    assert (gone.share.size, served.share.size) == (0, 1)


def test_an_impatient_claim_waits_within_the_fair_share_alone(shares: Shares) -> None:
    holders(shares, "a", 1, size=5)
    holders(shares, "b", 1, size=3)
    for count in (1, 2):
        with pytest.raises(Overloaded):
            Holder(shares, "b").share.take(2, patient=False)
        assert (shares.waiting, shares.refused) == (0, count)
    assert not Holder(shares, "b").share.take(1, patient=False)


def test_the_holder_with_most_is_served_first(shares: Shares) -> None:
    most, least, middle = (holders(shares, "a", 1, size=size)[0] for size in (3, 1, 2))
    (other,) = holders(shares, "b", 1, size=2)
    for one in (most, least, middle):
        assert not one.share.take(1)
    other.share.release()
    assert [one.share.size for one in (most, least, middle)] == [4, 1, 3]


def test_what_is_served_is_served_after_another(shares: Shares) -> None:
    """A claim that ends as soon as it is served does not serve the next one from within."""
    (held,) = holders(shares, "a", 1, size=CAPACITY)
    queue = [waiting(shares, "b", CAPACITY) for _ in range(MOST)]
    within: list[Holder] = []
    served = []

    def serve(one: Holder) -> None:
        assert not within
        within.append(one)
        one.share.release()
        served.append(within.pop())

    for one in queue:
        one.share.ready = partial(serve, one)
    held.share.release()
    assert served == queue


def test_all_claims_of_an_account_are_wanted_by_it(shares: Shares) -> None:
    """Those that it took back are not: five by `a` (4 and 1), seven by `b` (4 and 3)."""
    holders(shares, "a", 1, size=4)
    holders(shares, "b", 1, size=4)
    for gone in [waiting(shares, "a", 2) for _ in range(2)]:
        gone.share.release()
    spared, *greedy = waiting(shares, "a"), *(waiting(shares, "b") for _ in range(3))
    others = [waiting(shares, "c") for _ in range(MOST - 4)]
    for count in (1, 2):
        waiting(shares, "d")
        assert [one for one in (spared, *greedy, *others) if one.ended] == greedy[-count:]
        assert shares.refused == count


def test_who_waits_no_longer_leaves_room(shares: Shares) -> None:
    first, second, third = (
        holders(shares, account, 1, size=size)[0] for account, size in (("a", 3), ("b", 3), ("c", 2))
    )
    assert not first.share.take(1)
    third.share.shrink(1)
    assert first.share.size == 4
    assert not second.share.take(3)


@pytest.mark.parametrize(("size", "more", "stuck"), [(1, 7, False), (1, 8, True), (4, 4, False), (4, 5, True)])
def test_a_claim_waits_for_no_room_that_it_takes_itself(shares: Shares, size: int, more: int, *, stuck: bool) -> None:
    (one,) = holders(shares, "a", 1, size=size)
    holders(shares, "b", 1, size=CAPACITY - size)
    if stuck:
        with pytest.raises(Overloaded):
            one.share.take(more)
    else:
        assert not one.share.take(more)


def test_of_claims_that_wait_for_each_other_the_second_is_refused(shares: Shares) -> None:
    """It holds something, unlike the last; without a second one the last is refused, and then the first."""
    first, second = (holders(shares, "a", 1, size=size)[0] for size in (3, 2))
    (other,) = holders(shares, "b", 1, size=3)
    last = waiting(shares, "a")
    assert not second.share.take(1)
    assert not first.share.take(4)
    assert [one for one in (first, second, last) if one.ended] == [second]
    second.share.release()
    assert not other.share.take(3)
    assert [one for one in (first, last, other) if one.ended] == [first, last]


def test_of_too_many_claims_the_last_is_refused(shares: Shares) -> None:
    begun = [holders(shares, "a", 1, size=size)[0] for size in (2, 1)]
    holders(shares, "b", 1, size=5)
    assert not any(one.share.take(1) for one in begun)
    queue = [waiting(shares, "a") for _ in range(MOST - 2)]
    with pytest.raises(Overloaded):
        Holder(shares, "a").share.take(1)
    assert not any(one.ended for one in (*begun, *queue))


def test_holders_give_way_one_for_one(shares: Shares) -> None:
    idle = holders(shares, "a", CAPACITY, idle=True)
    waiting(shares, "b", 3)
    shares.review()
    assert [one for one in idle if one.ended] == idle[-3:]
    assert shares.gave_way == 3


def test_nobody_gives_way_to_an_account_beyond_its_fair_share(shares: Shares) -> None:
    idle = holders(shares, "a", 4, idle=True)
    holders(shares, "b", 2)
    holders(shares, "c", 2)
    waiting(shares, "b")
    assert not any(one.ended for one in idle)


@pytest.mark.parametrize(("more", "of_greater", "of_lesser"), [(1, 1, 0), (3, 2, 1)])
def test_those_furthest_above_their_fair_share_give_way_down_to_it(more: int, of_greater: int, of_lesser: int) -> None:
    """Fair are 3 of 12."""
    shares = Shares(12, MOST, Overloaded)
    greater, lesser = holders(shares, "a", 5, idle=True), holders(shares, "d", 4, idle=True)
    holders(shares, "b", 3)
    waiting(shares, "c", more)
    assert (sum(one.ended is not None for one in greater), sum(one.ended is not None for one in lesser)) == (
        of_greater, of_lesser,
    )  # fmt: skip


def test_an_account_at_its_fair_share_gives_nothing() -> None:
    shares = Shares(12, MOST, Overloaded)
    idle = holders(shares, "a", 4, idle=True)
    holders(shares, "b", 8)
    waiting(shares, "c", 4)
    assert not any(one.ended for one in idle)


class Machine(RuleBasedStateMachine):
    """Whatever comes, what is held adds up, and nobody waits for what is theirs by the rules."""

    def __init__(self) -> None:
        super().__init__()
        self.shares = Shares(CAPACITY, MOST, Overloaded)
        self.living: list[Holder] = []
        self.claims: list[Holder] = []

    made = Bundle("made")

    @rule(target=made, account=st.sampled_from("abc"), size=st.integers(1, 5), idle=st.booleans())
    def come(self, account: str, size: int, idle: bool) -> Holder:  # noqa: FBT001
        one = Holder(self.shares, account)
        self.living.append(one)
        self._take(one, size)
        one.waits_for_client = idle
        return one

    @rule(one=made, size=st.integers(1, 4))
    def grow(self, one: Holder, size: int) -> None:
        if one in self.living and not one.share.wanted and one.share.size + size <= CAPACITY:
            self._take(one, size)

    def _take(self, one: Holder, size: int) -> None:
        try:
            if not one.share.take(size):
                self.claims.append(one)
        except Overloaded:
            one.share.release()
            self.living.remove(one)

    @rule(one=made, size=st.integers(0, 4))
    def shrink(self, one: Holder, size: int) -> None:
        if not one.share.wanted:
            one.share.shrink(size)

    @rule(one=made)
    def change(self, one: Holder) -> None:
        one.waits_for_client = not one.waits_for_client

    @rule(one=consumes(made))
    def leave(self, one: Holder) -> None:
        one.share.release()
        if one in self.living:
            self.living.remove(one)

    @rule()
    def turn(self) -> None:
        """Those that were told to end do."""
        for one in [one for one in self.living if one.ended]:
            one.share.release()
            self.living.remove(one)
        self.shares.review()

    @invariant()
    def adds_up(self) -> None:
        sizes = [one.share.size for one in self.living]
        assert self.shares.held == sum(sizes) <= CAPACITY
        assert self.shares.waiting == len([one for one in self.living if one.share.wanted]) <= MOST

    @invariant()
    def nobody_waits_in_vain(self) -> None:
        accounts = {one.share.account for one in self.living if one.share.size or one.share.wanted}
        held = {a: sum(one.share.size for one in self.living if one.share.account == a) for a in accounts}
        self.claims = sorted((one for one in self.claims if one.share.wanted), key=lambda one: -one.share.size)
        firsts = [one for a in accounts for one in [o for o in self.claims if o.share.account == a][:1]]
        if firsts:
            least = min(held[one.share.account] + one.share.wanted for one in firsts)
            assert any(
                self.shares.held + one.share.wanted > CAPACITY
                for one in firsts
                if held[one.share.account] + one.share.wanted == least
            )


TestMachine = Machine.TestCase
TestMachine.settings = settings(max_examples=25, stateful_step_count=30, deadline=None)
