"""Token buckets for HTTP/2 frames that are cheap to send and expensive to handle.

Every budget is a bucket: it holds ``burst`` and refills by ``rate`` a second. A client that empties one is no client.
(CVE-2023-44487 rapid reset, CVE-2019-9511 to 9518, CVE-2024-27316 and kin, CVE-2025-8671 MadeYouReset.)
"""

from __future__ import annotations

from typing import Final

from tlsproxy.wire.http2 import Code, Http2Error


class Budget:
    """One bucket. Time is seconds of any monotonic clock, given by whoever spends."""

    __slots__ = ("_burst", "_left", "_rate", "_reason", "_when")

    def __init__(self, reason: str, burst: float, rate: float) -> None:
        self._reason = reason
        self._burst = self._left = burst
        self._rate = rate
        self._when = 0.0

    def spend(self, now: float) -> None:
        """Raises :class:`Http2Error` (ENHANCE_YOUR_CALM) where there is nothing left."""
        left = self._left + (now - self._when) * self._rate
        if left > self._burst:  # noqa: PLR1730 - min() takes as long as all the rest
            left = self._burst
        self._left = left = left - 1
        self._when = now
        if left < 0:
            raise Http2Error(Code.ENHANCE_YOUR_CALM, f"too many: {self._reason}", self._reason)

    def resize(self, burst: float, rate: float) -> None:
        self._left = min(self._left, burst)
        self._burst, self._rate = burst, rate

    def refund(self, amount: float) -> None:
        """For what the other side's own doing calls for."""
        self._left = min(self._burst, self._left + amount)


ALLOWED_UPDATES: Final = 2
"""WINDOW_UPDATE frames that a DATA frame calls for: the stream's and the connection's."""


class Budgets:
    """Budgets of one connection."""

    __slots__ = ("control", "empty", "late", "resets", "settings", "streams", "updates", "wrong")

    def __init__(self, streams_per_second: float) -> None:
        self.streams = Budget("flood_streams", streams_per_second, streams_per_second)
        self.resets = Budget("flood_resets", 400, 100)  # of calls that are going on; a deadline ends many at once
        self.wrong = Budget("flood_refused", 200, 50)  # streams that we are made to reset
        self.late = Budget("flood_late_frames", 2000, 500)  # on streams that are over
        self.control = Budget("flood_control", 1000, 100)  # PING, PRIORITY, types that nobody knows
        self.settings = Budget("flood_settings", 20, 1)
        self.updates = Budget("flood_window_updates", 4000, 500)  # beside those that DATA calls for
        self.empty = Budget("flood_empty_frames", 200, 50)

    def adopt(self, streams_per_second: float) -> None:
        """From here on there may be so many new streams."""
        self.streams.resize(streams_per_second, streams_per_second)

    def data_sent(self, frames: int = 1) -> None:
        """The other side is sent so many DATA frames."""
        self.updates.refund(ALLOWED_UPDATES * frames)
