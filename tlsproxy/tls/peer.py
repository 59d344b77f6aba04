"""A finished handshake → the client that it proved, as plain values that outlive the connection's context.

Nothing here verifies: the chain is the one that OpenSSL verified. A connection whose verified chain is not known is
given a chain that holds no CA, which no generation accepts.
"""

from __future__ import annotations

import hashlib
import ssl
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Final, cast
from weakref import WeakKeyDictionary

from cryptography import x509

from tlsproxy.authz.identity import Anchor, Identity, anchor_of, identity_of
from tlsproxy.tls.facts import issuer_key

if TYPE_CHECKING:
    from collections.abc import MutableMapping

    from tlsproxy.tls.trust import Issuer

REMEMBERED: Final = 4096


@dataclass(frozen=True, slots=True)
class Peer:
    """``chain`` has the SHA-256 (hex) of each certificate of the verified chain, leaf first, trust anchor last.

    ``serials`` has (issuer, serial number) of each of them; the anchor's as if it were its own issuer.
    ``issuers`` are those above the leaf. ``identity`` is what the leaf says: a generation adds its trust anchor.
    """

    identity: Identity
    chain: tuple[str, ...]
    serials: tuple[tuple[Issuer, int], ...]
    issuers: tuple[Anchor, ...] = ()


_DER: Final = 2
"""OpenSSL's SSL_FILETYPE_ASN1, as the argument of a method that is not public either."""
_remembered: MutableMapping[ssl.SSLContext, dict[bytes, tuple[list[bytes], Peer]]] = WeakKeyDictionary()
"""For each context the peers that it verified, by leaf (DER), with the rest of their chain.

A session that TLS 1.2 resumes by its id has the client's certificate but no verified chain (OpenSSL does not keep it),
and can only resume what the same context has verified."""


def peer_of(ssl_object: ssl.SSLObject) -> Peer | None:
    """Who is at the other end, or None where no certificate was sent. Call it after the handshake, once."""
    leaf = ssl_object.getpeercert(binary_form=True)
    if not leaf:
        return None
    known = _remembered.setdefault(ssl_object.context, {})
    seen = known.pop(leaf, None)
    verified = _verified_chain(ssl_object)
    if seen is None or (verified and verified[1:] != seen[0]):
        if not verified:
            return Peer(identity_of(leaf), (_sha256(leaf),), ())
        seen = verified[1:], _peer(verified)
    known[leaf] = seen
    if len(known) > REMEMBERED:
        del known[next(iter(known))]  # the one that was seen longest ago
    return seen[1]


def _sha256(der: bytes) -> str:
    return hashlib.sha256(der).hexdigest()


def _peer(verified: list[bytes]) -> Peer:
    identity, chain = identity_of(verified[0]), tuple(map(_sha256, verified))
    named, issuers = tuple(map(_issued, verified)), tuple(map(_issuer, verified[1:]))
    if None in named or None in issuers:
        # OpenSSL reads a certificate that cryptography does not: what cannot be looked up in a CRL has no role.
        identity, issuers = replace(identity, defect=identity.defect or "unparsable issuer"), ()
    above = (*issuers, issuers[-1] if issuers else None)
    serials = tuple(
        ((pair[0], issuer.key), pair[1])
        for pair, issuer in zip(named, above, strict=False)
        if pair is not None and issuer is not None
    )
    return Peer(identity, chain, serials, tuple(issuer for issuer in issuers if issuer is not None))


@lru_cache(maxsize=256)
def _issued(der: bytes) -> tuple[str, int] | None:
    try:
        certificate = x509.load_der_x509_certificate(der)
        return issuer_key(certificate.issuer), certificate.serial_number
    except Exception:  # noqa: BLE001 - as identity_of: whatever a parser raises, the answer is: no role
        return None


@lru_cache(maxsize=256)
def _issuer(der: bytes) -> Anchor | None:
    try:
        return anchor_of(x509.load_der_x509_certificate(der))
    except Exception:  # noqa: BLE001 - as identity_of: whatever a parser raises, the answer is: no role
        return None


def _verified_chain(ssl_object: ssl.SSLObject) -> list[bytes]:
    """DER, leaf first; empty where OpenSSL has none. Public since Python 3.13, there all along since 3.10."""
    public = getattr(ssl_object, "get_verified_chain", None)
    if public is not None:
        return cast("list[bytes]", public())
    chain = ssl_object._sslobj.get_verified_chain()  # type: ignore[attr-defined] # noqa: SLF001 - no public way before 3.13
    return [certificate.public_bytes(_DER) for certificate in chain or ()]
