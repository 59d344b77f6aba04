"""Certificates, keys and CRLs as editors and other tools leave them are read; else the error has the command."""

from __future__ import annotations

import json

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from support.gateway import Gateway
from support.kept_connection import enters
from support.raw_request import alert
from support.site import CLIENTS, Site
from support.upstream import ScriptedUpstream


def test_they_are_read_or_told_how_to_convert(own_site: Site, upstream: ScriptedUpstream) -> None:
    site = own_site
    lost = site.issue("lost", client=True, **CLIENTS["admin"])
    server, key = ((site.directory / name).read_bytes() for name in ("server.pem", "server.key"))
    ca, crl = site.authority.certificate_pem, site.authority.crl_pem([lost])
    site.write("server.pem", server.decode().encode("utf-16"))
    site.write("server.key", b"\xef\xbb\xbf" + key.replace(b"\n", b"\r\n"))
    site.write("trusted.pem", b"".join(b"#" + line for line in server.splitlines(True)) + ca.replace(b"\n", b"\n    "))
    site.write("ca.crl", b"\xff\xfe" + crl.decode().encode("utf-16-le"))
    with Gateway(site.write_config(upstream.url, tls={"ca_cert": "trusted.pem", "crl": ["ca.crl"]})) as gateway:
        assert enters(gateway, site)
        assert alert(gateway, site.client("lost")) == "SSLV3_ALERT_CERTIFICATE_REVOKED"
        der = serialization.Encoding.DER
        site.replace("trusted.pem", x509.load_pem_x509_certificate(ca).public_bytes(der))
        site.replace("ca.crl", x509.load_pem_x509_certificate(server).public_bytes(der))
        assert gateway.ask_admin("/reload", "POST")[0] != 200
        error = json.loads(gateway.ask_admin("/status")[1])["last_reload"]["error"]
        for told in ("`openssl x509 -inform DER -in ", "it is a certificate in DER form"):
            assert told in error
        assert enters(gateway, site)
