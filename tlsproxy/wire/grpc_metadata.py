"""A call's fields, parted: what calls repeat, and what each has of its own, which is its deadline and its tracing.

What repeats is looked up among what was seen before; nothing is decided by the rest. The two functions that each know
their part take a list apart field by field. For what most clients send, a deadline and perhaps an id, that is done here
in a fifth of the steps; whatever is unusual, and every list that is no call's, is left to them.
"""

from __future__ import annotations

from typing import Final, TypeAlias

from tlsproxy.wire.field_block import Fields
from tlsproxy.wire.grpc import TIMEOUT, deadline_apart, deadline_block, is_timeout
from tlsproxy.wire.tracing import NONE, REQUEST_ID, TRACING, Tracing, of_fields

Parted: TypeAlias = tuple[Fields, Tracing, bytes]
"""What calls repeat; the tracing; the deadline, as a part of the block that goes upstream."""

_SELDOM: Final = frozenset(TRACING) - {REQUEST_ID}
_VISIBLE: Final = bytes(range(0x21, 0x7F))
"""What ids are made of: nothing that a field's value might not hold, wherever in it."""
_MOST_PSEUDO: Final = 4
"""Pseudo-headers of a call: where more fields than these come before its own, those come after all of them."""


def parted(fields: Fields) -> Parted:
    named = dict(fields)
    timeout, number = named.pop(TIMEOUT, None), named.pop(REQUEST_ID, None)
    left = tuple(named.items())
    deadline, tracing, own = b"", NONE, 0
    if timeout is not None:
        if not is_timeout(timeout):
            return _parted(fields)
        deadline, own = deadline_block(timeout), 1
    if number is not None:
        if number.translate(None, _VISIBLE):
            return _parted(fields)
        tracing = Tracing(number.decode())
        own += 1
    if (
        len(left) + own != len(fields)  # a name that is there twice
        or left[:_MOST_PSEUDO] != fields[:_MOST_PSEUDO]
        or not named.keys().isdisjoint(_SELDOM)
    ):
        return _parted(fields)
    return left if own else fields, tracing, deadline


def _parted(fields: Fields) -> Parted:
    rest, tracing = of_fields(fields)
    rest, deadline = deadline_apart(rest)
    return rest, tracing, deadline
