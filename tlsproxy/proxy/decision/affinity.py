"""Route affinity: a value for `x-qdrant-route-affinity` by which a caller's reads stay with one replica of each shard.

Qdrant takes the header since 1.19, over gRPC as metadata: replicas are tried in the order of a hash of its value. A
client's own value stays, an empty one too, with which Qdrant chooses as without one. The gateway's is a keyed hash of
the caller, so it tells nobody who that is.
"""

from __future__ import annotations

import re
from hashlib import blake2b
from typing import Final

from tlsproxy.authz.admission import Admission
from tlsproxy.wire.grpc import CallHead
from tlsproxy.wire.http1 import RequestHead

HEADER: Final = b"x-qdrant-route-affinity"
SINCE: Final = (1, 19)
"""The first release of Qdrant that reads it."""

KEY_SIZE: Final = 32
"""Bytes of a key."""
_SIZE: Final = 12
"""Bytes of a value, which is sent in hexadecimal."""
_ASKED_WITH: Final = re.compile(rb"[\x20-\x7e]{1,256}")
"""Values of clients that go with the gateway's own questions too."""


def own_affinity(head: RequestHead | CallHead, key: bytes | None, admission: Admission | None) -> bytes:
    """The caller's, to be sent; empty without a ``key`` or a caller, and where the client has sent its own.

    It is that of the token's subject, else of the certificate, else of the key or of the token's issuer: a user who
    asks through several services reads from one replica.
    """
    if key is None or admission is None or head.value(HEADER) is not None:
        return b""
    identity, credential = admission.principal.identity, admission.credential
    if credential is not None and (credential.subject or identity is None):
        caller: tuple[str, ...] = credential.kind, credential.name, credential.subject
    elif identity is not None:
        caller = identity.account
    else:
        return b""
    return blake2b(repr(caller).encode(), key=key, digest_size=_SIZE).hexdigest().encode()


def clients_affinity(head: RequestHead | CallHead) -> bytes:
    """The client's first value, as Qdrant reads it; empty for none, and for one that is not asked with."""
    for name, value in head.fields:
        if name == HEADER:
            return value if _ASKED_WITH.fullmatch(value) else b""
    return b""
