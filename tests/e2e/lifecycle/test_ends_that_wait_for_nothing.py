"""SIGTERM ends the gateway in time, whatever a reload hangs in."""

from __future__ import annotations

import signal
from pathlib import Path

from support import hung_calls as hanging
from support.gateway import DEADLINE, Gateway
from support.raw_connection import GET, connected
from support.site import Site
from support.upstream import ScriptedUpstream

ISSUER = {"name": "login", "issuer": "https://login/", "audience": "qdrant", "algorithm": "ES256"}


def test_while_names_are_resolved(own_site: Site, upstream: ScriptedUpstream, tmp_path: Path) -> None:
    hung = hanging.resolver(tmp_path / "hung")
    config = own_site.write_config(upstream.url)
    with Gateway(config, **hung.environ) as gateway, connected(gateway, own_site.client()) as client:
        own_site.edit_config(
            config,
            upstream={"rest": f"http://{hanging.HOST}:6333"},
            jwt_issuers=[ISSUER | {"jwks": f"https://{hanging.HOST}/keys"}],
        )
        hung.wait()
        client.send(GET)
        assert client.response().status == 200, "nobody notices"
        gateway.process.send_signal(signal.SIGTERM)
        assert client.ended()
        assert gateway.process.wait(DEADLINE) == 0
