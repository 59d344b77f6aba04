"""Route affinity: a value for `x-qdrant-route-affinity` by which a caller's reads stay with one replica of each shard.

Qdrant takes the header since 1.19, over gRPC as metadata: replicas are tried in the order of a hash of its value. A
client's own value stays, an empty one too, with which Qdrant chooses as without one. The gateway's is a keyed hash of
the caller, so it tells nobody who that is.
"""

from __future__ import annotations

import hmac
import json
import re
from dataclasses import replace
from typing import Final, TypeVar

from tlsproxy.authz.admission import Admission
from tlsproxy.wire.grpc import CallHead
from tlsproxy.wire.http1 import RequestHead

HEADER: Final = b"x-qdrant-route-affinity"
SINCE: Final = (1, 19)
"""The first release of Qdrant that reads it."""

KEY_SIZE: Final = 32
"""Bytes of a key."""
_DIGITS: Final = 24
"""Hexadecimal digits of a value: 96 bits."""

_VALUE: Final = re.compile(rb"[\x20-\x7e]{1,256}")
"""Values that go with the gateway's own questions too."""

Head = TypeVar("Head", RequestHead, CallHead)


def with_affinity(head: Head, key: bytes | None, admission: Admission | None) -> Head:
    """The head with the caller's affinity; the same one without a ``key``, a caller, or where the client has its own.

    It is that of the token's subject, else of the certificate, else of the key or of the token's issuer: a user who
    asks through several services reads from one replica.
    """
    if key is None or admission is None or head.value(HEADER) is not None:
        return head
    caller = _caller(admission)
    if caller is None:
        return head
    digest = hmac.digest(key, json.dumps(caller).encode(), "sha256").hex()
    return replace(head, fields=(*head.fields, (HEADER, digest[:_DIGITS].encode())))


def affinity_in(head: RequestHead | CallHead) -> bytes:
    """The first value, as Qdrant reads it, for questions that a request brings; empty for none or a strange one."""
    value = next((value for name, value in head.fields if name == HEADER), b"")
    return value if _VALUE.fullmatch(value) else b""


def _caller(admission: Admission) -> tuple[str, ...] | None:
    identity, credential = admission.principal.identity, admission.credential
    if credential is not None and (credential.subject or identity is None):
        return credential.kind, credential.name, credential.subject
    return None if identity is None else identity.account
