"""A call's fields, parted: what calls repeat, and what each has of its own, which is its deadline and its tracing.

What repeats is looked up among what was seen before; nothing is decided by the rest. The two functions that each know
their part take a list apart field by field. For what most clients send, a deadline and perhaps an id, that is done here
in a fifth of the steps; whatever is unusual, and every list that is no call's, is left to them.
"""

from __future__ import annotations

from typing import Final, TypeAlias

from tlsproxy.wire.fieldblock import Fields
from tlsproxy.wire.grpc import TIMEOUT, VALUE, deadline_apart, deadline_block, is_timeout
from tlsproxy.wire.tracing import NONE, REQUEST_ID, TRACING, Tracing, of_fields

Parted: TypeAlias = tuple[Fields, Tracing, bytes]
"""What calls repeat; the tracing; the deadline, as a part of the block that goes upstream."""

_SELDOM: Final = frozenset(TRACING) - {REQUEST_ID}
_MOST_PSEUDO: Final = 4
"""Pseudo-headers of a call: where more fields than these come before its own, those come after all of them."""


def parted(fields: Fields) -> Parted:
    named = dict(fields)
    timeout, number = named.pop(TIMEOUT, None), named.pop(REQUEST_ID, None)
    left = tuple(named.items())
    own = (timeout is not None) + (number is not None)
    if (
        len(left) + own != len(fields)  # a name that is there twice
        or left[:_MOST_PSEUDO] != fields[:_MOST_PSEUDO]
        or not _SELDOM.isdisjoint(named)
        or (timeout is not None and not is_timeout(timeout))
        or (number is not None and VALUE.fullmatch(number) is None)
    ):
        return _parted(fields)
    if not own:
        return fields, NONE, b""
    tracing = NONE if number is None else Tracing(number.decode("latin-1"))
    return left, tracing, b"" if timeout is None else deadline_block(timeout)


def _parted(fields: Fields) -> Parted:
    rest, tracing = of_fields(fields)
    rest, deadline = deadline_apart(rest)
    return rest, tracing, deadline
