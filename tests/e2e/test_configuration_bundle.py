"""A signed bundle of configuration from a URL: published whole, verified, kept over an outage and a restart."""

from __future__ import annotations

import json
import ssl
from pathlib import Path

import pytest
from click.testing import CliRunner
from support.gateway import Gateway
from support.kept_connection import Caller
from support.raw_request import Client
from support.site import Site
from support.token_issuer import TokenIssuer
from support.upstream import ScriptedUpstream

from tlsproxy.cli.bundle import bundle as commands

GUESTS = """
tls: {crl: [ca.crl]}
roles: {guest: {access: r}}
identities: [{name: nobodies, match: {cn: nobody}, role: guest}]
"""


class Publisher:
    """The operator of bundles: signs them by the command, and publishes them at a URL."""

    def __init__(self, site: Site, server: TokenIssuer) -> None:
        self.site = site
        self.server = server
        self.version = 0
        self.keygen("bundle")

    def keygen(self, name: str) -> None:
        self._run("keygen", "--out", str(self.site.directory / name))

    def publish(self, text: str = GUESTS, *, version: int = 0, key: str = "bundle", revoked: str = "") -> bytes:
        self.version = version or self.version + 1
        source = self.site.directory / "source"
        source.mkdir(exist_ok=True)
        (source / "guests.yaml").write_text(text)
        serials = [self.site.serial(revoked)] if revoked else []
        (source / "ca.crl").write_bytes(self.site.authority.crl_pem(serials, number=self.version))
        out = source / "signed"
        number = ("--version", str(self.version))
        files = (str(source / "guests.yaml"), str(source / "ca.crl"))
        self._run("sign", "--key", str(self.site.directory / f"{key}.key"), "--out", str(out), *number, *files)
        data = out.read_bytes()
        self.server.answers["/bundle"] = (200, data)
        return data

    def _run(self, *arguments: str) -> None:
        done = CliRunner().invoke(commands, arguments)
        assert done.exit_code == 0, done.output


def configured(site: Site, upstream: ScriptedUpstream, server: TokenIssuer, **more: object) -> Path:
    section = {"url": f"{server.url}/bundle", "public_key": ["bundle.pub"], "refresh": 3600, **more}
    return site.write_config(upstream.url, workers=2, bundle=section)


def status_of(gateway: Gateway) -> dict[str, object]:
    found: dict[str, object] = json.loads(gateway.ask_admin("/status")[1])["bundle"]
    return found


def asked(gateway: Gateway) -> str:
    """The errors and warnings after a reload: of its result, and of the bundle."""
    _, body = gateway.ask_admin("/reload", "POST")
    result = json.loads(body)
    return "\n".join([result["error"], *result["warnings"], str(status_of(gateway)["error"])])


def test_rights_come_and_go_with_bundles_and_nothing_else_takes_their_place(
    own_site: Site, upstream: ScriptedUpstream
) -> None:
    with TokenIssuer() as server:
        publisher = Publisher(own_site, server)
        first = publisher.publish()
        config = configured(own_site, upstream, server)
        cache = own_site.directory / "configuration.bundle"
        with Gateway(config) as gateway, Client(gateway, own_site.client("stranger")) as stranger:
            assert stranger.ask("GET", "/collections").status == 200
            assert status_of(gateway)["version"] == 1
            assert cache.read_bytes() == first
            assert cache.stat().st_mode & 0o777 == 0o600

            # Nothing of these is taken, and the former serves on.
            tampered = first.replace(b'"version": 1', b'"version": 9')
            for data, text in (
                (tampered, "truncated or was altered"),
                (first[:-20], "truncated or was altered"),
                (b"roles: {}", "is no configuration bundle"),
                (publisher.publish("roles: {guest: {acess: r}}"), "guests.yaml:1:17 roles.guest.acess: unknown key"),
                (publisher.publish(GUESTS.replace("ca.crl", "gone.crl")), "gone.crl: is not in version"),
                (
                    publisher.publish(GUESTS.replace("ca.crl", "../ca.pem")),
                    "/../ca.pem: is not in version",
                ),
                (publisher.publish("tls: {cert: x.pem}"), "tls.cert: set twice"),
                (publisher.publish(version=1, revoked="stranger"), "another bundle has the same version"),
            ):
                server.answers["/bundle"] = (200, data)
                assert text in asked(gateway)
                assert status_of(gateway)["version"] == 1
            for code in (404, 302):
                server.answers["/bundle"] = (code, publisher.publish(version=20))
                assert f"the answer was {code}" in asked(gateway)
            publisher.keygen("other")
            publisher.publish(version=20, key="other")
            assert "is signed with the key" in asked(gateway)
            assert cache.read_bytes() == first
            assert stranger.ask("GET", "/collections").status == 200

            # The keys are replaced while it runs: both count, then the new one alone.
            own_site.edit_config(config, bundle={"public_key": ["bundle.pub", "other.pub"]})
            asked(gateway)  # publishes the new list of keys, by which the next one is verified
            assert asked(gateway).strip() == ""
            assert status_of(gateway)["version"] == 20

            # Its CRL takes the stranger's right away at once.
            publisher.publish(version=21, key="other", revoked="stranger")
            assert asked(gateway).strip() == ""
            with (
                Caller(gateway, own_site.client("stranger")) as refused,
                pytest.raises(ssl.SSLError, match="CERTIFICATE_REVOKED"),
            ):
                refused.ask()
            publisher.publish(version=20, key="other")
            assert "is older than 21" in asked(gateway)
            last = cache.read_bytes()

        server.answers["/bundle"] = (503, b"")
        with Gateway(config) as gateway:
            assert cache.read_bytes() == last
            assert (status_of(gateway)["version"], status_of(gateway)["fetched_at"]) == (21, None)
            (warning,) = [
                one for one in json.loads(gateway.ask_admin("/status")[1])["generation"]["warnings"] if "/bundle" in one
            ]
            assert "the answer was 503; the former bundle serves" in warning
            own_site.issue("second", client=True, common_name="nobody")
            with Caller(gateway, own_site.client("second")) as caller:
                assert caller.ask().status == 200
