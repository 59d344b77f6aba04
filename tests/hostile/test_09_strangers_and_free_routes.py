"""What strangers cannot use up, what free routes do not give, and which secrets nobody is shown.

One section for each bullet of the kind; each has a gateway of its own where it needs other settings.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from support.gateway import Gateway
from support.site import Site
from support.upstream import ScriptedUpstream

from tlsproxy.cli import main

# Secrets in what is told of a configuration

SECRET = "S3CRETzQ9xW7vK"
MISTAKEN = [
    "api_key: *{}",
    "api_key: !{}",
    "api_key: !!{} x",
    "api_key: !!bool {}",
    "api_key: &{}",
    "api_key: %{}",
    "api_key: @{}",
    "api_key: `{}",
    "api_key: |{}",
    "api_key: {{{}",
    "api_key: [{}]",
    "api_key: {{{0}: 1, {0}: 2}}",
    'api_key: "{}',
    "api_key: x: {}",
    "api_key:\n  {}: x",
    "{{api_key:{}}}",
]


def mistaken(config: Path, mistake: str) -> str:
    """The same configuration with a mistake in its first section."""
    text = config.read_text()
    said = mistake.format(SECRET)
    section = f"upstream_: {said}" if said.startswith("{") else f"service:\n  {said}"
    lines = [line for line in text.splitlines() if not line.startswith(("service:", "  host:", "  http_port:"))]
    return f"{section}\n" + "\n".join(lines) + "\n"


@pytest.mark.parametrize("mistake", MISTAKEN)
def test_check_repeats_no_secret_that_yaml_took_for_something_else(site: Site, mistake: str) -> None:
    config = site.write_config("http://127.0.0.1:1")
    config.write_text(mistaken(config, mistake))
    result = CliRunner().invoke(main, ["check", "--config", str(config)])
    assert result.exit_code == 2
    assert f"{config}:" in result.output
    assert SECRET.lower() not in result.output.lower()
    assert result.exception is None or isinstance(result.exception, SystemExit)


def test_nor_does_a_reload_in_the_log_the_status_or_the_audit_log(own_site: Site, upstream: ScriptedUpstream) -> None:
    config = own_site.write_config(upstream.url)
    sound = config.read_text()
    told = []
    with Gateway(config) as gateway:
        for mistake in MISTAKEN[:4]:
            own_site.replace(config.name, mistaken(config, mistake).encode())
            told.append(json.dumps(gateway.reloaded("failed")))
            told.append(gateway.ask_admin("/status")[1])
            own_site.replace(config.name, sound.encode())
            gateway.hang_up()
            gateway.reloaded()
        told += map(json.dumps, gateway.stop())
        told += gateway.log.seen
    assert any(f"{config}:" in line for line in told)
    assert SECRET.lower() not in "\n".join(told).lower()


def test_the_query_of_a_key_sets_url_is_shown_nowhere(own_site: Site, upstream: ScriptedUpstream) -> None:
    """Neither is what a client library makes of it, nor that it changed, in more than the name of the setting."""
    issuer = {"name": "login", "issuer": "https://login/", "audience": "qdrant", "algorithm": "ES256"}
    url = f"http://127.0.0.1:1/keys?token={SECRET}"
    config = own_site.write_config(upstream.url, jwt_issuers=[issuer | {"jwks": url}])
    told = [CliRunner().invoke(main, ["check", "--config", str(config)]).output]
    with Gateway(config) as gateway:
        told.append(gateway.ask_admin("/status")[1])
        own_site.edit_config(config, jwt_issuers=[issuer | {"jwks": f"{url}2"}])
        told.append(json.dumps(gateway.reloaded()))
        told += [gateway.ask_admin(path)[1] for path in ("/status", "/metrics", "/")]
        told += map(json.dumps, gateway.stop())
        told += gateway.log.seen
    assert any("http://127.0.0.1:1/keys" in line for line in told)
    assert SECRET not in "\n".join(told)
