"""A CA by which OpenSSL verifies no client is told of beside others, and refused where there is no other."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID
from support.certificates import CN, name
from support.gateway import Gateway
from support.kept_connection import Caller
from support.site import Site
from support.upstream import ScriptedUpstream

SIGNS_CRLS = x509.KeyUsage(
    digital_signature=False,
    content_commitment=False,
    key_encipherment=False,
    data_encipherment=False,
    key_agreement=False,
    key_cert_sign=False,
    crl_sign=True,
    encipher_only=False,
    decipher_only=False,
)


def odd_ca(*extensions: x509.ExtensionType, key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | None = None) -> bytes:
    key, now = key or ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)
    builder = x509.CertificateBuilder(name((CN, "odd")), name((CN, "odd")), key.public_key(), 1)
    builder = builder.not_valid_before(now - timedelta(minutes=1)).not_valid_after(now + timedelta(days=9))
    for extension in (x509.BasicConstraints(ca=True, path_length=None), *extensions):
        builder = builder.add_extension(extension, critical=True)
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


ODD = {
    "keyCertSign": odd_ca(SIGNS_CRLS),
    "clientAuth": odd_ca(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH])),
    "too short": odd_ca(key=rsa.generate_private_key(65537, 1024)),  # noqa: S505 - that is what is refused
}


def test_told_of_or_refused(own_site: Site, upstream: ScriptedUpstream) -> None:
    client, good = own_site.client(), own_site.authority.certificate_pem
    with Gateway(own_site.write_config(upstream.url)) as gateway, Caller(gateway, client) as kept:
        for reason, odd in ODD.items():
            own_site.replace("ca.pem", good + odd)
            gateway.reloaded()
            warnings = json.loads(gateway.ask_admin("/status")[1])["generation"]["warnings"]
            assert any("CN=odd" in each and reason in each for each in warnings), warnings
            own_site.replace("ca.pem", odd)
            assert reason in gateway.reloaded("failed")["error"]
            assert kept.ask().status == 200
            with Caller(gateway, client) as new:
                assert new.ask().status == 200
