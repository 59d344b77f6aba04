"""The server's intermediate is issued anew, and its leaf stays: clients are sent the new one from then on."""

from __future__ import annotations

import ssl

from support.certificates import certified
from support.gateway import Gateway
from support.rotations import SERVER
from support.site import Site
from support.upstream import ScriptedUpstream


def sent(gateway: Gateway, site: Site) -> list[bytes]:
    """The chain of the server's that a new client is sent, in DER."""
    with gateway.connect(site.client()) as sock:
        chain = sock._sslobj.get_unverified_chain()  # type: ignore[attr-defined]
        return [certificate.public_bytes(2) for certificate in chain]


def test_same_leaf(own_site: Site, upstream: ScriptedUpstream) -> None:
    below = own_site.authority.intermediate("below")
    issued = below.issue(**SERVER)
    own_site.write("server.pem", issued.chain_pem)
    own_site.write("server.key", issued.key_pem)
    with Gateway(own_site.write_config(upstream.url)) as gateway:
        leaf, intermediate = sent(gateway, own_site)
        assert intermediate == ssl.PEM_cert_to_DER_cert(below.certificate_pem.decode())
        anew = certified(below, own_site.authority).certificate_pem
        own_site.replace("server.pem", issued.certificate_pem + anew)
        gateway.reloaded()
        assert sent(gateway, own_site) == [leaf, ssl.PEM_cert_to_DER_cert(anew.decode())]
