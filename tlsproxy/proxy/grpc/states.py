"""States of a gRPC connection and of a call's stream, as tables: a missing row is no move."""

from __future__ import annotations

from enum import Enum
from typing import Final


class ConnectionState(Enum):
    OPEN = "calls are taken"
    DRAINING = "the client is asked to make no more calls; those that it makes meanwhile are taken"
    LOST = "there is no upstream: the next call is refused, and then no more are taken"
    LEAVING = "no more calls are taken; calls that go on are waited for"
    ENDED = "nothing is read any more"


class ConnectionEvent(Enum):
    DRAIN = "the gateway ends, or wants the connection elsewhere"
    LOSE = "its only upstream connection is lost"
    LEAVE = "the client has heard that no more calls are wanted, or its upstream wants no more, or it lost its right"
    END = "nothing is left to do, or the client broke the protocol, or is gone"


# Under names of the module: asking a class for its member costs ten times as much.
OPEN: Final = ConnectionState.OPEN
DRAINING: Final = ConnectionState.DRAINING
LOST: Final = ConnectionState.LOST
LEAVING: Final = ConnectionState.LEAVING
ENDED: Final = ConnectionState.ENDED
DRAIN: Final = ConnectionEvent.DRAIN
LOSE: Final = ConnectionEvent.LOSE
LEAVE: Final = ConnectionEvent.LEAVE
END: Final = ConnectionEvent.END

CONNECTION_MOVES: Final[dict[tuple[ConnectionState, ConnectionEvent], ConnectionState]] = {
    (OPEN, DRAIN): DRAINING,
    (OPEN, LOSE): LOST,
    (OPEN, LEAVE): LEAVING,
    (OPEN, END): ENDED,
    (DRAINING, LOSE): LOST,
    (DRAINING, LEAVE): LEAVING,
    (DRAINING, END): ENDED,
    (LOST, LEAVE): LEAVING,
    (LOST, END): ENDED,
    (LEAVING, END): ENDED,
}


class StreamState:
    """State of a call's stream (RFC 9113 §5.1): the ends that have ended it. ``client_ends`` and ``upstream_ends`` are
    the states after those events.

    Every frame of a call asks for it, so that a move is an attribute, not a look-up.
    """

    __slots__ = ("client_done", "client_ends", "name", "upstream_done", "upstream_ends")

    client_ends: StreamState
    upstream_ends: StreamState

    def __init__(self, name: str, *, client_done: bool, upstream_done: bool) -> None:
        self.name = name
        self.client_done = client_done
        self.upstream_done = upstream_done

    def __repr__(self) -> str:
        return f"<StreamState {self.name}>"


STREAM_OPEN: Final = StreamState("open", client_done=False, upstream_done=False)
REQUEST_WHOLE: Final = StreamState("request whole", client_done=True, upstream_done=False)
RESPONSE_WHOLE: Final = StreamState("response whole", client_done=False, upstream_done=True)
STREAM_CLOSED: Final = StreamState("closed", client_done=True, upstream_done=True)

STREAM_MOVES: Final = {
    STREAM_OPEN: (REQUEST_WHOLE, RESPONSE_WHOLE),
    REQUEST_WHOLE: (REQUEST_WHOLE, STREAM_CLOSED),
    RESPONSE_WHOLE: (STREAM_CLOSED, RESPONSE_WHOLE),
    STREAM_CLOSED: (STREAM_CLOSED, STREAM_CLOSED),
}
"""State → the states after the client's end and after the upstream's."""

for _state, _after in STREAM_MOVES.items():
    _state.client_ends, _state.upstream_ends = _after
