"""Work in slices: others are served in between, it ends with its request, and a defect in it ends the connection."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.h2_harness import Loop

from tlsproxy.errors import BadRequest, RequestError
from tlsproxy.proxy.core import scheduler as slices
from tlsproxy.proxy.grpc.call import Call
from tlsproxy.proxy.rest.exchange import Exchange
from tlsproxy.proxy.rest.link import ClientLink
from tlsproxy.wire.cooperative import Steps

pytestmark = pytest.mark.plain  # stand-ins for compiled classes

KINDS = pytest.mark.parametrize("kind", ["call", "exchange"])


class Participant:
    def __init__(self, name: str) -> None:
        self.account = (name,)


class RefusedCall(Call):
    """Its refusal is an object of its connection's."""

    def refuse(self, error: RequestError) -> None:
        self.relay.said.append(error)  # type: ignore[attr-defined]


class Connection:
    """What a call, and an exchange, knows of its connection."""

    def __init__(self, kind: str) -> None:
        self.gateway: Any = SimpleNamespace(scheduler=slices.Scheduler(asyncio.get_running_loop()))
        self.stream = self.session = self
        self.entry = Participant("it")
        self.said: list[object] = []
        self.worker: Any
        if kind == "call":
            self.worker = RefusedCall(self, 1, SimpleNamespace(id="0" * 32, plan=SimpleNamespace(largest=None)), 0.0)  # type: ignore[arg-type]
            self.calls = {1: self.worker}
        else:
            upstreams: Any = SimpleNamespace(pool=SimpleNamespace(forget=lambda _: None))
            self.link = ClientLink(self.gateway, upstreams, self.entry, self, b"")  # type: ignore[arg-type]
            self.worker = Exchange(self, None, None)  # type: ignore[arg-type]

    def tell(self, what: Callable[..., None], *args: object) -> None:
        try:
            what(*args)
        except RuntimeError as error:
            self.said.append(error)

    def end(self) -> None:
        if isinstance(self.worker, Call):
            self.calls.clear()
        else:
            self.worker.abandon()

    def exchange_failed(self, error: BadRequest) -> None:
        self.said.append(error)

    def settle(self) -> None:
        pass

    def present(self) -> None:
        pass

    def advance(self) -> None:
        pass


def steps(count: int, end: Callable[[], str]) -> Steps[str]:
    for _ in range(count):
        yield
    return end()


def failing(error: Exception) -> Callable[[], str]:
    def fail() -> str:
        raise error

    return fail


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slices, "SLICE", 0.0)


ORDERS = st.lists(st.tuples(st.sampled_from("ABC"), st.integers(0, 3)), max_size=60)


@given(ORDERS)
def test_accounts_take_turns_and_their_connections_within(asked: list[tuple[str, int]]) -> None:
    """Each iteration of the loop serves one, in the order in which an obvious twin would."""
    loop, served = Loop(), []
    scheduler = slices.Scheduler(loop)  # type: ignore[arg-type]
    connections = {(name, number): Participant(name) for name in "ABC" for number in range(4)}
    teller = SimpleNamespace(tell=lambda what: what())
    for turn, whose in enumerate(asked):
        scheduler.add(connections[whose], teller, partial(served.append, (whose, turn)))
    waiting: dict[str, list[tuple[int, list[int]]]] = {}
    for turn, (name, number) in enumerate(asked):
        queues = waiting.setdefault(name, [])
        queue = next((queue for whose, queue in queues if whose == number), None)
        if queue is None:
            queues.append((number, queue := []))
        queue.append(turn)
    expected, line = [], list(waiting)
    while line:
        name = line.pop(0)
        number, queue = waiting[name].pop(0)
        expected.append(((name, number), queue.pop(0)))
        if queue:
            waiting[name].append((number, queue))
        if waiting[name]:
            line.append(name)
    for count in range(len(asked)):
        assert len(served) == count
        loop.run()
    assert served == expected
    assert scheduler.waiting == {}


def test_who_has_ended_is_served_no_more() -> None:
    loop, served = Loop(), []
    scheduler, gone, stays = slices.Scheduler(loop), Participant("A"), Participant("A")  # type: ignore[arg-type]
    teller = SimpleNamespace(tell=lambda what: what())
    for one in (gone, stays, gone):
        scheduler.add(one, teller, partial(served.append, one))
    assert scheduler.crowded(Participant("A"))
    assert not scheduler.crowded(Participant("B"))
    scheduler.forget(gone)
    while loop.run():
        pass
    assert served == [stays]
    assert not scheduler.crowded(stays)


def test_a_connection_does_in_its_turn_what_comes_up() -> None:
    """Others of its account wait for theirs, and it does again once its turn is over."""
    loop, crowded = Loop(), []
    scheduler, mine, other = slices.Scheduler(loop), Participant("A"), Participant("A")  # type: ignore[arg-type]
    teller = SimpleNamespace(tell=lambda what: what())
    for one in (mine, other):
        scheduler.add(one, teller, lambda: crowded.append((scheduler.crowded(mine), scheduler.crowded(other))))
    loop.run()
    assert crowded == [(False, True)]
    assert scheduler.crowded(mine)
    loop.run()
    assert crowded[1:] == [(False, False)]


async def turns(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


@KINDS
def test_others_are_served_in_between(kind: str) -> None:
    async def work() -> None:
        connection, done = Connection(kind), []
        slices.in_slices(connection.worker, steps(5, lambda: "made"), done.append)
        for slice_ in range(5):
            assert not done, slice_
            await turns(1)
        assert done == ["made"]

    asyncio.run(work())


@KINDS
@pytest.mark.parametrize("error", [BadRequest("not this"), RuntimeError("a defect")])
def test_an_error_of_a_later_slice_is_told(kind: str, error: Exception) -> None:
    """By the request where it is its own, else by the connection, which ends of it."""

    async def work() -> None:
        connection, done = Connection(kind), []
        slices.in_slices(connection.worker, steps(2, failing(error)), done.append)
        await turns(4)
        assert connection.said == [error]
        assert not done

    asyncio.run(work())


@KINDS
def test_it_ends_with_its_request(kind: str) -> None:
    async def work() -> None:
        connection, done, ended = Connection(kind), [], []
        counted = steps(3, lambda: "made")
        weakref.finalize(counted, ended.append, True)
        slices.in_slices(connection.worker, counted, done.append)
        del counted
        connection.end()
        await turns(5)
        assert not done
        assert ended

    asyncio.run(work())
