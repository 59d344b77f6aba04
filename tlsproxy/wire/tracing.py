"""Tracing fields of a client's request: request IDs, and W3C Trace Context (level 2).

They differ from request to request where all other fields repeat, so they are cut out of a head before it is looked up
in a memo. Well-formed `traceparent` and `tracestate` are forwarded unchanged, malformed ones are removed. The client's
`x-request-id` is logged only: upstream, that field carries the gateway's own ID, which no client can choose.
"""

from __future__ import annotations

import re
from typing import Final

from tlsproxy.wire.field_block import Fields, literals
from tlsproxy.wire.grpc import VALUE

REQUEST_ID: Final = b"x-request-id"
TRACING: Final = (REQUEST_ID, b"x-tracing-id", b"traceparent", b"tracestate")
"""Qdrant takes its `tracing_id` from the first three, in this order (audit.rs)."""

MAX_LINES: Final = 40
"""Most tracing fields that are cut out of a head, beside those that `limits.max_headers` counts: there may be several
`tracestate`. With more of them, all are left in the head, and are not forwarded.
"""
MAX_MEMBERS: Final = 32
"""List members of a `tracestate` (§3.3.1.1)."""

ID_LENGTH: Final = 32
"""Characters of a request ID."""
_ID_BLOCK: Final = literals(((REQUEST_ID, bytes(ID_LENGTH)),))[:-ID_LENGTH]

# A whole field line as the parser accepts it: cutting it out leaves the other lines unchanged. Most lines begin with a
# letter that no name begins with, and are compared with none. A value has no case: with one, each character is looked
# up alone.
_LINE: Final = re.compile(
    rb"\r\n(?=[xXtT])(?i:(x-request-id|x-tracing-id|traceparent|tracestate)):([\t\x20-\x7e\x80-\xff]*)(?=\r\n)"
)
# §3.2.2. A later version may have further parts; ff is invalid.
_FORMAT: Final = rb"-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}"
_PARENT: Final = re.compile(rb"00" + _FORMAT + rb"|(?!00|ff)[0-9a-f]{2}" + _FORMAT + rb"(?:-[\x21-\x7e]{1,256})?")
# §3.3.1.3: key "=" value; no comma and no second "=" in a value, and no space at its end.
_MEMBER: Final = re.compile(
    rb"([a-z0-9][a-z0-9_\-*/@]{0,255})=[\x20-\x2b\x2d-\x3c\x3e-\x7e]{0,255}[\x21-\x2b\x2d-\x3c\x3e-\x7e]"
)


class Tracing:
    """``tracing_id``: the text that Qdrant would log as the request's `tracing_id`, whatever it is; empty for none.

    ``trace_id``: 32 hex digits of a well-formed `traceparent`, or empty. ``fields``: those that are forwarded.

    Most requests have one of their own. It is no dataclass: compiled, an instance of those takes 3,900 instructions.
    """

    __slots__ = ("fields", "trace_id", "tracing_id")

    def __init__(self, tracing_id: str = "", trace_id: str = "", fields: Fields = ()) -> None:
        self.tracing_id = tracing_id
        self.trace_id = trace_id
        self.fields = fields


NO_TRACING: Final = Tracing()


def id_line(number: str) -> bytes:
    """The gateway's request ID as a field line of an HTTP/1 head."""
    return b"x-request-id: " + number.encode() + b"\r\n"


def id_field(number: str) -> tuple[bytes, bytes]:
    """The gateway's request ID as a field of a gRPC call."""
    return REQUEST_ID, number.encode()


def upstream_lines(tracing: Tracing) -> bytes:
    """The client's tracing fields as field lines for the upstream."""
    return b"".join([b"%b: %b\r\n" % field for field in tracing.fields])


def id_block(number: str) -> bytes:
    """The gateway's request ID as a part of a field block."""
    return _ID_BLOCK + number.encode()


def upstream_block(tracing: Tracing) -> bytes:
    """The client's tracing fields as a part of the field block for the upstream."""
    return literals(tracing.fields) if tracing.fields else b""


def tracing_from_head(head: bytes) -> tuple[bytes, Tracing]:
    """(an HTTP/1 head without its tracing fields, their content)."""
    parts = _LINE.split(head)  # what is between, a name and a value in turn
    if not 1 < len(parts) <= 3 * MAX_LINES + 1:
        return head, NO_TRACING
    fields = [(parts[at].lower(), parts[at + 1].strip(b" \t")) for at in range(1, len(parts), 3)]
    return b"".join(parts[::3]), _parsed(fields)


def tracing_from_fields(fields: Fields) -> tuple[Fields, Tracing]:
    """(a call's fields without its tracing fields, their content).

    If some are malformed (RFC 9113 §8.2.1, §8.3), all are left to the parser.
    """
    for name, _ in fields:
        if name in TRACING:
            break
    else:
        return fields, NO_TRACING
    tracing = [field for field in fields if field[0] in TRACING]
    rest = tuple(field for field in fields if field[0] not in TRACING)
    first = fields.index(tracing[0])
    if len(tracing) > MAX_LINES or any(name[:1] == b":" for name, _ in rest[first:]):
        return fields, NO_TRACING
    if any(VALUE.fullmatch(value) is None for _, value in tracing):
        return fields, NO_TRACING
    return rest, _parsed(tracing)


def _parsed(fields: list[tuple[bytes, bytes]]) -> Tracing:
    first: dict[bytes, bytes] = {}
    states: list[bytes] = []
    parents = 0
    for name, value in fields:
        if name == b"tracestate":
            states.append(value)
            continue
        parents += name == b"traceparent"
        if name not in first:
            first[name] = value
    qdrants, parent = first.get(b"x-tracing-id"), first.get(b"traceparent")
    said = first.get(REQUEST_ID)
    if said is None:
        said = qdrants if qdrants is not None else parent or b""
    tracing_id = said.decode("latin-1")
    forwarded: Fields = () if qdrants is None else ((b"x-tracing-id", qdrants),)
    if parent is None or parents > 1 or _PARENT.fullmatch(parent) is None:
        return Tracing(tracing_id, "", forwarded)
    forwarded = (*forwarded, (b"traceparent", parent))
    state = b",".join(states)
    if state and _is_state(state):
        forwarded = (*forwarded, (b"tracestate", state))
    return Tracing(tracing_id, parent[3:35].decode("ascii"), forwarded)


def _is_state(state: bytes) -> bool:
    """Whether it is a valid `tracestate` (§3.3.1): members may be empty, and no key occurs twice."""
    members = [member for part in state.split(b",") if (member := part.strip(b" \t"))]
    matches = [_MEMBER.fullmatch(member) for member in members[: MAX_MEMBERS + 1]]
    keys = {match[1] for match in matches if match is not None}
    return 0 < len(members) <= MAX_MEMBERS and len(keys) == len(members)
