"""Counters of client mode, and their exposition."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from tlsproxy import __version__
from tlsproxy.form import form
from tlsproxy.metrics import families
from tlsproxy.metrics.prometheus import Series
from tlsproxy.snapshot.lifetimes import Lifetime, ends_by_name


class Counted:
    """Counters of one process. ``targets`` and ``lifetimes`` are asked at each exposition."""

    def __init__(
        self,
        targets: Callable[[], Iterable[tuple[tuple[str, str], bool | None]]],
        lifetimes: Callable[[], Sequence[Lifetime]],
    ) -> None:
        self._targets = targets
        self._lifetimes = lifetimes
        self._ready: Mapping[str, bool] = {}
        self.open: Counter[str] = Counter()
        self.connections: Counter[tuple[str, str]] = Counter()
        self.bytes: Counter[tuple[str, str]] = Counter()
        self.failures: Counter[tuple[str, str, str]] = Counter()
        self.negotiated: Counter[tuple[str, str, str, str]] = Counter()
        self.accept_errors = 0
        self.reloads: Counter[tuple[str, str]] = Counter()

    def accept_error(self) -> None:
        self.accept_errors += 1

    def readiness(self, parts: Mapping[str, bool]) -> None:
        self._ready = parts

    def series(self) -> list[Series]:
        """All families."""
        return list(self._collect())

    def _collect(self) -> Iterator[Series]:
        yield families.BUILD_INFO.of([((__version__, form()), 1)])
        yield families.CONNECT_OPEN.keyed(self.open)
        yield families.CONNECT_CONNECTIONS.of(self.connections.items())
        yield families.CONNECT_BYTES.of(self.bytes.items())
        yield families.CONNECT_FAILURES.of(self.failures.items())
        yield families.CONNECT_TARGET_UP.of((labels, up) for labels, up in self._targets() if up is not None)
        yield families.NEGOTIATED.of(self.negotiated.items())
        yield families.ACCEPT_ERRORS.single(self.accept_errors)
        yield families.RELOADS.of(self.reloads.items())
        lifetimes = ends_by_name(self._lifetimes())
        yield families.EXPIRY.of((names, end) for names, (_, end) in lifetimes.items())
        yield families.EXPIRY_START.of((names, start) for names, (start, _) in lifetimes.items())
        yield families.READY.keyed(self._ready)
