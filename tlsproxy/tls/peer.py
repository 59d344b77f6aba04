"""The client of a finished handshake, as plain values that outlive the SSLContext.

The chain is the one that OpenSSL verified. Where that is unknown the chain is empty, and no generation admits it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Final, cast

from tlsproxy.authz.identity import Identity, identity_of
from tlsproxy.tls.chains import Chain, chain_of, kept_of

if TYPE_CHECKING:
    import ssl

CACHED: Final = 256
"""Clients in the cache, with the certificates that they sent."""
_DER: Final = 2
"""OpenSSL's SSL_FILETYPE_ASN1, for `public_bytes` of the ssl module's private certificates."""


@dataclass(frozen=True, slots=True)
class Peer:
    """``identity`` is the leaf's; a generation adds the trust anchor."""

    identity: Identity
    chain: Chain


def peer_of(ssl_object: ssl.SSLObject) -> Peer | None:
    """The client's identity and chain; None without a certificate. For one call after the handshake."""
    leaf = ssl_object.getpeercert(binary_form=True)
    if not leaf:
        return None
    return _peer(leaf, _chain(ssl_object, "verified"), kept_of(_chain(ssl_object, "unverified")))


def tried_peer(server_side: ssl.SSLObject) -> Peer | None:
    """The same of a trial (:func:`tlsproxy.tls.client_trial.present`), whose handshake does not end."""
    verified = _chain(server_side, "verified")
    return client_of(verified, _chain(server_side, "unverified")) if verified else None


def client_of(verified: tuple[bytes, ...], sent: tuple[bytes, ...]) -> Peer:
    """The client of a path that OpenSSL verified, and of the certificates as sent; both DER, leaf first."""
    return _peer(verified[0], verified, kept_of(sent))


def presented_by(ssl_object: ssl.SSLObject) -> Identity | None:
    """The certificate that a failed handshake presented, which proves nothing; None if none came, or none was read.

    OpenSSL keeps it as the beginning of the path that it could not complete.
    """
    path = _chain(ssl_object, "verified")
    return identity_of(path[0]) if path else None


@lru_cache(maxsize=CACHED)
def _peer(leaf: bytes, verified: tuple[bytes, ...], sent: tuple[bytes, ...]) -> Peer:
    """The same object for all connections of a client: parsing takes a tenth of a handshake."""
    return Peer(identity_of(leaf), chain_of(verified, sent))


def _chain(ssl_object: ssl.SSLObject, kind: str) -> tuple[bytes, ...]:
    """DER, leaf first; empty if OpenSSL has none. Public since Python 3.13, private since 3.10."""
    public = getattr(ssl_object, f"get_{kind}_chain", None)
    if public is not None:
        return tuple(cast("list[bytes]", public()))
    chain = getattr(ssl_object._sslobj, f"get_{kind}_chain")()  # type: ignore[attr-defined] # noqa: SLF001 - no public way before 3.13
    return tuple(certificate.public_bytes(_DER) for certificate in chain or ())
