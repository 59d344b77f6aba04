"""A server certificate that clients of the one that serves may refuse is warned of, or refused by itself."""

from __future__ import annotations

from support.gateway import Gateway
from support.kept_connection import Caller
from support.operator_tools import operator
from support.site import CONFIG, Site
from support.upstream import ScriptedUpstream
from support.workers import status

from tlsproxy.tls.pki import Issued

NAMES = {"common_name": "localhost", "dns": ["localhost"], "ips": ["127.0.0.1"], "server": True}


def put(site: Site, issued: Issued, chain: bytes) -> None:
    site.replace("server.key", issued.key_pem)
    site.replace("server.pem", chain)


def test_the_certificate_without_its_intermediate(own_site: Site, upstream: ScriptedUpstream) -> None:
    intermediate = own_site.authority.intermediate("issuing")
    first, second = intermediate.issue(**NAMES), intermediate.issue(**NAMES)
    put(own_site, first, first.chain_pem)
    config = own_site.write_config(upstream.url, tls={"on_suspicious": "refuse"})
    with Gateway(config) as gateway:
        put(own_site, second, second.certificate_pem)  # certbot's cert.pem in place of fullchain.pem
        line = gateway.log.wait(lambda line: "missing_intermediate" in line)
        assert "ERROR" in line
        assert "fullchain.pem" in line
        with Caller(gateway, own_site.client()) as caller:
            assert caller.server_serial == first.serial
            # Whatever else changes is published all the same.
            own_site.edit_config(config, identities=CONFIG["identities"][1:])
            assert caller.is_closed()
        assert operator(gateway, "reload", "--dry-run")[0] == 1

        own_site.edit_config(config, tls={"on_suspicious": "warn"})
        gateway.log.wait(lambda line: f"certificate {second.serial:x} until" in line)
        assert any("server.pem: missing_intermediate: " in text for text in status(gateway)["generation"]["warnings"])
        put(own_site, second, second.chain_pem)
        assert operator(gateway, "reload")[0] == 0
        with Caller(gateway, own_site.client("search")) as caller:
            assert caller.server_serial == second.serial
