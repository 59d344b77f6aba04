"""Trust in client certificates: the CAs of `tls.ca_cert` and the CRLs of `tls.crl`.

The system's roots are never used. An empty or broken CA file is an error, since every milder reading of one has widened
trust somewhere (Caddy #7464). A CRL counts if one of these CAs signed it. Issuers are identified by name and key: a
serial number that one CA revoked is still valid for another CA of the same name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, TypeAlias
from weakref import WeakKeyDictionary

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding

from tlsproxy.authz.identity import anchor_of
from tlsproxy.errors import MaterialError
from tlsproxy.pem import blocks as pem
from tlsproxy.text import utc_time
from tlsproxy.tls.certinfo import CrlFacts, issuer_key
from tlsproxy.tls.chains import authority_of, defect_of
from tlsproxy.tls.crls import crl_age
from tlsproxy.tls.owncert import certificate_of, is_authority, issued_by

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, MutableMapping, Sequence

    from cryptography import x509

    from tlsproxy.tls.chains import Chain, ChainCertificate
    from tlsproxy.tls.crls import Crl

Issuer: TypeAlias = tuple[str, str]
"""A CA's name (:func:`tlsproxy.tls.certinfo.issuer_key`) and the SHA-256 (hex) of its public key."""

NEVER: Final = float("inf")
_UNTRUSTED: Final = "issuer_not_trusted"
REFUSALS: Final[Mapping[str, str]] = {
    "certificate_revoked": "the client certificate, or one above it, was revoked",
    "certificate_expired": "the client certificate, or one above it, has expired",
    "certificate_not_yet_valid": "the client certificate, or one above it, is not valid yet",
    "crl_expired": "the CRL that covers the client certificate is past its next update; publish a new one",
    "crl_missing": "no CRL covers the client certificate; add its issuer's to tls.crl",
    _UNTRUSTED: "the client certificate's issuer is not trusted any more",
}
"""Refusals and their sentences, by rank: of several paths' refusals the first in this order is reported."""
_RANKED: Final = tuple(REFUSALS)


@dataclass(frozen=True, slots=True)
class CrlPolicy:
    """``required``: with any CRL configured, a client certificate without coverage is refused (`tls.crl_policy`).

    ``deny_expired``: a certificate that only expired CRLs cover is refused (`tls.crl_expired`).
    """

    required: bool = True
    deny_expired: bool = True


@dataclass(frozen=True, slots=True)
class ChainVerdict:
    """``refusal`` is "" or one of :data:`REFUSALS`.

    Time alone changes nothing before ``until`` (seconds since the epoch).

    ``issuers`` is the path of an admitted leaf, from its issuer to the trust anchor.
    """

    refusal: str
    until: float
    issuers: tuple[ChainCertificate, ...] = ()


@dataclass(frozen=True, slots=True)
class Trust:
    """``configured`` are the CAs of the file, ``authorities`` those of them that no CRL revokes.

    ``crls`` has the newest CRL of each signer and scope, and beside it an older one that expires later, if expiry
    matters: both revoke, and the older one covers. CRLs that no CA of the file signed are ``unbound``: they count for
    an intermediate that a client sends.
    """

    path: str
    configured: tuple[x509.Certificate, ...]
    authorities: tuple[x509.Certificate, ...]
    crls: Mapping[Issuer, tuple[Crl, ...]] = field(repr=False)
    unbound: tuple[Crl, ...]
    policy: CrlPolicy = CrlPolicy()
    _anchors: Mapping[str, tuple[ChainCertificate, ...]] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, path: str, authorities: Iterable[x509.Certificate], crls: Sequence[Crl], policy: CrlPolicy) -> Trust:
        """``path`` is the CA file, for warnings."""
        configured = tuple(authorities)
        issuers = {certificate: issuer_of(certificate) for certificate in configured}
        signed: dict[tuple[Issuer, str], list[Crl]] = {}
        unbound = []
        for crl in crls:
            signer = next((issuers[each] for each in configured if crl.signed_by(each)), None)
            if signer is None:
                unbound.append(crl)
                continue
            signed.setdefault((signer, crl.digest), []).append(crl)
        bound: dict[Issuer, tuple[Crl, ...]] = {}
        for (signer, _), those in signed.items():
            bound[signer] = (*bound.get(signer, ()), *_counting(those, policy))
        in_force = tuple(
            certificate
            for certificate in configured
            if not any(
                certificate.serial_number in crl.serials and issued_by(certificate, above)
                for above, issuer in issuers.items()
                for crl in bound.get(issuer, ())
            )
        )
        anchors: dict[str, tuple[ChainCertificate, ...]] = {}
        for certificate in in_force:
            anchor = authority_of(certificate.public_bytes(Encoding.DER))
            if anchor is not None:
                anchors[anchor.subject] = (*anchors.get(anchor.subject, ()), anchor)
        return cls(path, configured, in_force, bound, tuple(unbound), policy, anchors)

    def verdict_of(self, chain: Chain, now: float) -> ChainVerdict:
        """Whether a handshake at ``now`` would admit this chain.

        That takes a path to a trust anchor on which each certificate is valid, not revoked, and covered by CRLs. As in
        OpenSSL, a trusted issuer ends the search; of several sent issuers the first that is valid by date is taken,
        else the one that expired last.
        """
        if not chain.issuers:
            return ChainVerdict(_UNTRUSTED, NEVER)
        moments: set[float] = set()
        refusals = {_UNTRUSTED}
        path, fault = chain.verified[:1], ""
        while path[-1].has_issuer:
            below = path[-1]
            trusted = [one for one in self._anchors.get(below.issuer, ()) if chain.signed(below, one)]
            signers = [
                one
                for one in trusted or _picked_issuer(chain, path, now, moments)
                if not (one.defect or chain.adds_constraints(one)) and _has_room(one, path[1:])
            ]
            if not signers:
                break
            fault = fault or self._fault(below, signers[0], now, moments, leaf=len(path) == 1)
            if not trusted:
                path = (*path, *signers)
                continue
            for signer in signers:
                refusal = fault or _outdated(signer, now, moments)
                if not refusal:
                    return ChainVerdict("", min(moments), (*path[1:], signer))
                refusals.add(refusal)
            break
        return ChainVerdict(min(refusals, key=_RANKED.index), min(moments, default=NEVER))

    def _fault(
        self, certificate: ChainCertificate, signer: ChainCertificate, now: float, moments: set[float], *, leaf: bool
    ) -> str:
        """The reason why a certificate of a path is not valid now; "" if it is.

        Adds its future dates to ``moments``.
        """
        if refusal := _outdated(certificate, now, moments):
            return refusal
        own = self.crls.get((signer.subject, signer.key))
        crls = own or [crl for crl in self.unbound if _signed(crl, signer)]
        if any(certificate.serial in crl.serials for crl in crls):
            return "certificate_revoked"
        started = []
        for crl in crls:
            if crl.scope.covers(certificate.points, authority=not leaf):
                started += [crl] if crl.this_update <= now else []
                moments.update(moment for moment in (crl.this_update, crl.next_update) if moment > now)
        if not started:
            # A CA certificate needs no CRL if none of its issuer covers CAs, as in OpenSSL's check of leaves.
            required = bool(self.crls or self.unbound) if leaf else any(crl.scope.authorities for crl in crls)
            return "crl_missing" if self.policy.required and required else ""
        return "crl_expired" if self.policy.deny_expired and all(crl.next_update <= now for crl in started) else ""

    def flawed(self, now: float) -> bool:
        """Whether a CA in force has a defect or is outdated, which may be why OpenSSL refuses a client certificate."""
        return any(
            anchor.defect or _outdated(anchor, now, set()) for anchors in self._anchors.values() for anchor in anchors
        )

    @property
    def in_use(self) -> tuple[Crl, ...]:
        return (*(crl for found in self.crls.values() for crl in found), *self.unbound)

    @property
    def _covering(self) -> tuple[tuple[Issuer, Crl], ...]:
        """The CRL of each signer and scope that expires last."""
        longest: dict[tuple[Issuer, str], Crl] = {}
        for issuer, crls in self.crls.items():
            for crl in crls:
                latest = longest.setdefault((issuer, crl.digest), crl)
                if latest.next_update < crl.next_update:
                    longest[issuer, crl.digest] = crl
        return tuple((issuer, crl) for (issuer, _), crl in longest.items())

    @property
    def facts(self) -> tuple[CrlFacts, ...]:
        """Facts of the CRLs in use."""
        return tuple(
            CrlFacts(
                issuer=crl.issuer,
                this_update=crl.this_update,
                next_update=crl.next_update,
                number=crl.number,
                count=len(crl.serials),
                scope=f"{key} {crl.digest}",
                path=crl.path,
            )
            for (_, key), crl in self._covering
        )

    def warnings(self, now: float) -> Iterator[str]:
        """Warnings on CAs and CRLs at ``now`` (seconds since the epoch)."""
        yield from filter(None, (self._warning(certificate, now) for certificate in self.configured))
        yield from self.outdated(now)
        for _, crl in self._covering:
            if crl.this_update > now:
                dated = f"is dated {utc_time(crl.this_update)}, in the future"
                yield f"{crl.path}: the CRL of {crl.issuer} {dated}; check the clock"
        for crl in self.unbound:
            unless = "unless clients send an intermediate that did"
            yield f"{crl.path}: the CRL of {crl.issuer} is not used: no CA of {self.path} signed it, {unless}"

    def outdated(self, now: float) -> Iterator[str]:
        """Warnings on CRLs whose next update came due by ``now``."""
        effect = "the clients that it covers are refused until it is" if self.policy.deny_expired else "it still counts"
        for _, crl in self._covering:
            if crl.next_update <= now:
                yield f"{crl.path}: the CRL of {crl.issuer} was to be replaced by {utc_time(crl.next_update)}; {effect}"

    def _warning(self, certificate: x509.Certificate, now: float) -> str:
        named = f"{self.path}: {certificate.subject.rfc4514_string()}"
        start, end = certificate.not_valid_before_utc.timestamp(), certificate.not_valid_after_utc.timestamp()
        if defect := defect_of(certificate):
            return f"{named} {defect}; its clients are refused"
        if certificate not in self.authorities:
            return f"{named} is revoked and therefore not trusted any more; remove it"
        if end <= now:
            return f"{named} expired at {utc_time(end)}; its clients are refused"
        if start > now:
            return f"{named} is not valid before {utc_time(start)}; its clients are refused"
        crls = self.crls.get(issuer_of(certificate), ())
        if self.policy.required and (self.crls or self.unbound) and not any(crl.scope.leaves for crl in crls):
            lacking = f"{named} has no {'CRL of clients' if crls else 'CRL'} while others have"
            return f"{lacking}; every client that it issued to is refused: add it to tls.crl"
        weak = certificate.signature_hash_algorithm
        if isinstance(weak, hashes.SHA1 | hashes.MD5):
            kind = weak.name.upper()
            return f"{named} is signed with {kind}; clients whose certificates it signs so are refused; use SHA-256"
        return ""


def _counting(crls: Sequence[Crl], policy: CrlPolicy) -> tuple[Crl, ...]:
    """The CRLs that count of one signer and scope: the newest, and one that expires later if expiry matters."""
    newest = max(crls, key=crl_age)
    later = max(crls, key=lambda crl: (crl.next_update, crl_age(crl)))
    return (newest, later) if policy.deny_expired and later.next_update > newest.next_update else (newest,)


_signers: MutableMapping[Crl, dict[str, bool]] = WeakKeyDictionary()
"""Results of signature checks by CRL and key: one over 500,000 entries takes 50 ms."""


def _signed(crl: Crl, signer: ChainCertificate) -> bool:
    """Whether an intermediate that a client sent signed the CRL."""
    if crl.name != signer.subject or signer.certificate is None:
        return False
    results = _signers.setdefault(crl, {})
    if signer.key not in results:
        results[signer.key] = crl.signed_by(signer.certificate)
    return results[signer.key]


NO_TRUST: Final = Trust("", (), (), {}, ())


def _picked_issuer(
    chain: Chain, path: Sequence[ChainCertificate], now: float, moments: set[float]
) -> tuple[ChainCertificate, ...]:
    """The issuer that OpenSSL picks among the sent certificates (find_issuer): by names, without a second try."""
    below = path[-1]
    found = [one for one in chain.sent if one not in path and below.may_be_below(one)]
    valid = next((one for one in found if not _outdated(one, now, moments)), None)
    picked = valid or max(found, key=lambda one: one.not_after, default=None)
    return (picked,) if picked is not None and chain.signed(below, picked) else ()


def _has_room(authority: ChainCertificate, below: Sequence[ChainCertificate]) -> bool:
    """Whether the path length constraint is met (RFC 5280 section 4.2.1.9): self-issued certificates do not count."""
    counted = sum(one.subject != one.issuer for one in below)
    return authority.path_length is None or counted <= authority.path_length


def _outdated(certificate: ChainCertificate, now: float, moments: set[float]) -> str:
    """The refusal by date, "" for none.

    As in OpenSSL, `notBefore` itself is valid and `notAfter` is not (X509_cmp_time).
    """
    moments.update(moment for moment in (certificate.not_before, certificate.not_after) if moment > now)
    if now < certificate.not_before:
        return "certificate_not_yet_valid"
    return "certificate_expired" if now >= certificate.not_after else ""


def issuer_of(certificate: x509.Certificate) -> Issuer:
    """Name and key of a CA, which stay when its certificate is renewed."""
    return issuer_key(certificate.subject), anchor_of(certificate).key


def load_authorities(path: str, data: bytes) -> tuple[x509.Certificate, ...]:
    """CA certificates of a file, without repetitions. Raises MaterialError."""
    found: dict[x509.Certificate, None] = {}
    for block in pem.blocks_of(path, data):
        if block.label != pem.CERTIFICATE:
            raise pem.refused(path, block, "CA certificates belong")
        certificate = certificate_of(path, block.data)
        if not is_authority(certificate):
            name = certificate.subject.rfc4514_string()
            raise MaterialError(path, f"{name} is not a CA (its basic constraints do not say so); remove it")
        found[certificate] = None
    return tuple(found)
