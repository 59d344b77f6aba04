"""Splits a call's fields into those that repeat from call to call and its own: the deadline and the tracing fields.

The repeated part is the key of the memo of plans; decisions never depend on the rest. Most clients send a deadline and
at most a request ID: that case is split here in a fifth of the steps. Any other list goes through
`tracing_from_fields` and `deadline_apart`, field by field.
"""

from __future__ import annotations

from typing import Final, TypeAlias

from tlsproxy.wire.field_block import Fields
from tlsproxy.wire.grpc import TIMEOUT, deadline_apart, deadline_block, is_timeout
from tlsproxy.wire.tracing import NO_TRACING, REQUEST_ID, TRACING, Tracing, tracing_from_fields

CallFields: TypeAlias = tuple[Fields, Tracing, bytes]
"""(the fields that repeat, the tracing, the deadline as a part of the field block for the upstream)"""

_SELDOM: Final = frozenset(TRACING) - {REQUEST_ID}
_VISIBLE: Final = bytes(range(0x21, 0x7F))
"""Characters of an ID that is taken without further checks: each is valid anywhere in a field value."""
_MOST_PSEUDO: Final = 4
"""Pseudo-headers of a call. If the first four fields that repeat are the first four of all, its own fields follow them,
as RFC 9113 §8.3 wants it.
"""


def split_fields(fields: Fields) -> CallFields:
    named = dict(fields)
    timeout, number = named.get(TIMEOUT), named.get(REQUEST_ID)
    if timeout is not None:
        del named[TIMEOUT]
    if number is not None:
        del named[REQUEST_ID]
    left = tuple(named.items())
    deadline, tracing, own = b"", NO_TRACING, 0
    if timeout is not None:
        if not is_timeout(timeout):
            return _split_unusual(fields)
        deadline, own = deadline_block(timeout), 1
    if number is not None:
        if number.translate(None, _VISIBLE):
            return _split_unusual(fields)
        tracing = Tracing(number.decode())
        own += 1
    if (
        len(left) + own != len(fields)  # a name that is there twice
        or left[:_MOST_PSEUDO] != fields[:_MOST_PSEUDO]
        or not named.keys().isdisjoint(_SELDOM)
    ):
        return _split_unusual(fields)
    return left if own else fields, tracing, deadline


def _split_unusual(fields: Fields) -> CallFields:
    rest, tracing = tracing_from_fields(fields)
    rest, deadline = deadline_apart(rest)
    return rest, tracing, deadline
