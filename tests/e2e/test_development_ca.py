"""Certificates of `tlsproxy certs` at a gateway: with Ed25519 keys, and revoked while they are connected."""

from __future__ import annotations

from pathlib import Path

from click.testing import CliRunner
from support.gateway import Gateway
from support.raw_request import Client, alert, ask
from support.site import Site
from support.upstream import ScriptedUpstream

from tlsproxy.cli import main


def certs(directory: Path, command: str, *arguments: str) -> None:
    done = CliRunner().invoke(main, ["certs", command, "--dir", str(directory), *arguments])
    assert done.exit_code == 0, done.output


def test_ed25519_and_a_revocation(own_site: Site, upstream: ScriptedUpstream) -> None:
    directory = own_site.directory
    certs(directory, "init", "--force", "--key-type", "ed25519")
    for name in ("ecdsa", "ed25519"):
        certs(directory, "issue", "--name", name, "--client", "--ou", "platform", "--key-type", name)
    certs(directory, "issue", "--force", "--name", "server", "--server", "--dns", "localhost", "--ip", "127.0.0.1")
    certs(directory, "crl")
    with Gateway(own_site.write_config(upstream.url, tls={"crl": ["ca.crl"]})) as gateway:
        with Client(gateway, own_site.client("ecdsa")) as client:
            assert client.ask().status == 200
        with gateway.connect(own_site.client("ed25519")) as sock:
            assert ask(sock).status == 200
            certs(directory, "revoke", "ed25519")
            assert gateway.audited(event="reload")["result"] == "ok"
            assert sock.recv(1) == b""
        assert alert(gateway, own_site.client("ed25519")) == "SSLV3_ALERT_CERTIFICATE_REVOKED"
