"""Who may vouch for clients, and who no longer does: the CA file and the CRLs.

Only what the operator put there is trusted, never the system's roots: an empty or broken file is an error, because
every milder reading of it has widened trust somewhere (Caddy #7464). A CRL counts when one of these CAs signed it.
Issuers are told apart by name and key: another CA of the same name is not the one whose CRL names a serial number.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, TypeAlias

from cryptography import x509

from tlsproxy.authz.identity import anchor_of
from tlsproxy.errors import MaterialError
from tlsproxy.tls import pem
from tlsproxy.tls.crls import crl_age, load_crls, older_than
from tlsproxy.tls.facts import CrlFacts, day, issuer_key
from tlsproxy.tls.servercert import SKEW, certificate_of, is_authority, issued_by

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from tlsproxy.tls.crls import Crl

Issuer: TypeAlias = tuple[str, str]
"""A CA's name (:func:`tlsproxy.tls.facts.issuer_key`) and the SHA-256 (hex) of its public key."""


@dataclass(frozen=True, slots=True)
class CrlPolicy:
    """``required``: once there is any CRL, a client certificate that none covers is refused.

    ``deny_expired``: what is covered by CRLs past their next update alone is refused.
    """

    required: bool = True
    deny_expired: bool = True


@dataclass(frozen=True, slots=True)
class Trust:
    """``configured`` are the CAs of the file; those that no CRL revokes are the ``authorities`` in force.

    ``crls`` are the newest of each signer and scope, ``unused`` those that no CA of the file signed.
    """

    path: str
    configured: tuple[x509.Certificate, ...]
    authorities: tuple[x509.Certificate, ...]
    crls: Mapping[Issuer, tuple[Crl, ...]] = field(repr=False)
    unused: tuple[Crl, ...]
    policy: CrlPolicy = CrlPolicy()

    @classmethod
    def of(cls, path: str, authorities: Iterable[x509.Certificate], crls: Sequence[Crl], policy: CrlPolicy) -> Trust:
        """``path`` is where the CAs stand, for warnings."""
        configured = tuple(authorities)
        issuers = {certificate: issuer_of(certificate) for certificate in configured}
        newest: dict[tuple[Issuer, str], Crl] = {}
        unused = []
        for crl in crls:
            signer = next((issuers[each] for each in configured if crl.signed_by(each)), None)
            if signer is None:
                unused.append(crl)
                continue
            held = newest.get((signer, crl.digest))
            if held is None or crl_age(held) < crl_age(crl):
                newest[signer, crl.digest] = crl
        bound: dict[Issuer, tuple[Crl, ...]] = {}
        for (signer, _), crl in newest.items():
            bound[signer] = (*bound.get(signer, ()), crl)
        in_force = tuple(
            certificate
            for certificate in configured
            if not any(
                certificate.serial_number in crl.serials and issued_by(certificate, above)
                for above, issuer in issuers.items()
                for crl in bound.get(issuer, ())
            )
        )
        return cls(path, configured, in_force, bound, tuple(unused), policy)

    def revokes(self, issuer: Issuer, serial: int) -> bool:
        """By any CRL of the issuer, whatever its scope and age."""
        return any(serial in crl.serials for crl in self.crls.get(issuer, ()))

    def newer(self, crl: Crl) -> Crl | None:
        """The CRL in use, of the same signer and scope, that this one is older than."""
        return next(
            (
                held
                for certificate in self.configured
                for held in self.crls.get(issuer_of(certificate), ())
                if held.digest == crl.digest and older_than(crl, held) and crl.signed_by(certificate)
            ),
            None,
        )

    @property
    def facts(self) -> tuple[CrlFacts, ...]:
        """Of the CRLs that are used."""
        return tuple(
            CrlFacts(
                issuer=crl.issuer,
                this_update=crl.this_update,
                next_update=crl.next_update,
                number=crl.number,
                count=len(crl.serials),
                scope=f"{key} {crl.digest}",
            )
            for (_, key), crls in self.crls.items()
            for crl in crls
        )

    def warnings(self, now: float) -> Iterator[str]:
        """``now`` is seconds since the epoch."""
        for certificate in self.configured:
            name = certificate.subject.rfc4514_string()
            not_before, not_after = certificate.not_valid_before_utc, certificate.not_valid_after_utc
            if certificate not in self.authorities:
                yield f"{self.path}: {name} is revoked and therefore not trusted any more; remove it"
            elif not_after.timestamp() <= now:
                yield f"{self.path}: {name} expired at {day(not_after.timestamp())}; its clients are refused"
            elif not_before.timestamp() > now:
                yield f"{self.path}: {name} is not valid before {day(not_before.timestamp())}; its clients are refused"
            elif self.policy.required and (self.crls or self.unused) and issuer_of(certificate) not in self.crls:
                yield f"{self.path}: {name} has no CRL while others have; every client that it issued to is refused"
        for crl in (one for crls in self.crls.values() for one in crls):
            named = f"{crl.path}: the CRL of {crl.issuer}"
            if crl.next_update <= now:
                effect = "the clients that it covers are refused" if self.policy.deny_expired else "it still counts"
                yield f"{named} was to be replaced by {day(crl.next_update)}; {effect}"
            elif crl.this_update > now:
                yield f"{named} is dated {day(crl.this_update)}, in the future; check the clock"
        for crl in self.unused:
            yield f"{crl.path}: the CRL of {crl.issuer} is not used: no CA of {self.path} signed it"


NO_TRUST: Final = Trust("", (), (), {}, ())


def issuer_of(certificate: x509.Certificate) -> Issuer:
    """What a CA is known by, however often its certificate is issued anew."""
    return issuer_key(certificate.subject), anchor_of(certificate).key


def load_trust(
    authorities: tuple[str, bytes],
    crls: Sequence[tuple[str, bytes]],
    *,
    now: float,
    previous: Trust = NO_TRUST,
    policy: CrlPolicy = CrlPolicy(),
) -> Trust:
    """The CA file and the CRL files, each a path and its bytes; ``previous`` is what is in use.

    Raises MaterialError.
    """
    path, data = authorities
    configured = load_authorities(path, data)
    loaded = [crl for crl_path, crl_data in crls for crl in load_crls(crl_path, crl_data)]
    trust = Trust.of(path, configured, loaded, policy)
    for crl in trust.unused:
        raise MaterialError(
            crl.path, f"the CRL of {crl.issuer} is not signed by a CA of tls.ca_cert; add that CA there"
        )
    for crl in (one for found in trust.crls.values() for one in found):
        if crl.this_update > now + SKEW:
            raise MaterialError(
                crl.path, f"the CRL of {crl.issuer} is dated {day(crl.this_update)}, in the future; check the clock"
            )
        if crl.next_update <= now:
            raise MaterialError(
                crl.path, f"the CRL of {crl.issuer} was to be replaced by {day(crl.next_update)}; fetch it anew"
            )
        if (newer := previous.newer(crl)) is not None:
            raise MaterialError(
                crl.path,
                f"the CRL of {crl.issuer} ({_edition(crl)}) is older than the one in use ({_edition(newer)}); "
                "fetch it anew",
            )
    if not trust.authorities:
        raise MaterialError(path, "every CA in it is revoked by the configured CRLs")
    if all(certificate.not_valid_after_utc.timestamp() <= now for certificate in trust.authorities):
        raise MaterialError(path, "every CA in it has expired; add the CA that issues today's client certificates")
    return trust


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


def _edition(crl: Crl) -> str:
    return f"number {'none' if crl.number is None else crl.number} of {day(crl.this_update)}"
