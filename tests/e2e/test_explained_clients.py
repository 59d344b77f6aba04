"""`explain` says of a client, and of the line that it left in the audit log, what the gateway did with it."""

from __future__ import annotations

import json
import ssl
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from click.testing import CliRunner, Result
from support.gateway import Gateway
from support.raw_request import ask
from support.site import CLIENTS, Site

from tlsproxy.cli import main
from tlsproxy.tls.pki import Authority

LONG_AGO = {"not_before": datetime.now(UTC) - timedelta(days=3), "lifetime": timedelta(days=1)}


def explain(gateway: Gateway, *words: object, stdin: str | None = None) -> Result:
    return CliRunner().invoke(main, ["explain", "--config", str(gateway.config), *map(str, words)], input=stdin)


@pytest.mark.parametrize("client", ["foreign", "expired", "none", "admin", "stranger"])
def test_the_same_verdict_as_the_gateways(site: Site, shared_gateway: Gateway, client: str) -> None:
    site.issue("foreign", authority=Authority.create("foreign"), client=True, **CLIENTS["admin"])
    site.issue("expired", client=True, **CLIENTS["admin"], **LONG_AGO)
    context = site.client(None if client == "none" else client)
    record = asked(shared_gateway, context)
    file = "none" if client == "none" else site.directory / f"{client}.pem"
    now = explain(shared_gateway, file, "get", "/collections")
    again = explain(shared_gateway, "--line", "-", stdin=json.dumps(record))
    for result in (now, again):
        assert result.exit_code == (0 if record["result"] == "ok" else 1)
        last = result.stdout.splitlines()[-1]
        assert last == "decision   allowed" if record["result"] == "ok" else f"({record['reason']})" in last
        assert last.startswith("no connection: ") == ("event" in record)


def asked(gateway: Gateway, context: ssl.SSLContext) -> dict[str, Any]:
    """The audit line of a request over a new connection, or of the handshake that was refused."""
    context.maximum_version = ssl.TLSVersion.TLSv1_2  # where a client hears of a refusal within its handshake
    try:
        with gateway.connect(context) as sock:
            ask(sock)
    except ssl.SSLError:
        return gateway.audited(event="handshake")
    return gateway.audited(api="/collections")
