"""Roles and rules are edited while clients are connected: what changed counts from their next request on."""

from __future__ import annotations

import json

from support.gateway import Gateway
from support.kept_connection import Caller
from support.site import CONFIG, Site
from support.upstream import ScriptedUpstream


def test_a_narrowed_role_counts_on_an_open_connection(own_site: Site, upstream: ScriptedUpstream) -> None:
    config = own_site.write_config(upstream.url)
    with Gateway(config) as gateway, Caller(gateway, own_site.client()) as admin:
        assert admin.ask("/collections/docs", "DELETE").status == 200
        own_site.edit_config(config, roles={"admin": {"access": "r"}})
        gateway.reloaded()

        refused = admin.ask("/collections/docs", "DELETE")
        assert refused.status == 403
        assert "Global manage access is required" in refused.body
        assert gateway.audited(status=403)["reason"] == "needs_manage"
        # It may still be here, and do what its role may.
        assert admin.ask("/collections").status == 200
        assert [request.line for request in upstream.requests] == [
            "DELETE /collections/docs HTTP/1.1",
            "GET /collections HTTP/1.1",
        ]


def test_a_widened_role_too(own_site: Site, upstream: ScriptedUpstream) -> None:
    config = own_site.write_config(upstream.url)
    with Gateway(config) as gateway, Caller(gateway, own_site.client("search")) as search:
        assert search.ask("/collections/docs", "DELETE").status == 403
        own_site.edit_config(config, roles={"search": {"access": "m"}})
        gateway.reloaded()
        assert search.ask("/collections/docs", "DELETE").status == 200


def test_a_rule_that_was_added_admits_a_stranger_that_is_connected(own_site: Site, upstream: ScriptedUpstream) -> None:
    config = own_site.write_config(upstream.url)
    with Gateway(config) as gateway, Caller(gateway, own_site.client("stranger")) as stranger:
        assert stranger.ask().status == 403
        assert gateway.audited(status=403)["reason"] == "no_role"
        rule = {"name": "nobodies", "match": {"cn": "nobody"}, "role": "search"}
        own_site.edit_config(config, identities=[*CONFIG["identities"], rule])
        gateway.reloaded()
        assert stranger.ask().status == 200
        audited = gateway.audited(status=200)
        assert (audited["role"], audited["rule"]) == ("search", "nobodies")


def test_a_rule_that_was_removed_takes_all_rights(own_site: Site, upstream: ScriptedUpstream) -> None:
    config = own_site.write_config(upstream.url)
    with Gateway(config) as gateway, Caller(gateway, own_site.client()) as admin:
        assert admin.ask().status == 200
        own_site.edit_config(config, identities=CONFIG["identities"][1:])
        gateway.reloaded()
        assert admin.is_closed()
        assert gateway.audited(event="connection")["reason"] == "no_role"
        with Caller(gateway, own_site.client()) as again:
            assert again.ask().status == 403
        assert gateway.audited(status=403)["reason"] == "no_role"


def test_mistakes_leave_the_old_roles_and_are_told_all_at_once(own_site: Site, upstream: ScriptedUpstream) -> None:
    config = own_site.write_config(upstream.url)
    good = config.read_bytes()
    with Gateway(config) as gateway, Caller(gateway, own_site.client("search")) as search:
        own_site.edit_config(
            config,
            roles={"search": {"access": "m"}},
            rolls={},
            identities=[*CONFIG["identities"], {"name": "more", "match": {"cn": "a"}, "role": "serach"}],
        )
        status, body = gateway.ask_admin("/reload", "POST")
        error = json.loads(body)["error"]
        assert status == 409
        for mistake in (
            "rolls: unknown key (did you mean 'roles'?)",
            "no role is called 'serach' (did you mean 'search'?)",
        ):
            assert mistake in error
        assert error.count(f"{config}:") == 2
        for mistake in error.splitlines():
            gateway.log.wait(lambda line, mistake=mistake: line.endswith(mistake))
        assert gateway.reloaded("failed", error=error)["generation"] == 1
        assert search.ask("/collections/docs", "DELETE").status == 403

        own_site.replace(config.name, good)
        gateway.reloaded()
        assert search.ask().status == 200


def test_a_configuration_that_is_no_yaml_leaves_the_old_one(own_site: Site, upstream: ScriptedUpstream) -> None:
    config = own_site.write_config(upstream.url)
    with Gateway(config) as gateway, Caller(gateway, own_site.client()) as admin:
        own_site.replace(config.name, b"service: [\n")
        assert f"{config}:2:1" in gateway.reloaded("failed")["error"]
        assert admin.ask().status == 200
