"""SIGTERM and SIGHUP end the bench as an error would: what it started is ended first."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_SIGNALS = (signal.SIGTERM, signal.SIGHUP)


class _Ending:
    """While a process is being started, nobody could end it yet: a signal waits for that."""

    __slots__ = ("starting", "told")

    def __init__(self) -> None:
        self.starting = False
        self.told = 0

    def tell(self, signum: int, _frame: FrameType | None) -> None:
        """A second one changes nothing: it would end the ending."""
        if not self.told:
            self.told = signum
            if not self.starting:
                self.leave()

    def leave(self) -> None:
        raise SystemExit(128 + self.told)


_ending = _Ending()


def exit_when_told() -> None:
    for each in _SIGNALS:
        signal.signal(each, _ending.tell)


@contextmanager
def starting() -> Iterator[None]:
    """What is in here is done before the bench ends."""
    _ending.starting = True
    try:
        yield
    finally:
        _ending.starting = False
    if _ending.told:
        _ending.leave()
