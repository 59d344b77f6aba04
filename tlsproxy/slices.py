"""Work on the event loop in slices of time: others are served in between."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Final, TypeVar

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop

T = TypeVar("T")

SLICE: Final = 0.002
"""Seconds for which nobody else is served. An item that was begun by then is finished."""


def slices(items: Iterable[T]) -> Iterator[Iterator[T]]:
    """The items in slices. Each slice is to be used up before the next one, and the loop to turn in between."""
    rest = iter(items)
    return (_slice(first, rest) for first in rest)


def _slice(first: T, rest: Iterator[T]) -> Iterator[T]:
    end = time.monotonic() + SLICE
    yield first
    if time.monotonic() < end:
        for item in rest:
            yield item
            if time.monotonic() >= end:
                return


def act_in_slices(loop: AbstractEventLoop, items: list[T] | set[T], act: Callable[[T], None]) -> None:
    """Acts on each item, the first slice of them before this returns. An error costs the slice, and no other.

    Each is taken out of ``items`` in its turn: those that have ended would else be freed together, in one go.
    """
    _act(loop, slices(_taken(items)), act)


def _taken(items: list[T] | set[T]) -> Iterator[T]:
    while items:
        yield items.pop()


def _act(loop: AbstractEventLoop, turns: Iterator[Iterator[T]], act: Callable[[T], None]) -> None:
    for items in turns:
        loop.call_soon(_act, loop, turns, act)
        for item in items:
            act(item)
        return
