"""While a gateway drains its files, signals and operators change it as ever: rights go on being taken away."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from support.gated_answers import busy, gated
from support.gateway import DEADLINE, Gateway
from support.notify_socket import listening
from support.raw_connection import GET, RawClient, connected
from support.site import CONFIG, Site
from support.upstream import ScriptedUpstream

OLD, NEW = "the key of yesterday", "the key of today"


def asking(key: str) -> bytes:
    return b"GET /collections HTTP/1.1\r\nhost: h\r\napi-key: %b\r\n\r\n" % key.encode()


@contextmanager
def answered(gateway: Gateway, site: Site, name: str | None, request: bytes = GET) -> Iterator[RawClient]:
    """A client that has been answered once."""
    with connected(gateway, site.client(name)) as client:
        client.send(request)
        assert client.response()
        yield client


@pytest.mark.parametrize("workers", [1, 2])
def test_rights_are_taken_away(own_site: Site, upstream: ScriptedUpstream, tmp_path: Path, workers: int) -> None:
    own_site.write("ca.crl", own_site.authority.crl_pem(number=1))
    own_site.write("api.key", OLD.encode())
    config = own_site.write_config(
        upstream.url,
        workers=workers,
        tls={"crl": ["ca.crl"]},
        service={"verify_https_client_certificate": False, "api_key_file": "api.key"},
        limits={"drain_grace": 60, "drain_timeout": 60, "linger_timeout": 0.1},
    )
    with (
        listening(str(tmp_path / "notify")) as systemd,
        Gateway(config, NOTIFY_SOCKET=systemd.address) as gateway,
        answered(gateway, own_site, "search") as unmapped,
        answered(gateway, own_site, "ingest") as revoked,
        answered(gateway, own_site, None, asking(OLD)) as keyed,
        connected(gateway, own_site.client()) as innocent,
        gated(upstream) as let,
    ):
        asked = len(upstream.requests)
        innocent.send(GET)
        busy(upstream, asked + 1)
        assert "READY" in systemd.next()
        gateway.process.send_signal(signal.SIGTERM)
        assert systemd.next()["STOPPING"] == "1"

        own_site.edit_config(config, identities=CONFIG["identities"][:2])
        assert unmapped.ended()
        assert gateway.audited(event="connection")["reason"] == "no_role"

        own_site.replace("ca.crl", own_site.authority.crl_pem([own_site.serial("ingest")], number=2))
        gateway.hang_up()
        assert revoked.ended()
        assert gateway.reloaded(reason="sighup")

        own_site.replace("api.key", NEW.encode())
        code, body = gateway.ask_admin("/reload", "POST")
        assert (code, json.loads(body)["error"]) == (200, "")
        keyed.send(asking(OLD))
        assert keyed.response().status == 401

        let.set()
        response = innocent.response()
        assert (response.status, response.fields["connection"]) == (200, "close")
        assert gateway.process.wait(DEADLINE) == 0
        assert systemd.silent(), "nothing is READY after STOPPING, nor RELOADING"
        assert gateway.stop()[-1]["event"] == "stop"
