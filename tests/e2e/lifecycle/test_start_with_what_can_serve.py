"""A start does with what time or the environment will mend, or ends with a status that is tried again."""

from __future__ import annotations

import json
import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from click.testing import CliRunner
from support.gateway import DEADLINE, Gateway
from support.kept_connection import Caller
from support.site import Site
from support.upstream import ScriptedUpstream

from tlsproxy.cli import main
from tlsproxy.tls.pki import Authority

NOW = datetime.now(UTC)
SERVER = {"common_name": "localhost", "dns": ["localhost"], "ips": ["127.0.0.1"], "server": True}


def checked(config: Path, *options: str) -> tuple[int, str]:
    result = CliRunner().invoke(main, ["check", *options, "--config", str(config)])
    return result.exit_code, result.stderr


def test_what_time_will_mend_is_done_without(own_site: Site, upstream: ScriptedUpstream) -> None:
    """A CRL past its next update, one dated ahead, a certificate and a CA that start later, a name without address."""
    other, later = Authority.create("other"), Authority.create("later")
    for name, authority, start in (("a", own_site.authority, -9), ("b", other, -9), ("c", later, 1)):
        dates = NOW + timedelta(hours=start), NOW + timedelta(hours=start + (5 if name == "a" else 20))
        own_site.write(f"{name}.crl", authority.crl_pem(this_update=dates[0], next_update=dates[1]))
    cas = own_site.authority.certificate_pem + other.certificate_pem + later.certificate_pem
    own_site.write("ca.pem", cas)
    own_site.issue("server", not_before=datetime.now(UTC) + timedelta(seconds=200), **SERVER)
    own_site.issue("other", authority=other, client=True, common_name="other", organizational_unit="platform")
    config = own_site.write_config(
        upstream.url,
        tls={"crl": ["a.crl", "b.crl", "c.crl"]},
        upstream={"rest": "http://nowhere.invalid:1"},
    )
    code, told = checked(config)
    assert code == 0
    for text in ("is not valid before", "dated", "nowhere.invalid", "was to be replaced"):
        assert text in told
    with Gateway(config) as gateway:
        last = json.loads(gateway.ask_admin("/status")[1])["last_reload"]
        assert (last["result"], last["trigger"]) == ("partial", "start")
        context = own_site.client("other")
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE  # it is not valid yet for clients either
        with Caller(gateway, context) as known:
            assert known.ask().status == 502
        assert "was to be replaced" in gateway.ask_admin("/readyz")[1]


@pytest.mark.parametrize(
    ("spoil", "expected", "reason"),
    [
        ({"not_before": NOW + timedelta(days=1)}, 1, "a start will be tried again"),
        ({"not_before": NOW - timedelta(days=2), "lifetime": timedelta(days=1)}, 2, "expired at"),
    ],
)
def test_what_cannot_serve_says_whether_a_person_is_needed(
    own_site: Site, upstream: ScriptedUpstream, spoil: dict[str, object], expected: int, reason: str
) -> None:
    own_site.issue("server", **SERVER, **spoil)
    config = own_site.write_config(upstream.url)
    code, told = checked(config)
    assert (code, reason in told) == (expected, True), told
    code, told = checked(config, "--reload")  # one that runs goes on with the certificate that it has
    assert (code, told.startswith("warning: "), reason in told) == (0, True, True)
    gateway = Gateway(config)
    assert gateway.process.wait(DEADLINE) == expected
    assert reason in "".join(gateway.log.drain())
    own_site.write("ca.pem", b"")
    assert checked(config, "--reload")[0] == 2
