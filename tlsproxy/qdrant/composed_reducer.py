"""Several reductions of one response, one after the other."""

from __future__ import annotations

from dataclasses import dataclass

from tlsproxy.qdrant.rest_listings import Reducer
from tlsproxy.wire.content_coding import Content
from tlsproxy.wire.cooperative import Steps


@dataclass(frozen=True, slots=True)
class ComposedReducer:
    """Applies reducers in their order: each gets the response that the one before has made."""

    each: tuple[Reducer, ...]

    @property
    def hides_errors(self) -> bool:
        return any(one.hides_errors for one in self.each)

    def reducing(self, body: Content) -> Steps[bytes]:
        """Raises ValueError where one of them does."""
        for one in self.each:
            body = yield from one.reducing(body)
        return bytes(body)


def composed(*each: Reducer | None) -> Reducer | None:
    """All of these as one; None where there are none."""
    reducers = tuple(one for one in each if one is not None)
    return ComposedReducer(reducers) if len(reducers) > 1 else next(iter(reducers), None)
