"""`reload --dry-run` names who would be cut, over each protocol and for each reason, and changes nothing."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from support.gateway import Gateway
from support.grpc_upstream import GrpcUpstream
from support.h2_raw_client import h2
from support.kept_connection import Caller
from support.operator_tools import operator
from support.site import CONFIG, Site
from support.upstream import ScriptedUpstream
from support.workers import status

from tlsproxy.tls.pki import Authority

ALL = {"rest", "grpc", "tcp"}
CHANGES: dict[str, tuple[Callable[[Site], dict[str, bytes]], dict[str, Any], set[str]]] = {
    "certificate_revoked": (
        lambda site: {"ca.crl": site.authority.crl_pem([site.serial("admin")], number=2)},
        {},
        ALL,
    ),
    "issuer_not_trusted": (
        lambda _: {"ca.pem": Authority.create("another").certificate_pem},
        {"tls": {"crl": []}},
        ALL,
    ),
    "no_role": (lambda _: {}, {"identities": CONFIG["identities"][1:]}, ALL),
    "role_not_allowed": (lambda _: {}, {"listener": {"allow": ["search"]}}, {"tcp"}),
    "upstream_changed": (lambda _: {}, {"listener": {"upstream": "127.0.0.1:9"}}, {"tcp"}),
}
"""By the reason: what becomes of the files, of the configuration or its listener, and over which protocols it cuts."""


def test_who_would_be_cut_by_what(own_site: Site, upstream: ScriptedUpstream, grpc_upstream: GrpcUpstream) -> None:
    listener = {"port": 0, "mode": "tcp", "upstream": upstream.url.removeprefix("http://"), "allow": ["admin"]}
    own_site.write("ca.crl", own_site.authority.crl_pem(number=1))
    config = own_site.write_config(
        upstream.url, grpc=grpc_upstream.url, workers=2, listeners=[listener],
        tls={"crl": ["ca.crl"]}, limits={"mass_cut": {"number": 0}},
    )  # fmt: skip
    names = (config.name, "ca.crl", "ca.pem")
    with Gateway(config) as gateway, ExitStack() as stack:
        rest = stack.enter_context(Caller(gateway, own_site.client()))
        calls = stack.enter_context(h2(gateway, own_site))
        relayed = stack.enter_context(gateway.connect(own_site.client(), port=gateway.ports["TCP"][0]))
        relayed.sendall(b"GET /healthz HTTP/1.1\r\nhost: h\r\n\r\n")
        assert rest.ask().status == 200
        assert calls.status(calls.call()) == 0
        assert relayed.recv(4)
        good = {name: (own_site.directory / name).read_bytes() for name in names}
        for reason, (files, sections, protocols) in CHANGES.items():
            for name, data in files(own_site).items():
                own_site.replace(name, data)
            changed = {"listeners": [listener | sections["listener"]]} if "listener" in sections else sections
            own_site.edit_config(config, **changed)
            gateway.log.wait(lambda line, reason=reason: "held back" in line and f"({reason} " in line)  # type: ignore[misc]
            code, out, _ = operator(gateway, "reload", "--dry-run")
            assert code == 1
            assert f"{len(protocols)} of 3 live connections cut ({reason} {len(protocols)})" in out
            for protocol in ALL:
                named = f" {protocol} 127.0.0.1 CN=alice,OU=platform, role admin: {reason}\n"
                assert out.count(named) == (protocol in protocols)
            for name, data in good.items():
                own_site.replace(name, data)
            assert operator(gateway, "reload")[0] == 0
        assert status(gateway)["generation"]["number"] == 1
        assert rest.ask().status == 200
        assert calls.status(calls.call()) == 0
