"""Work on a call's message that could hold the loop: a slice of it at a time, and everybody else in between."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final, TypeVar

from tlsproxy.errors import RequestError
from tlsproxy.proxy.call import Call
from tlsproxy.wire.steps import Steps

SLICE: Final = 0.01
"""Seconds: for how long nobody else is served."""

T = TypeVar("T")


def in_slices(call: Call, steps: Steps[T], then: Callable[[T], None]) -> None:
    """``then`` is told what the steps come to: before this returns, if that takes no longer than a slice.

    Raises RequestError where they do by then; later, that refuses the call. They end with it.
    """
    end = time.monotonic() + SLICE
    try:
        next(steps)
        while time.monotonic() < end:
            next(steps)
    except StopIteration as done:
        then(done.value)
    else:
        call.relay.gateway.loop.call_soon(call.relay.stream.tell, _go_on, call, steps, then)


def _go_on(call: Call, steps: Steps[T], then: Callable[[T], None]) -> None:
    relay = call.relay
    if relay.calls.get(call.stream) is not call:
        steps.close()
        return
    try:
        in_slices(call, steps, then)
    except RequestError as error:
        relay.refuse(call, error)
    relay.settle()
