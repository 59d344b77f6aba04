"""Comparison of a renewed server certificate with the one in force: valid changes that break clients.

An invalid certificate is refused by :mod:`tlsproxy.tls.owncert`. Each suspicion is one line: its name, the
difference and a remedy, such as "names_gone: it is not for b.example any more; …". `tls.on_suspicious` makes it a
warning or a refusal.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from tlsproxy.text import utc_time
from tlsproxy.tls.certinfo import facts_of, issuer_key
from tlsproxy.tls.owncert import issued_by, self_signed

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tlsproxy.tls.certinfo import CertificateFacts

_WHOLE: Final = "put the whole chain there (of certbot fullchain.pem, not cert.pem)"


def suspicions(former: Sequence[x509.Certificate], chain: Sequence[x509.Certificate]) -> tuple[str, ...]:
    """Suspicions about ``chain``; both chains as sent to clients, leaf first. Without ``former`` nothing is compared.

    Not suspicious: another intermediate of the same root, and a change between RSA and ECDSA.
    """
    return (*_alone(chain[0]), *(_compared(former, chain) if former else ()))


def _alone(leaf: x509.Certificate) -> Iterator[str]:
    if isinstance(leaf.public_key(), ed25519.Ed25519PublicKey):
        yield "ed25519_key: BoringSSL clients (grpcio, Chrome, Android) take no Ed25519 key; use ECDSA P-256"


def _compared(former: Sequence[x509.Certificate], chain: Sequence[x509.Certificate]) -> Iterator[str]:
    yield from _path(former, chain)
    before, after = facts_of(former[0]), facts_of(chain[0])
    gone = [name for name in before.dns_names if not _covered(name.lower(), after)]
    gone += [ip for ip in before.ips if ip not in after.ips]
    if gone:
        yield f"names_gone: it is not for {', '.join(gone)} any more; clients that connect by such a name refuse it"
    if after.not_before < before.not_before:
        yield (
            f"older_certificate: it is older than the certificate that it replaces ({utc_time(before.not_before)}); "
            "put the latest one there"
        )
    was, now = _strength(former[0]), _strength(chain[0])
    if was[0] == now[0] and now[1] < was[1]:
        yield f"shorter_key: its {now[0]} key has {now[1]} bits in place of {was[1]}; issue it anew as before"


def _path(former: Sequence[x509.Certificate], chain: Sequence[x509.Certificate]) -> Iterator[str]:
    """Whether clients that verified the former chain can verify this one, with the roots that they have."""
    last, above = chain[-1], former[1:]
    issuer = None if self_signed(last) else next((one for one in above if issued_by(last, one)), None)
    if issuer is not None and not self_signed(issuer):
        yield f"missing_intermediate: it comes without {_name(issuer)}, which was sent before; {_WHOLE}"
    elif len(chain) == 1 and not self_signed(last) and any(not self_signed(one) for one in above):
        yield f"missing_intermediate: it comes alone, where {_name(above[0])} was sent before; {_WHOLE}"
    elif issuer is None and not _same(_root(former[-1]), _root(last)):
        yield (
            f"other_authority: it is of the CA {_issuer(last)}, its predecessor of {_issuer(former[-1])}; "
            "clients that trust the latter alone refuse it, so give them the new CA first"
        )


def _root(certificate: x509.Certificate) -> tuple[str, bytes | None]:
    """Name and key identifier of the CA that a client must know for a chain that ends with this certificate."""
    try:
        known = certificate.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value.key_identifier
    except x509.ExtensionNotFound:
        known = None
    if self_signed(certificate):
        known = _own_identifier(certificate)
    return issuer_key(certificate.issuer), known


def _own_identifier(certificate: x509.Certificate) -> bytes:
    try:
        return certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest
    except x509.ExtensionNotFound:
        return x509.SubjectKeyIdentifier.from_public_key(certificate.public_key()).digest


def _same(former: tuple[str, bytes | None], root: tuple[str, bytes | None]) -> bool:
    return former[0] == root[0] and (former[1] == root[1] or None in (former[1], root[1]))


def _covered(name: str, by: CertificateFacts) -> bool:
    """Whether a certificate is valid for a name.

    A wildcard is the whole leftmost label, for one (RFC 9525 section 6.3).
    """
    label, _, rest = name.partition(".")
    names = {one.lower() for one in by.dns_names}
    return name in names or (label != "*" and bool(rest) and f"*.{rest}" in names)


def _strength(certificate: x509.Certificate) -> tuple[str, int]:
    match certificate.public_key():
        case rsa.RSAPublicKey() as key:
            return "RSA", key.key_size
        case ec.EllipticCurvePublicKey() as key:
            return "ECDSA", key.curve.key_size
    return "Ed25519", 256


def _name(certificate: x509.Certificate) -> str:
    return certificate.subject.rfc4514_string()


def _issuer(certificate: x509.Certificate) -> str:
    return certificate.issuer.rfc4514_string()
