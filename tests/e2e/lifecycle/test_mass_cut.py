"""`limits.mass_cut` holds back a publication that ends too many connections; `reload --dry-run` foretells it."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import pytest
from support.gateway import Gateway
from support.kept_connection import Caller
from support.operator_tools import operator
from support.polling import until
from support.site import CONFIG, Site
from support.upstream import ScriptedUpstream
from support.workers import at_each, status

SEARCH = [rule for rule in CONFIG["identities"] if rule["role"] == "search"]


def verdict(gateway: Gateway) -> dict[str, Any]:
    return dict(status(gateway)["last_reload"])


def left(gateway: Gateway, count: int) -> None:
    """Returns once so many connections are open."""
    until(lambda: status(gateway)["connections"]["open"] == count)


def told_everywhere(gateway: Gateway) -> None:
    """All connections but one would be cut."""
    line = gateway.log.wait(lambda line: "held back by limits.mass_cut" in line)
    assert "ERROR" in line
    assert "OU=platform" in line
    assert "CN=ingest-7" in gateway.reloaded("failed")["error"]
    told = verdict(gateway)
    cut, everybody = told["consequences"]["cut"], told["consequences"]["connections"]
    assert (told["result"], told["generation"]) == ("held", 1)
    assert (cut["reasons"], cut["count"]) == ({"no_role": everybody - 1}, everybody - 1)
    assert "tlsproxy_reload_held 1.0" in gateway.ask_admin("/metrics")[1]
    code, ready = gateway.ask_admin("/readyz")
    assert (code, "held back by limits.mass_cut" in ready) == (200, True)

    code, out, err = operator(gateway, "reload")  # which considers it anew
    assert (code, out) == (1, "")
    assert "held back by limits.mass_cut" in err
    assert "rest 127.0.0.1 CN=ingest-7, role ingest: no_role\n" in err
    assert err.endswith("generation 1 serves without it\n")


@pytest.mark.parametrize("workers", [1, 2])
def test_held_foretold_and_forced(own_site: Site, upstream: ScriptedUpstream, workers: int) -> None:
    guard = {"mass_cut": {"number": 1, "share": 0.5}}
    config = own_site.write_config(upstream.url, limits=guard, workers=workers)
    with Gateway(config) as gateway, ExitStack() as stack:
        leaving = stack.enter_context(ExitStack())
        if workers == 2:
            at_each(gateway, own_site, leaving)
        staying, searcher = (stack.enter_context(Caller(gateway, own_site.client(one))) for one in ("admin", "search"))
        callers = [leaving.enter_context(Caller(gateway, own_site.client(one))) for one in ("admin", "admin", "ingest")]
        for caller in (staying, searcher, *callers):
            assert caller.ask("/healthz").status == 200

        own_site.edit_config(config, identities=SEARCH)
        told_everywhere(gateway)
        assert staying.ask().status == searcher.ask().status == 200

        own_site.edit_config(config, identities=CONFIG["identities"], roles={"auditor": {"access": "r"}})
        gateway.reloaded()  # by itself, for it ends nobody
        assert "tlsproxy_reload_held 0.0" in gateway.ask_admin("/metrics")[1]
        own_site.edit_config(config, identities=SEARCH)
        gateway.reloaded("failed")

        leaving.close()
        left(gateway, 2)
        code, out, err = operator(gateway, "reload", "--dry-run")
        assert (code, err) == (0, "")
        assert out.startswith("would be published\n  rule platform removed\n")
        assert "1 of 2 live connections cut (no_role 1)\n" in out
        assert "1 client that was here lately could not come back (no_role 1)\n" in out
        assert "CN=ingest-7, role ingest: no_role\n" in out
        assert f"  certificate {own_site.directory / 'server.pem'}: good\n" in out
        assert out.endswith("nothing has changed: generation 2 goes on serving\n")
        assert (verdict(gateway)["result"], staying.ask().status) == ("held", 200)

        with Caller(gateway, own_site.client()) as again:
            assert again.ask().status == 200
            code, out, err = operator(gateway, "reload", "--dry-run")
            assert (code, out.count("role admin: no_role")) == (1, 2)
            code, out, err = operator(gateway, "reload", "--force")
            assert (code, err) == (0, "")
            assert out.startswith("published: generation 3\n  rule platform removed\n")
            assert again.is_closed()
        assert staying.is_closed()
        assert searcher.ask().status == 200
        assert "tlsproxy_reload_held 0.0" in gateway.ask_admin("/metrics")[1]
        reloads = [record for record in gateway.stop() if record.get("event") == "reload"]
    # The rehearsals have left none.
    assert [record["result"] for record in reloads if record["reason"] == "admin"] == ["failed", "ok"]
