"""States of a REST connection, and their successors:

    IDLE      no request, or the beginning of a head                       → BUSY, SKIPPING, ENDED
    BUSY      an exchange goes on                                          → IDLE, SKIPPING, ENDED
    SKIPPING  answered by the gateway; the small rest of a body is dropped → IDLE, ENDED
    ENDED     received data is ignored

After a request over its limit the next one is delayed by :data:`PAUSE`: a client that waits as long as `retry-after`
says does not notice, and one that does not cannot keep the gateway busy.

A connection whose next request cannot be found (a body of unknown length was refused, a response began before the
request was whole) is closed after its answer, so that no byte of a body is ever read as a request.
"""

from __future__ import annotations

from enum import Enum


class State(Enum):
    IDLE = 0
    BUSY = 1
    SKIPPING = 2
    ENDED = 3


IDLE, BUSY, SKIPPING, ENDED = State  # as globals: looking up an enum's member costs ten times as much
