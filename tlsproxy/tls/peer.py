"""A finished handshake → the client that it proved, as plain values that outlive the connection's context.

Nothing here verifies: the chain is the one that OpenSSL verified. A connection whose verified chain is not known has
an empty one, which no generation accepts.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Final, cast

from tlsproxy.authz.identity import Identity, identity_of
from tlsproxy.tls.chains import Chain, chain_of, looked_at

if TYPE_CHECKING:
    import ssl

REMEMBERED: Final = 256
"""Clients, with all that they sent."""
_DER: Final = 2
"""OpenSSL's SSL_FILETYPE_ASN1, as the argument of a method that is not public either."""


@dataclass(frozen=True, slots=True)
class Peer:
    """``identity`` is what the leaf says: a generation adds its trust anchor."""

    identity: Identity
    chain: Chain


def peer_of(ssl_object: ssl.SSLObject) -> Peer | None:
    """Who is at the other end, or None where no certificate was sent. Call it after the handshake, once."""
    leaf = ssl_object.getpeercert(binary_form=True)
    if not leaf:
        return None
    return _peer(leaf, _chain(ssl_object, "verified"), looked_at(_chain(ssl_object, "unverified")))


@lru_cache(maxsize=REMEMBERED)
def _peer(leaf: bytes, verified: tuple[bytes, ...], sent: tuple[bytes, ...]) -> Peer:
    """Connections of one client share what it is, which costs a tenth of a handshake to read."""
    return Peer(identity_of(leaf), chain_of(verified, sent))


def _chain(ssl_object: ssl.SSLObject, which: str) -> tuple[bytes, ...]:
    """DER, leaf first; empty where OpenSSL has none. Public since Python 3.13, there all along since 3.10."""
    public = getattr(ssl_object, f"get_{which}_chain", None)
    if public is not None:
        return tuple(cast("list[bytes]", public()))
    chain = getattr(ssl_object._sslobj, f"get_{which}_chain")()  # type: ignore[attr-defined] # noqa: SLF001 - no public way before 3.13
    return tuple(certificate.public_bytes(_DER) for certificate in chain or ())
