"""Parsing of certificate revocation lists, in PEM or DER.

Signer and dates are checked in :mod:`tlsproxy.tls.trust`. A partial CRL (delta, indirect, for some reasons) is refused:
it must not pass for the complete list.
"""

from __future__ import annotations

import hashlib
import re
from bisect import bisect_left
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, TypeVar

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtensionOID

from tlsproxy.errors import MaterialError
from tlsproxy.pem import blocks as pem
from tlsproxy.pem.foreign import foreign
from tlsproxy.tls.certinfo import issuer_key
from tlsproxy.tls.owncert import PARSE_ERRORS

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

T = TypeVar("T", bound=x509.ExtensionType)

_UNDERSTOOD: Final = frozenset(
    {ExtensionOID.ISSUING_DISTRIBUTION_POINT, ExtensionOID.CRL_NUMBER, ExtensionOID.AUTHORITY_KEY_IDENTIFIER}
)
"""The CRL extensions that may be critical (RFC 5280 section 5.2: a CRL with an unknown one must not be used)."""
_DER: Final = re.compile(rb"\x30[\x81-\x84]")
"""A SEQUENCE of at least 128 bytes: no CRL with its signature is shorter."""


class Serials:
    """An immutable set of serial numbers in one sorted buffer: 6 MB for 300,000 of 20 bytes each."""

    __slots__ = ("_count", "_sorted", "_width")

    def __init__(self, numbers: Iterable[int]) -> None:
        distinct = set(numbers)
        self._width = width = max((_width(number) for number in distinct), default=1)
        self._count = len(distinct)
        self._sorted = b"".join(sorted(number.to_bytes(width, signed=True) for number in distinct))

    def __len__(self) -> int:
        return self._count

    def __contains__(self, number: int) -> bool:
        if _width(number) > self._width:
            return False
        wanted = number.to_bytes(self._width, signed=True)
        place = bisect_left(range(self._count), wanted, key=self._at)
        return place < self._count and self._at(place) == wanted

    def __iter__(self) -> Iterator[int]:
        return (int.from_bytes(self._at(place), signed=True) for place in range(self._count))

    def _at(self, place: int) -> bytes:
        return self._sorted[place * self._width : (place + 1) * self._width]


def _width(number: int) -> int:
    return number.bit_length() // 8 + 1


@dataclass(frozen=True, slots=True)
class CrlScope:
    """The certificates of an issuer that a CRL covers (RFC 5280 section 5.2.5).

    ``points`` are the names of its distribution point (:func:`point_names`); empty for all certificates.
    """

    points: frozenset[str] = frozenset()
    leaves: bool = True
    authorities: bool = True

    def covers(self, points: frozenset[str], *, authority: bool) -> bool:
        """Whether a certificate with these distribution points is covered. One without any is covered by each CRL."""
        if not (self.authorities if authority else self.leaves):
            return False
        return not self.points or not points or not self.points.isdisjoint(points)

    def holds(self, other: CrlScope) -> bool:
        """Whether every certificate that the other covers is within this one too."""
        points = not self.points or (bool(other.points) and other.points <= self.points)
        return points and self.leaves >= other.leaves and self.authorities >= other.authorities


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class Crl:
    """One CRL. ``issuer`` is RFC 4514, ``name`` its :func:`~tlsproxy.tls.certinfo.issuer_key`, times are in seconds.

    ``number`` is None where the CRL has none (RFC 5280 asks for one, `openssl ca` without a counter writes none).
    ``digest`` is over the issuer's name and the distribution point: a CRL replaces one with the same digest and signer.
    ``key_id`` is the issuer's key as the CRL names it (RFC 5280 section 5.2.1), in hex; "" where it does not.
    """

    path: str
    issuer: str
    name: str
    this_update: float
    next_update: float
    number: int | None
    scope: CrlScope
    digest: str
    key_id: str
    serials: Serials = field(repr=False)
    der: bytes = field(repr=False)

    def signed_by(self, authority: x509.Certificate) -> bool:
        """Whether ``authority`` signed it: by name, key, and its right to sign CRLs (RFC 5280 section 4.2.1.3)."""
        if issuer_key(authority.subject) != self.name or not _may_sign_crls(authority):
            return False
        try:
            return x509.load_der_x509_crl(self.der).is_signature_valid(authority.public_key())  # type: ignore[arg-type] # other keys raise TypeError
        except (TypeError, UnsupportedAlgorithm):
            return False


def load_crls(path: str, data: bytes) -> tuple[Crl, ...]:
    """All CRLs of a file: PEM (one or several) or DER. Raises MaterialError."""
    if _DER.match(data):
        return (_crl(path, data),)
    found = []
    for block in pem.blocks_of(path, data):
        if block.label != pem.CRL:
            raise pem.refused(path, block, "CRLs belong")
        found.append(_crl(path, block.data))
    return tuple(found)


def crl_age(crl: Crl) -> tuple[float, int]:
    """A sort key: a greater one is newer."""
    return crl.this_update, -1 if crl.number is None else crl.number


def older_than(new: Crl, old: Crl) -> bool:
    """Whether ``new``, of the same scope and signer as ``old``, is the earlier edition."""
    rolled_back = new.number is not None and old.number is not None and new.number < old.number
    return rolled_back or new.this_update < old.this_update


def point_names(point: x509.DistributionPoint | x509.IssuingDistributionPoint) -> frozenset[str]:
    """Names of a distribution point, in a comparable form."""
    if point.relative_name is not None:
        return frozenset({repr(point.relative_name)})
    return frozenset(map(repr, point.full_name or ()))


def extension_of(extensions: x509.Extensions, kind: type[T]) -> T | None:
    """The value of an extension; None if it is absent."""
    try:
        return extensions.get_extension_for_class(kind).value
    except x509.ExtensionNotFound:
        return None


def _may_sign_crls(authority: x509.Certificate) -> bool:
    usage = extension_of(authority.extensions, x509.KeyUsage)
    return usage is None or usage.crl_sign


def _crl(path: str, data: bytes) -> Crl:
    try:
        crl = x509.load_pem_x509_crl(data) if data.startswith(b"-") else x509.load_der_x509_crl(data)
    except PARSE_ERRORS as error:
        hint = "" if data.startswith(b"-") else f". Perhaps {foreign(path, data)}"
        raise MaterialError(path, f"holds a CRL that cannot be parsed: {error}{hint}") from None
    try:
        extensions = crl.extensions
        serials = Serials(entry.serial_number for entry in crl)
    except PARSE_ERRORS as error:
        raise MaterialError(path, f"holds a CRL that cannot be parsed: {error}") from None
    issuer = crl.issuer.rfc4514_string()
    point = extension_of(extensions, x509.IssuingDistributionPoint)
    if partial := _partial(extensions, point):
        raise MaterialError(path, f"the CRL of {issuer} {partial}")
    if crl.next_update_utc is None:
        raise MaterialError(
            path, f"the CRL of {issuer} does not say when the next one is due (RFC 5280 section 5.1.2.5)"
        )
    number = extension_of(extensions, x509.CRLNumber)
    signer = extension_of(extensions, x509.AuthorityKeyIdentifier)
    return Crl(
        path=path,
        issuer=issuer,
        name=issuer_key(crl.issuer),
        this_update=crl.last_update_utc.timestamp(),
        next_update=crl.next_update_utc.timestamp(),
        number=None if number is None else number.crl_number,
        scope=CrlScope()
        if point is None
        else CrlScope(point_names(point), not point.only_contains_ca_certs, not point.only_contains_user_certs),
        digest=hashlib.sha256(
            issuer_key(crl.issuer).encode() + (b"" if point is None else point.public_bytes())
        ).hexdigest(),
        key_id="" if signer is None or signer.key_identifier is None else signer.key_identifier.hex(),
        serials=serials,
        der=crl.public_bytes(Encoding.DER),
    )


def _partial(extensions: x509.Extensions, point: x509.IssuingDistributionPoint | None) -> str:
    """The reason why a CRL is partial, and which one to use instead; "" if it is complete."""
    if extension_of(extensions, x509.DeltaCRLIndicator) is not None:
        return "is a delta CRL, which has only what changed; configure the complete (base) CRL"
    unknown = [each.oid.dotted_string for each in extensions if each.critical and each.oid not in _UNDERSTOOD]
    if unknown:
        return f"has a critical extension that is not known here ({unknown[0]}); configure one without it"
    if point is None:
        return ""
    if point.indirect_crl:
        return "is indirect (it speaks for other issuers too); configure the CRL that each CA signs itself"
    if point.only_some_reasons:
        return "lists revocations for some reasons only; configure the CRL for all reasons"
    if point.only_contains_attribute_certs:
        return "is about attribute certificates; configure the CRL of user certificates"
    if point.only_contains_ca_certs and point.only_contains_user_certs:
        return "is for user certificates only and for CAs only, which is none; configure one of the two"
    return ""
