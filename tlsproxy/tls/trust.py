"""Who may vouch for clients, and who no longer does: the CA file and the CRLs.

Only what the operator put there is trusted, never the system's roots: an empty or broken file is an error, because
every milder reading of it has widened trust somewhere (Caddy #7464). A CRL counts when one of these CAs signed it, when
it is current, and when it is not older than the one in use.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, TypeVar

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.x509.oid import ExtensionOID

from tlsproxy.errors import MaterialError
from tlsproxy.tls import pem
from tlsproxy.tls.facts import CrlFacts, day, facts_of, issuer_key
from tlsproxy.tls.servercert import PARSE_ERRORS, SKEW, certificate_of, is_authority

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from tlsproxy.tls.facts import CertificateFacts

T = TypeVar("T", bound=x509.ExtensionType)

_UNDERSTOOD: Final = frozenset({ExtensionOID.ISSUING_DISTRIBUTION_POINT, ExtensionOID.CRL_NUMBER})
"""The CRL extensions that may be critical (RFC 5280 section 5.2: a CRL with an unknown one must not be used)."""


@dataclass(frozen=True, slots=True)
class Crl:
    facts: CrlFacts
    issuer: str
    pem: bytes = field(repr=False)
    serials: frozenset[int] = field(repr=False)


@dataclass(frozen=True, slots=True)
class Trust:
    """``authorities`` are those in force; a CA that a CRL revokes is not among them, but among the ``configured``.

    ``revoked`` maps an issuer's key (:func:`tlsproxy.tls.facts.issuer_key`) to the serial numbers that it revoked.
    """

    authorities: tuple[x509.Certificate, ...]
    crls: tuple[Crl, ...]
    revoked: Mapping[str, frozenset[int]] = field(repr=False)
    warnings: tuple[str, ...]
    configured: tuple[x509.Certificate, ...] = ()


def load_trust(
    authorities: tuple[str, bytes], crls: Sequence[tuple[str, bytes]], *, now: float, previous: Iterable[CrlFacts]
) -> Trust:
    """The CA file and the CRL files, each a path and its bytes; ``previous`` are the CRLs in use.

    Raises MaterialError.
    """
    path, data = authorities
    configured = load_authorities(path, data)
    newest: dict[str, Crl] = {}
    in_use = {facts.scope: facts for facts in previous}
    for crl_path, crl_data in crls:
        for block in pem.blocks_of(crl_path, crl_data):
            if block.label != pem.CRL:
                raise MaterialError(crl_path, f"holds a {block.label!r} block; only CRLs belong here")
            crl = _crl(crl_path, block.data, configured, now)
            held = newest.get(crl.facts.scope)
            if held is None or _age(held.facts) < _age(crl.facts):
                newest[crl.facts.scope] = crl
    for crl in newest.values():
        _check_not_older(crl.facts, in_use.get(crl.facts.scope), crls)
    revoked: dict[str, frozenset[int]] = {}
    for crl in newest.values():
        revoked[crl.issuer] = revoked.get(crl.issuer, frozenset()) | crl.serials
    facts = {certificate: facts_of(certificate) for certificate in configured}
    in_force = tuple(
        certificate
        for certificate in configured
        if certificate.serial_number not in revoked.get(issuer_key(certificate.issuer), frozenset())
    )
    if not in_force:
        raise MaterialError(path, "every CA in it is revoked by the configured CRLs")
    if all(facts[certificate].not_after <= now for certificate in in_force):
        raise MaterialError(path, "every CA in it has expired; add the CA that issues today's client certificates")
    warnings = _warnings(path, facts, in_force, newest.values(), now)
    return Trust(in_force, tuple(newest.values()), revoked, tuple(warnings), configured)


def load_authorities(path: str, data: bytes) -> tuple[x509.Certificate, ...]:
    """The CAs of a file, each once. Raises MaterialError."""
    found: dict[x509.Certificate, None] = {}
    for block in pem.blocks_of(path, data):
        if block.label != pem.CERTIFICATE:
            raise MaterialError(path, f"holds a {block.label!r} block; only CA certificates belong here")
        certificate = certificate_of(path, block.data)
        if not is_authority(certificate):
            name = certificate.subject.rfc4514_string()
            raise MaterialError(path, f"{name} is not a CA (its basic constraints do not say so); remove it")
        found[certificate] = None
    return tuple(found)


def _crl(path: str, block: bytes, authorities: tuple[x509.Certificate, ...], now: float) -> Crl:
    try:
        crl = x509.load_pem_x509_crl(block)
        extensions = crl.extensions
        serials = frozenset(entry.serial_number for entry in crl)
    except PARSE_ERRORS as error:
        raise MaterialError(path, f"holds a CRL that cannot be parsed: {error}") from None
    issuer = crl.issuer.rfc4514_string()
    signer = next(
        (each for each in authorities if issuer_key(each.subject) == issuer_key(crl.issuer) and _signed_by(crl, each)),
        None,
    )
    if signer is None:
        raise MaterialError(path, f"the CRL of {issuer} is not signed by a CA of tls.ca_cert; add that CA there")
    _check_complete(path, issuer, extensions)
    this_update, next_update = crl.last_update_utc.timestamp(), crl.next_update_utc
    if next_update is None:
        raise MaterialError(
            path, f"the CRL of {issuer} does not say when the next one is due (RFC 5280 section 5.1.2.5)"
        )
    if this_update > now + SKEW:
        raise MaterialError(path, f"the CRL of {issuer} is dated {day(this_update)}, in the future; check the clock")
    if next_update.timestamp() <= now:
        raise MaterialError(
            path, f"the CRL of {issuer} was to be replaced by {day(next_update.timestamp())}; fetch it anew"
        )
    number = _extension(extensions, x509.CRLNumber)
    facts = CrlFacts(
        issuer=issuer,
        this_update=this_update,
        next_update=next_update.timestamp(),
        number=None if number is None else number.crl_number,
        count=len(serials),
        scope=_scope(signer, _extension(extensions, x509.IssuingDistributionPoint)),
    )
    return Crl(facts, issuer_key(crl.issuer), block, serials)


def _signed_by(crl: x509.CertificateRevocationList, authority: x509.Certificate) -> bool:
    try:
        return crl.is_signature_valid(authority.public_key())  # type: ignore[arg-type] # other keys raise TypeError
    except (TypeError, UnsupportedAlgorithm):
        return False


def _check_complete(path: str, issuer: str, extensions: x509.Extensions) -> None:
    """A CRL that speaks only of changes, of others' certificates or of some reasons must not pass for the whole."""
    unknown = [each.oid.dotted_string for each in extensions if each.critical and each.oid not in _UNDERSTOOD]
    if unknown or _extension(extensions, x509.DeltaCRLIndicator) is not None:
        raise MaterialError(path, f"the CRL of {issuer} is a delta CRL or of an unknown kind; use the complete one")
    scope = _extension(extensions, x509.IssuingDistributionPoint)
    if scope is not None and (
        scope.indirect_crl
        or scope.only_some_reasons
        or scope.only_contains_attribute_certs
        or scope.only_contains_ca_certs
    ):
        raise MaterialError(path, f"the CRL of {issuer} is partial (issuing distribution point); use the complete one")


def _check_not_older(new: CrlFacts, old: CrlFacts | None, sources: Sequence[tuple[str, bytes]]) -> None:
    if old is None:
        return
    older = new.this_update < old.this_update
    rolled_back = new.number is not None and old.number is not None and new.number < old.number
    if older or rolled_back:
        raise MaterialError(
            ", ".join(path for path, _ in sources),
            f"the CRL of {new.issuer} ({_edition(new)}) is older than the one in use ({_edition(old)}); fetch it anew",
        )


def _warnings(
    path: str,
    facts: Mapping[x509.Certificate, CertificateFacts],
    in_force: tuple[x509.Certificate, ...],
    crls: Iterable[Crl],
    now: float,
) -> Iterable[str]:
    issuers = {crl.issuer for crl in crls}
    for certificate, of in facts.items():
        if certificate not in in_force:
            yield f"{path}: {of.subject} is revoked and therefore not trusted any more; remove it"
        elif of.not_after <= now:
            yield f"{path}: {of.subject} expired at {day(of.not_after)}; its clients are refused"
        elif issuers and issuer_key(certificate.subject) not in issuers:
            yield f"{path}: {of.subject} has no CRL while others have; every client that it issued to is refused"


def _age(facts: CrlFacts) -> tuple[float, int]:
    return facts.this_update, -1 if facts.number is None else facts.number


def _edition(facts: CrlFacts) -> str:
    return f"number {'none' if facts.number is None else facts.number} of {day(facts.this_update)}"


def _scope(signer: x509.Certificate, point: x509.IssuingDistributionPoint | None) -> str:
    key = signer.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(key + (b"" if point is None else point.public_bytes())).hexdigest()


def _extension(extensions: x509.Extensions, kind: type[T]) -> T | None:
    try:
        return extensions.get_extension_for_class(kind).value
    except x509.ExtensionNotFound:
        return None
