"""A call's fields, parted: what calls repeat, and what each has of its own, which is its deadline and its tracing.

What repeats is looked up among what was seen before; nothing is decided by the rest. Here that is one pass over the
fields that clients send; where anything about the rest is unusual, it is the two functions that each know their part.
"""

from __future__ import annotations

from typing import Final, TypeAlias

from tlsproxy.wire.fieldblock import Fields
from tlsproxy.wire.grpc import TIMEOUT, VALUE, deadline_apart, deadline_block, is_timeout
from tlsproxy.wire.hpack import Field
from tlsproxy.wire.tracing import MAX_LINES, NONE, TRACING, Tracing, of_fields, tracing_of

Parted: TypeAlias = tuple[Fields, Tracing, bytes]
"""What calls repeat; the tracing; the deadline, as a part of the block that goes upstream."""

_OWN: Final = frozenset((TIMEOUT, *TRACING))


def parted(fields: Fields) -> Parted:
    repeated: list[Field] = []
    traced: list[Field] = []
    timeout, first = b"", -1
    for field in fields:
        name = field[0]
        if name not in _OWN:
            repeated.append(field)
            continue
        if first < 0:
            first = len(repeated)
        if name != TIMEOUT:
            traced.append(field)
        elif timeout or not is_timeout(field[1]):
            return _parted(fields)
        else:
            timeout = field[1]
    if first < 0:
        return fields, NONE, b""
    pseudo = [name for name, _ in repeated[first:] if name[:1] == b":"]
    malformed = [value for _, value in traced if VALUE.fullmatch(value) is None]
    if pseudo or malformed or len(traced) > MAX_LINES:
        return _parted(fields)
    return tuple(repeated), tracing_of(traced) if traced else NONE, deadline_block(timeout) if timeout else b""


def _parted(fields: Fields) -> Parted:
    rest, tracing = of_fields(fields)
    rest, deadline = deadline_apart(rest)
    return rest, tracing, deadline
