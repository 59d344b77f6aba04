"""A reload that finds nothing new makes no generation, whatever was done to the files meanwhile."""

from __future__ import annotations

import json

from support.gateway import Gateway
from support.kept_connection import Caller
from support.site import Site
from support.upstream import ScriptedUpstream

ROUNDS = 2


def test_the_generation_stays(own_site: Site, upstream: ScriptedUpstream) -> None:
    own_site.write("ca.crl", own_site.authority.crl_pem())
    config = own_site.write_config(upstream.url, tls={"crl": ["ca.crl"], "poll_interval": 3600})
    names = ("server.pem", "server.key", "ca.pem", "ca.crl", config.name)
    first = {name: (own_site.directory / name).read_bytes() for name in names}
    with Gateway(config) as gateway, Caller(gateway, own_site.client()) as kept:

        def reloaded() -> tuple[str, int]:
            verdict = json.loads(gateway.ask_admin("/reload", "POST")[1])
            assert kept.ask().status == 200
            return verdict["result"], verdict["generation"]

        digest = json.loads(gateway.ask_admin("/status")[1])["generation"]["digest"]
        for turn in range(ROUNDS):
            for name, data in first.items():
                own_site.replace(name, data)
            assert reloaded() == ("unchanged", 1)
            for name in ("server.pem", "ca.pem", config.name):
                own_site.replace(name, first[name] + b"# %d\n" % turn)
            assert reloaded() == ("unchanged", 1)
            own_site.replace("ca.crl", b"")
            own_site.replace("server.key", b"")
            assert reloaded() == ("failed", 1)
        for name, data in first.items():
            own_site.replace(name, data)
        assert reloaded() == ("unchanged", 1)
        assert json.loads(gateway.ask_admin("/status")[1])["generation"]["digest"] == digest
