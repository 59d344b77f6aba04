"""A signed bundle of configuration from a URL: published whole, verified, kept over an outage and a restart."""

from __future__ import annotations

import json
import ssl
import time
from hashlib import sha256
from pathlib import Path

import pytest
from click.testing import CliRunner
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from support.gateway import Gateway
from support.kept_connection import Caller
from support.raw_request import Client
from support.site import Site
from support.token_issuer import TokenIssuer
from support.upstream import ScriptedUpstream

from tlsproxy.cli.bundle import bundle as commands
from tlsproxy.cli.check import check
from tlsproxy.config.bundle import signed, unverified

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

    def publish(
        self, text: str = GUESTS, *, version: int = 0, key: str = "bundle", revoked: str = "", days: int = 0
    ) -> bytes:
        self.version = version or self.version + 1
        source = self.site.directory / "source"
        source.mkdir(exist_ok=True)
        (source / "guests.yaml").write_text(text)
        serials = [self.site.serial(revoked)] if revoked else []
        (source / "ca.crl").write_bytes(self.site.authority.crl_pem(serials, number=self.version))
        out = source / "signed"
        number = ("--version", str(self.version), *(("--days", str(days)) if days else ()))
        files = (str(source / "guests.yaml"), str(source / "ca.crl"))
        self._run("sign", "--key", str(self.site.directory / f"{key}.key"), "--out", str(out), *number, *files)
        data = out.read_bytes()
        self.server.answers["/bundle"], self.server.etags["/bundle"] = (200, data), f'"{sha256(data).hexdigest()}"'
        return data

    def publish_until(self, expires: float) -> None:
        """The last one again, with a higher version and an end that the command does not offer."""
        self.version += 1
        key = load_pem_private_key((self.site.directory / "bundle.key").read_bytes(), None)
        assert isinstance(key, Ed25519PrivateKey)
        former = unverified("bundle", self.server.answers["/bundle"][1])
        data = signed(key, self.version, expires - 100, expires, former.files)
        self.server.answers["/bundle"], self.server.etags["/bundle"] = (200, data), ""

    def _run(self, *arguments: str) -> None:
        done = CliRunner().invoke(commands, arguments)
        assert done.exit_code == 0, done.output


def configured(site: Site, upstream: ScriptedUpstream, server: TokenIssuer, **more: object) -> Path:
    section = {"url": f"{server.url}/bundle", "public_key": ["bundle.pub"], "refresh": 3600, **more}
    return site.write_config(upstream.url, workers=2, bundle=section)


def metric(gateway: Gateway, name: str) -> float:
    return float(gateway.ask_admin("/metrics")[1].split(f"\n{name} ")[1].split()[0])


def part(gateway: Gateway) -> str:
    found: str = json.loads(gateway.ask_admin("/status")[1])["readiness"]["parts"]["bundle"]
    return found


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
            assert "cannot be fetched: the answer was 503" in part(gateway)
            assert metric(gateway, "tlsproxy_bundle_last_fetch_failed") == 1
            own_site.issue("second", client=True, common_name="nobody")
            with Caller(gateway, own_site.client("second")) as caller:
                assert caller.ask().status == 200


def test_one_that_is_added_while_it_runs_is_fetched_by_interval_and_told_until_its_end(
    own_site: Site, upstream: ScriptedUpstream
) -> None:
    """Over TLS with a CA of its own, beside `include`."""
    certificate = (own_site.directory / "server.pem").read_bytes() + (own_site.directory / "server.key").read_bytes()
    pieces = own_site.directory / "conf.d"
    pieces.mkdir()
    (pieces / "roles.yaml").write_text("roles: {guest: {access: r}}")
    rules = "identities: [{name: nobodies, match: {cn: nobody}, role: guest}]"
    with TokenIssuer(own_site.write("both.pem", certificate)) as server:
        publisher = Publisher(own_site, server)
        config = own_site.write_config(upstream.url, workers=2, include=["conf.d/*.yaml"])
        with Gateway(config) as gateway, Client(gateway, own_site.client("stranger")) as stranger:
            assert stranger.ask().status == 403
            assert "bundle" not in json.loads(gateway.ask_admin("/status")[1])["readiness"]["parts"]
            settings = {"url": f"{server.url}/bundle", "public_key": "bundle.pub", "refresh": 1}
            publisher.publish(rules, days=30)
            own_site.edit_config(config, bundle=settings)
            assert "CERTIFICATE_VERIFY_FAILED" in gateway.reloaded("failed")["error"] + part(gateway)
            own_site.edit_config(config, bundle={"ca_cert": "ca.pem"})
            gateway.reloaded()
            assert stranger.ask().status == 200
            assert part(gateway) == "ok"
            assert "configuration bundle of https://127.0.0.1" in gateway.ask_admin("/")[1]

            told = CliRunner().invoke(check, ["--config", str(config)]).stdout
            assert f"bundle of {server.url}/bundle: version 1, signed at " in told

            # An unchanged bundle is not sent again, and makes no generation.
            generation = metric(gateway, "tlsproxy_generation")
            for _ in range(2):
                assert server.unchanged.acquire(timeout=20)
            assert metric(gateway, "tlsproxy_generation") == generation
            assert metric(gateway, "tlsproxy_bundle_version") == 1
            assert metric(gateway, "tlsproxy_bundle_last_fetch_failed") == 0
            signed_at = metric(gateway, "tlsproxy_bundle_created_timestamp_seconds")
            assert signed_at <= metric(gateway, "tlsproxy_bundle_last_success_timestamp_seconds")

            # One with a fault is not taken in part.
            publisher.publish("tls: {crl: [ca.crl, broken.crl]}")
            gateway.log.wait(lambda line: "broken.crl: is not in version 2" in line)
            assert (stranger.ask().status, metric(gateway, "tlsproxy_bundle_version")) == (200, 1)
            publisher.publish("identities: []")
            gateway.reloaded()
            stranger.close()  # as the gateway does, sooner or later
            assert stranger.ask().status == 403

            # It serves on beyond its end, which is told before and after.
            publisher.publish(rules)
            publisher.publish_until(time.time() + 2)
            assert "the bundle of https://127.0.0.1" in asked(gateway)
            gateway.log.wait(lambda line: "ERROR" in line and "the bundle of https://" in line and "expired at" in line)
            assert "version 5 expired at" in part(gateway)
            assert 'tlsproxy_expiry_timestamp_seconds{kind="bundle",name="https://' in gateway.ask_admin("/metrics")[1]
            assert stranger.ask().status == 200
            publisher.publish(rules)
            assert "bundle" not in asked(gateway)

            server.held.add("/bundle")
            assert server.waiting.acquire(timeout=20)
            gateway.stop()
            assert gateway.process.returncode == 0, "a fetch that hangs does not keep it from stopping"
