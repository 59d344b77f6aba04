from __future__ import annotations

import ssl
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from snapshot_site import OTHER, ROOT, handshake

from tlsproxy.tls.pki import Authority, Issued

if TYPE_CHECKING:
    from pathlib import Path


def strict(purpose: int, issued: Issued, tmp_path: Path, crl: bytes) -> ssl.SSLContext:
    context = ssl.SSLContext(purpose)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_REQUIRED
    context.verify_flags |= ssl.VerifyFlags.VERIFY_X509_STRICT | ssl.VerifyFlags.VERIFY_CRL_CHECK_CHAIN
    context.load_verify_locations(cadata=ROOT.certificate_pem.decode())
    path = tmp_path / f"{issued.serial:x}"
    path.write_bytes(crl)
    context.load_verify_locations(cafile=path)
    path.write_bytes(issued.chain_pem + issued.key_pem)
    context.load_cert_chain(path)
    return context


def test_leaf_intermediate_root_and_crls_pass_openssl_strict_mode(tmp_path: Path) -> None:
    middle = ROOT.intermediate("middle")
    bottom = middle.intermediate("bottom")
    crls = ROOT.crl_pem([1, 2]) + middle.crl_pem() + bottom.crl_pem(number=7)
    server = bottom.issue(dns=["localhost"], ips=["::1"], uris=["spiffe://a/b"], emails=["a@b.c"], server=True)
    client = bottom.issue(common_name="c", client=True)
    answerer, caller = handshake(
        strict(ssl.PROTOCOL_TLS_SERVER, server, tmp_path, crls), strict(ssl.PROTOCOL_TLS_CLIENT, client, tmp_path, crls)
    )
    assert answerer.version() == caller.version() == "TLSv1.3"


def test_a_certificate_says_what_was_asked_for() -> None:
    issued = ROOT.issue(
        common_name="n", organization="o", organizational_unit="u", dns=["a.b"], ips=["10.0.0.1"], client=True
    )
    certificate = x509.load_pem_x509_certificate(issued.certificate_pem)
    assert certificate.subject.rfc4514_string() == "CN=n,OU=u,O=o"
    assert certificate.serial_number == issued.serial
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["a.b"]
    assert issued.chain_pem == issued.certificate_pem


def test_a_certificate_without_a_subject_has_critical_names() -> None:
    certificate = x509.load_pem_x509_certificate(ROOT.issue(dns=["a"]).certificate_pem)
    assert certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).critical


def test_lifetime_counts_from_now_or_from_not_before() -> None:
    start = datetime(2020, 1, 1, tzinfo=UTC)
    certificate = x509.load_pem_x509_certificate(
        ROOT.issue(not_before=start, lifetime=timedelta(days=1)).certificate_pem
    )
    assert (certificate.not_valid_before_utc, certificate.not_valid_after_utc) == (start, start + timedelta(days=1))
    soon = x509.load_pem_x509_certificate(ROOT.issue(lifetime=timedelta(seconds=30)).certificate_pem)
    assert soon.not_valid_after_utc > datetime.now(UTC)


def test_an_authority_is_loaded_from_its_files_and_issues_the_same() -> None:
    again = Authority.load(ROOT.certificate_pem, ROOT.key_pem)
    leaf = x509.load_pem_x509_certificate(again.issue(common_name="x").certificate_pem)
    leaf.verify_directly_issued_by(x509.load_pem_x509_certificate(ROOT.certificate_pem))


def test_what_is_not_an_authority_is_not_loaded() -> None:
    leaf = ROOT.issue(common_name="x")
    with pytest.raises(ValueError, match="not a CA"):
        Authority.load(leaf.certificate_pem, leaf.key_pem)
    with pytest.raises(ValueError, match="does not belong"):
        Authority.load(ROOT.certificate_pem, OTHER.key_pem)


def test_keys_stay_out_of_repr() -> None:
    issued = ROOT.issue(common_name="x")
    assert "PRIVATE" not in repr(issued) + repr(ROOT)
    assert x509.load_pem_x509_certificate(ROOT.certificate_pem).public_key().curve.name == ec.SECP256R1.name
