"""Order of a listener's targets: as configured, and those that failed last. No IO, no clock.

A target that failed pauses for a second, twice as long after each further failure, up to a minute, until it was up for
a minute. Within the pause it is tried last; after it, a check of its own says whether it is back, before clients are
sent there.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from tlsproxy.proxy.core.balancer import FIRST_PAUSE, LONGEST_PAUSE
from tlsproxy.proxy.transport.dial import Address


@dataclass(slots=True)
class TargetState:
    """``up`` is None before the first connection; ``reason`` is that of the last failure, "" while it is up.

    ``address``: the last that stood. ``since``: the moment when it came up, ``until``: the end of its pause.
    ``checking``: its check is under way. ``told``: the reason that the log has, "" for up, None for nothing.
    """

    up: bool | None = None
    reason: str = ""
    address: Address | None = None
    pause: float = 0.0
    since: float = float("-inf")
    until: float = float("-inf")
    checking: bool = False
    told: str | None = None


class Targets:
    """States of one listener's targets, by their names. Moments are of the monotonic clock."""

    def __init__(self, names: Sequence[str]) -> None:
        self.states: dict[str, TargetState] = {}
        self.adopt(names)

    def adopt(self, names: Iterable[str]) -> None:
        """The configured ones from now on; one of the same name keeps its state."""
        self.states = {name: self.states.get(name) or TargetState() for name in names}

    def order(self) -> list[str]:
        """In the order to try: as configured, those that are down last: the one first whose pause ends first."""

        def place(name: str) -> tuple[bool, float]:
            state = self.states[name]
            return (True, state.until) if state.up is False else (False, 0.0)

        return sorted(self.states, key=place)

    def failed(self, name: str, reason: str, now: float) -> bool:
        """Begins a pause. Whether that is worth a line: the log has it as up, or as down for another reason.

        Failures within a pause do not lengthen it, and have no line, whatever their reasons and however many clients.
        """
        state = self.states.get(name)
        if state is None:
            return False
        if state.up and now - state.since >= LONGEST_PAUSE:
            state.pause = 0.0
        state.up, state.reason = False, reason
        if now < state.until:
            return False
        state.pause = min(max(2 * state.pause, FIRST_PAUSE), LONGEST_PAUSE)
        state.until = now + state.pause
        changed, state.told = state.told != reason, reason
        return changed

    def stood(self, name: str, address: Address | None, now: float) -> bool:
        """A connection stands at this address. Whether that is worth a line: the log has it as down, or not at all."""
        state = self.states.get(name)
        if state is None:
            return False
        if state.up is not True:
            state.since = now
        state.up, state.reason, state.address = True, "", address
        changed, state.told = state.told != "", ""
        return changed

    def retry(self, names: Collection[str]) -> None:
        """End the pauses of these: something has changed that they may have failed for."""
        for name in self.states.keys() & names:
            self.states[name].until = float("-inf")

    def due(self, now: float) -> list[str]:
        """Targets to check: those that nobody has tried, and those whose pause is over."""
        return [
            name
            for name, state in self.states.items()
            if state.up is not True and not state.checking and now >= state.until
        ]
