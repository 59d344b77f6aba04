"""Blocking calls in daemon threads, which the end of the process does not wait for.

The loop's own executor is joined at exit: a thread that hangs in `open()` on a file server, or in a resolver, would
keep the process alive.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from threading import Thread
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


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
