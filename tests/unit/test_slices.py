"""Work in slices: others are served in between, it ends with its call, and a defect in it ends the connection."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from tlsproxy.errors import BadRequest
from tlsproxy.proxy import slices
from tlsproxy.wire.steps import Steps


class Connection:
    """What a call knows of its connection."""

    def __init__(self) -> None:
        self.calls: dict[int, Any] = {1: SimpleNamespace(stream=1, relay=self)}
        self.gateway = SimpleNamespace(loop=asyncio.get_running_loop())
        self.stream = self
        self.said: list[object] = []
        self.settled = 0

    def tell(self, what: Callable[..., None], *args: object) -> None:
        try:
            what(*args)
        except RuntimeError as error:
            self.said.append(error)

    def refuse(self, _call: object, error: BadRequest) -> None:
        self.said.append(error)

    def settle(self) -> None:
        self.settled += 1


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


async def turns(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


def test_others_are_served_in_between() -> None:
    async def work() -> None:
        connection, done = Connection(), []
        slices.in_slices(connection.calls[1], steps(5, lambda: "made"), done.append)
        for slice_ in range(5):
            assert not done, slice_
            await turns(1)
        assert done == ["made"]
        assert connection.settled == 5

    asyncio.run(work())


@pytest.mark.parametrize("error", [BadRequest("not this"), RuntimeError("a defect")])
def test_an_error_of_a_later_slice_is_told(error: Exception) -> None:
    """By the call where it is the request's, else by the connection, which ends of it."""

    async def work() -> None:
        connection, done = Connection(), []
        slices.in_slices(connection.calls[1], steps(2, failing(error)), done.append)
        await turns(4)
        assert connection.said == [error]
        assert not done

    asyncio.run(work())


def test_it_ends_with_its_call() -> None:
    async def work() -> None:
        connection, done = Connection(), []
        work_of_it = steps(3, lambda: "made")
        slices.in_slices(connection.calls[1], work_of_it, done.append)
        connection.calls.clear()
        await turns(5)
        assert not done
        assert next(work_of_it, "closed") == "closed"

    asyncio.run(work())
