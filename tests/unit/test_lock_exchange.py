"""Locks of several gateways: whoever hears whatever first, all agree, and nothing is lifted by a loss."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tlsproxy.config.locks import FileEntry, LockFile, moment
from tlsproxy.service.shared.lock_exchange import KEPT, LockExchange

NOW = 1_800_000_000.0
LATER = 2 * KEPT


def entry(name: str = "a", at: float = NOW, **fields: object) -> FileEntry:
    return FileEntry.model_validate({"subject": name, "at": moment(at), "by": "root", **fields})


def lifted(one: FileEntry, at: float = NOW + 60) -> FileEntry:
    return one.model_copy(update={"lifted_at": moment(at), "lifted_by": "alice", "lifted_reason": "found"})


class Gateway:
    def __init__(self) -> None:
        numbers = itertools.count()
        self.exchange = LockExchange(lambda: f"{id(self)}-{next(numbers)}")
        self.file = LockFile()

    def look(self, *entries: FileEntry, **fields: object) -> None:
        self.file = LockFile(locks=entries, **fields)
        self.exchange.look(self.file)

    def meet(self, store: dict[str, str]) -> None:
        """A whole reading, and all told that the store lacks."""
        self.exchange.hear(list(store.items()), begin=True, end=True)
        said = list(self.exchange.unsaid.values())
        for one in said:
            stored = store.get(one.id, "")
            if not stored or (one.lifted and stored.startswith("L")):
                store[one.id] = one.state + one.text
        self.exchange.said(said)

    @property
    def held(self) -> set[str]:
        return {lock.value for lock in self.exchange.merged(self.file).given()}


@pytest.fixture
def store() -> dict[str, str]:
    return {}


@pytest.fixture
def pair() -> tuple[Gateway, Gateway]:
    here, there = Gateway(), Gateway()
    here.look()
    there.look()
    return here, there


def test_a_lock_is_heard_and_lifted_from_elsewhere(pair: tuple[Gateway, Gateway], store: dict[str, str]) -> None:
    here, there = pair
    here.look(entry())
    here.meet(store)
    there.meet(store)
    assert there.held == {"a"}
    there.look(lifted(entry(at=NOW + 50)))
    there.meet(store)
    here.meet(store)
    assert here.held == there.held == set()
    told = {(one.lifted_by, one.lifted_reason) for one in here.exchange.merged(here.file).locks}
    assert told == {("alice", "found")}


def test_a_caller_that_is_locked_again_within_the_second_is_locked(
    pair: tuple[Gateway, Gateway], store: dict[str, str]
) -> None:
    here, there = pair
    for state in (entry(), lifted(entry()), entry()):
        here.look(state)
        here.meet(store)
        there.meet(store)
    assert here.held == there.held == {"a"}


def test_a_store_that_lost_all_is_told_again_and_lifts_nothing(
    pair: tuple[Gateway, Gateway], store: dict[str, str]
) -> None:
    here, there = pair
    here.look(entry("a"), entry("b"))
    here.meet(store)
    there.meet(store)
    there.look(lifted(entry("b")))
    there.meet(store)
    store.clear()
    there.meet(store)
    there.meet(store)
    here.meet(store)
    assert here.held == there.held == {"a"}
    newcomer = Gateway()
    newcomer.look()
    newcomer.meet(store)
    assert newcomer.held == {"a"}


def test_all_locks_are_lifted_together(pair: tuple[Gateway, Gateway], store: dict[str, str]) -> None:
    here, there = pair
    here.look(entry("a"), entry("b"))
    here.meet(store)
    there.meet(store)
    there.look(all_lifted_at=moment(NOW + 9), all_lifted_by="bob")
    there.meet(store)
    here.meet(store)
    assert here.held == there.held == set()


def test_a_gateway_that_was_away_while_its_lock_was_lifted_learns_it(store: dict[str, str]) -> None:
    here, there = Gateway(), Gateway()
    here.look(entry())
    here.meet(store)
    there.look()
    there.meet(store)
    there.look(lifted(entry(at=NOW + 1)))
    there.meet(store)
    again = Gateway()
    again.look(entry())
    assert again.held == {"a"}, "until it is told"
    again.meet(store)
    assert again.held == set()


def test_what_is_over_for_long_is_forgotten(pair: tuple[Gateway, Gateway], store: dict[str, str]) -> None:
    here, there = pair
    here.look(entry(until=moment(NOW + 60)), entry("b"))
    here.meet(store)
    there.meet(store)
    assert [round(one.kept(NOW)) for one in here.exchange.unsaid.values()] == []
    there.exchange.forget(NOW + LATER)
    assert there.held == {"b"}


@pytest.mark.parametrize("text", ["", "L", "Lnull", 'L{"subject": 7}', 'L{"key": "a", "subject": "b"}', "L[]"])
def test_an_entry_that_cannot_be_read_is_counted(pair: tuple[Gateway, Gateway], text: str) -> None:
    here, _ = pair
    here.exchange.hear([("id", text)], begin=True, end=True)
    here.exchange.hear([("id", text)], begin=False, end=False)
    assert len(here.exchange.unread) == bool(text), "each meeting hears the last one again"
    assert here.held == set()


STEPS = st.lists(st.tuples(st.integers(0, 2), st.sampled_from(["lock", "unlock", "meet", "lose"])), max_size=25)


@pytest.mark.fuzz
@given(steps=STEPS)
def test_gateways_that_have_met_agree(steps: list[tuple[int, str]]) -> None:
    gateways, store = [Gateway() for _ in range(3)], dict[str, str]()
    for one in gateways:
        one.look()
    for at, (number, step) in enumerate(steps):
        one = gateways[number]
        if step == "lock":
            one.look(entry(at=NOW + at))
        elif step == "unlock" and one.held:
            one.look(lifted(entry(at=NOW + at)))
            assert one.held == set()
        elif step == "meet":
            one.meet(store)
        elif step == "lose":
            store.clear()
    for _ in range(3):
        for one in gateways:
            one.meet(store)
    assert len({frozenset(one.held) for one in gateways}) == 1
