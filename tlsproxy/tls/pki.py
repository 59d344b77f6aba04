"""A development PKI: a CA that issues server and client certificates, intermediates and CRLs.

Certificates and CRLs follow RFC 5280 (SKI, AKI, key usage, basic constraints, EKU), so that OpenSSL's strict mode
accepts them. Keys are ECDSA P-256 unless told otherwise. It is for `tlsproxy certs`, the demo and tests only.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final, Literal

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID, ObjectIdentifier

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

BACKDATED: Final = timedelta(minutes=1)
"""Time by which certificates start in the past, for peers whose clock is behind."""
CRL_LIFETIME: Final = timedelta(days=30)

KeyType = Literal["ecdsa", "rsa", "ed25519"]
PrivateKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey
PublicKey = ec.EllipticCurvePublicKey | rsa.RSAPublicKey | ed25519.Ed25519PublicKey
_RSA_BITS: Final = 3072


@dataclass(frozen=True, slots=True)
class Issued:
    """A certificate and its key, as PEM. ``chain_pem`` is the leaf and its intermediates, without the root."""

    certificate_pem: bytes
    chain_pem: bytes
    key_pem: bytes = field(repr=False)
    serial: int


@dataclass(frozen=True, slots=True)
class Authority:
    """A CA: certificate, key, and the intermediates to send with certificates that it issues."""

    certificate_pem: bytes
    key_pem: bytes = field(repr=False)
    intermediates_pem: bytes = b""

    @classmethod
    def create(
        cls,
        common_name: str = "tlsproxy development CA",
        *,
        lifetime: timedelta = timedelta(days=3650),
        key_type: KeyType = "ecdsa",
    ) -> Authority:
        """A new root CA."""
        key = _new_key(key_type)
        subject = _name(common_name=common_name)
        now = datetime.now(UTC)
        # RFC 5280 section 4.2.1.1 lets a self-signed certificate leave its AKI out; strict verifiers agree.
        certificate = (
            _base(subject, subject, key.public_key(), now - BACKDATED, now + lifetime)
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .add_extension(_key_usage(ca=True), critical=True)
            .sign(key, _digest(key))
        )
        return cls(certificate.public_bytes(serialization.Encoding.PEM), _key_pem(key))

    @classmethod
    def load(cls, certificate_pem: bytes, key_pem: bytes) -> Authority:
        """A CA from its files. Raises ValueError if they are not a CA certificate and its key."""
        authority = cls(certificate_pem, key_pem)
        certificate = authority._certificate()
        if certificate.public_key() != authority._key().public_key():
            raise ValueError("the key does not belong to the CA certificate")
        try:
            constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
        except x509.ExtensionNotFound:
            raise ValueError("the certificate is not a CA: it has no basic constraints") from None
        if not constraints.ca:
            raise ValueError("the certificate is not a CA")
        return authority

    def issue(  # noqa: PLR0913 - one keyword for each field of a certificate
        self,
        *,
        common_name: str = "",
        organization: str = "",
        organizational_unit: str = "",
        dns: Sequence[str] = (),
        uris: Sequence[str] = (),
        emails: Sequence[str] = (),
        ips: Sequence[str] = (),
        server: bool = False,
        client: bool = False,
        lifetime: timedelta = timedelta(days=90),
        not_before: datetime | None = None,
        key_type: KeyType = "ecdsa",
    ) -> Issued:
        """A leaf with a new key, valid for ``lifetime`` from now, or from ``not_before``.

        Without ``server`` and ``client`` it has no extended key usage.
        """
        key, own = _new_key(key_type), self._key()
        subject = _name(common_name, organization, organizational_unit)
        start = not_before if not_before is not None else datetime.now(UTC) - BACKDATED
        end = (not_before if not_before is not None else datetime.now(UTC)) + lifetime
        builder = (
            _base(subject, self._certificate().subject, key.public_key(), start, end)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(ca=False), critical=True)
            .add_extension(self._authority_key_identifier(), critical=False)
        )
        purposes = _purposes(server=server, client=client)
        if purposes:
            builder = builder.add_extension(x509.ExtendedKeyUsage(purposes), critical=False)
        names: list[x509.GeneralName] = [
            *map(x509.DNSName, dns),
            *map(x509.UniformResourceIdentifier, uris),
            *map(x509.RFC822Name, emails),
            *(x509.IPAddress(ipaddress.ip_address(ip)) for ip in ips),
        ]
        if names:
            # RFC 5280 section 4.2.1.6: critical where the subject is empty.
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=not subject.rdns)
        certificate = builder.sign(own, _digest(own))
        pem = certificate.public_bytes(serialization.Encoding.PEM)
        return Issued(pem, pem + self.intermediates_pem, _key_pem(key), certificate.serial_number)

    def intermediate(self, common_name: str) -> Authority:
        """An intermediate CA below this one, with the same lifetime. It may issue leaves and further intermediates."""
        key, own = _new_key("ecdsa"), self._key()
        issuer = self._certificate()
        certificate = (
            _base(
                _name(common_name=common_name),
                issuer.subject,
                key.public_key(),
                issuer.not_valid_before_utc,
                issuer.not_valid_after_utc,
            )
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .add_extension(_key_usage(ca=True), critical=True)
            .add_extension(self._authority_key_identifier(), critical=False)
            .sign(own, _digest(own))
        )
        pem = certificate.public_bytes(serialization.Encoding.PEM)
        return Authority(pem, _key_pem(key), pem + self.intermediates_pem)

    def crl_pem(
        self,
        revoked: Iterable[int] = (),
        *,
        number: int = 1,
        this_update: datetime | None = None,
        next_update: datetime | None = None,
    ) -> bytes:
        """A CRL of these serial numbers."""
        start = this_update if this_update is not None else datetime.now(UTC) - BACKDATED
        return self._signed_crl(_entries(revoked, start), number, start, next_update)

    def next_crl_pem(
        self, former: x509.CertificateRevocationList | None, revoked: Iterable[int], lifetime: timedelta = CRL_LIFETIME
    ) -> bytes:
        """The CRL after ``former``, with all that it revokes and these serial numbers besides."""
        now, number, entries = datetime.now(UTC), 1, []
        if former is not None:
            number = former.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number + 1
            entries = list(former)
        return self._signed_crl([*entries, *_entries(revoked, now)], number, now - BACKDATED, now + lifetime)

    def own_crl(self, data: bytes) -> x509.CertificateRevocationList:
        """A CRL of this CA, from its file (PEM). Raises ValueError for anything else."""
        crl = x509.load_pem_x509_crl(data)
        if crl.issuer != self._certificate().subject or not crl.is_signature_valid(self._key().public_key()):
            raise ValueError("it is of another CA")
        return crl

    def has_issued(self, certificate: x509.Certificate) -> bool:
        try:
            certificate.verify_directly_issued_by(self._certificate())
        except (ValueError, TypeError, InvalidSignature):
            return False
        return True

    def _signed_crl(
        self, entries: list[x509.RevokedCertificate], number: int, start: datetime, end: datetime | None
    ) -> bytes:
        key = self._key()
        builder = (
            x509.CertificateRevocationListBuilder(revoked_certificates=entries)  # adding one by one copies all
            .issuer_name(self._certificate().subject)
            .last_update(start)
            .next_update(end if end is not None else start + CRL_LIFETIME)
            .add_extension(x509.CRLNumber(number), critical=False)
            .add_extension(self._authority_key_identifier(), critical=False)
        )
        return builder.sign(key, _digest(key)).public_bytes(serialization.Encoding.PEM)

    def _certificate(self) -> x509.Certificate:
        return x509.load_pem_x509_certificate(self.certificate_pem)

    def _key(self) -> PrivateKey:
        return read_key(self.key_pem)

    def _authority_key_identifier(self) -> x509.AuthorityKeyIdentifier:
        own = self._certificate().extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
        return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(own)


def read_key(pem: bytes) -> PrivateKey:
    """An unencrypted private key. Raises ValueError."""
    try:
        key = serialization.load_pem_private_key(pem, password=None)
    except TypeError:
        raise ValueError("the key is encrypted") from None
    if not isinstance(key, PrivateKey):
        raise ValueError("the key is neither ECDSA, RSA nor Ed25519")  # noqa: TRY004 - a bad file, not a bad call
    return key


def _new_key(key_type: KeyType) -> PrivateKey:
    match key_type:
        case "ecdsa":
            return ec.generate_private_key(ec.SECP256R1())
        case "rsa":
            return rsa.generate_private_key(65537, _RSA_BITS)
        case "ed25519":
            return ed25519.Ed25519PrivateKey.generate()


def _digest(key: PrivateKey) -> hashes.SHA256 | None:
    """The digest of a signature; Ed25519 has its own (RFC 8410)."""
    return None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256()


def _entries(serials: Iterable[int], when: datetime) -> list[x509.RevokedCertificate]:
    return [x509.RevokedCertificateBuilder().serial_number(each).revocation_date(when).build() for each in serials]


def _base(
    subject: x509.Name, issuer: x509.Name, key: PublicKey, start: datetime, end: datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(end)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _name(common_name: str = "", organization: str = "", organizational_unit: str = "") -> x509.Name:
    parts = (
        (NameOID.ORGANIZATION_NAME, organization),
        (NameOID.ORGANIZATIONAL_UNIT_NAME, organizational_unit),
        (NameOID.COMMON_NAME, common_name),
    )
    return x509.Name([x509.NameAttribute(oid, value) for oid, value in parts if value])


def _purposes(*, server: bool, client: bool) -> list[ObjectIdentifier]:
    wanted = ((ExtendedKeyUsageOID.SERVER_AUTH, server), (ExtendedKeyUsageOID.CLIENT_AUTH, client))
    return [oid for oid, given in wanted if given]


def _key_usage(*, ca: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not ca,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=ca,
        crl_sign=ca,
        encipher_only=False,
        decipher_only=False,
    )


def _key_pem(key: PrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
