"""Blocking calls in daemon threads, which the end of the process does not wait for, and the end of large values.

The loop's own executor is joined at exit: a thread that hangs in `open()` on a file server, or in a resolver, would
keep the process alive.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from functools import partial
from threading import Thread, Timer
from typing import Final, ParamSpec, TypeVar
from weakref import finalize

P = ParamSpec("P")
T = TypeVar("T")

MANY: Final = 500
MOMENT: Final = 1.0
"""Seconds between the end of a large value and that of its parts."""


def in_thread(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> asyncio.Future[T]:
    """Call a function in a thread of its own. The future has its result or exception.

    A cancelled future is done at once; the thread goes on, and its result is dropped.
    """
    outcome: Future[T] = Future()
    Thread(target=_run, args=(outcome, partial(function, *args, **kwargs)), daemon=True).start()
    return asyncio.wrap_future(outcome)


def _run(outcome: Future[T], work: Callable[[], T]) -> None:
    outcome.set_running_or_notify_cancel()
    try:
        result = work()
    except BaseException as error:  # noqa: BLE001 - raised to whoever waits
        outcome.set_exception(error)
        del outcome  # else the error's traceback would hold this frame, and with it the error
    else:
        outcome.set_result(result)


def free_in_parts(whole: object, parts: Iterable[object]) -> None:
    """Have the ``parts`` of a value freed one by one in a thread, once nobody has the ``whole`` any more, if they are
    many.

    A graph of 100,000 objects is freed in one go by whoever drops the last reference, the event loop or another thread,
    and no thread runs meanwhile: 20 ms.
    """
    listed = list(parts)
    if len(listed) >= MANY:
        finalize(whole, _free_in_thread, listed).atexit = False


def _free_in_thread(parts: list[object]) -> None:
    """A finalizer is called before the value lets its parts go, so they are freed a moment later."""
    timer = Timer(MOMENT, _free, (parts,))
    timer.daemon = True
    timer.start()


def _free(parts: list[object]) -> None:
    while parts:
        parts.pop()
