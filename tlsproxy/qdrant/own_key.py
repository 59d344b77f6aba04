"""Qdrant's refusals of the gateway's own key, told from all other refusals by their exact texts.

Qdrant sees no other credential than the gateway's own, so each of these is about that one: from its authentication
layer (src/common/auth/mod.rs) or its access checks (lib/storage/src/rbac). A 403 or PERMISSION_DENIED with another text
is about something else, such as a locked collection.
"""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import unquote

import orjson

from tlsproxy.wire.field_block import Fields

DENIED: Final = frozenset((401, 403))
"""REST statuses that such a refusal has."""
DENIED_CALLS: Final = frozenset((7, 16))
"""gRPC's: PERMISSION_DENIED, UNAUTHENTICATED."""
DENIED_STATUSES: Final = frozenset(b"%d" % status for status in DENIED_CALLS)
"""The same as trailers have them."""
LONGEST: Final = 1024
"""Bytes of such a refusal's body."""

_TEXT: Final = re.compile(
    r"Must provide an API key or an Authorization bearer token"
    r"|Invalid API key or JWT"
    r"|InvalidSignature|ExpiredSignature"
    r"|Invalid JWT, stateful validation failed"
    r"|(?:Forbidden: )?(?:"
    r"Global (?:manage )?access is required"
    r"|(?:Write access to|Access to) collection .+ is required"
    r"|Only points access is allowed for collection .+"
    r"|Manage access for this operation is required)",
    re.DOTALL,
)


def is_refusal(text: str) -> bool:
    return _TEXT.fullmatch(text) is not None


def refuses_request(status: int, body: bytes) -> bool:
    """Whether a REST response is one. Qdrant sends the text bare, or as `{"status": {"error": …}}`."""
    if status not in DENIED or len(body) > LONGEST:
        return False
    text = body.strip().decode("utf-8", "replace")
    if text.startswith("{"):
        try:
            answer = orjson.loads(text)
        except ValueError:
            return False
        match answer:
            case {"status": {"error": str(error)}}:
                return is_refusal(error)
    return is_refusal(text)


def refuses_call(fields: Fields) -> bool:
    """Whether the trailers of a gRPC call are one."""
    named = dict(fields)
    if named.get(b"grpc-status") not in DENIED_STATUSES:
        return False
    return is_refusal(unquote(named.get(b"grpc-message", b"").decode("latin-1")))
