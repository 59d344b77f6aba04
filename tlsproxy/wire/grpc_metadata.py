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

_OWN: Final = frozenset((TIMEOUT, *TRACING))
_MOST_PSEUDO: Final = 4
"""Pseudo-headers of a call. Behind the first four of all its fields its own follow them, as RFC 9113 §8.3 wants it."""


def split_fields(fields: Fields) -> CallFields:
    left, timeout = fields, b""
    number: bytes | None = None
    for at, (name, value) in enumerate(fields):
        if name not in _OWN:
            continue
        if name == TIMEOUT and not timeout and is_timeout(value):
            timeout = value
        elif name == REQUEST_ID and number is None and value.replace(b"-", b"").isalnum():  # as nearly all are
            number = value
        else:
            return _split_unusual(fields)
        if at < _MOST_PSEUDO:
            return _split_unusual(fields)
        place = at - len(fields) + len(left)
        left = left[:place] + left[place + 1 :]
    deadline = deadline_block(timeout) if timeout else b""
    return left, NO_TRACING if number is None else Tracing(number.decode()), deadline


def _split_unusual(fields: Fields) -> CallFields:
    rest, tracing = tracing_from_fields(fields)
    rest, deadline = deadline_apart(rest)
    return rest, tracing, deadline
