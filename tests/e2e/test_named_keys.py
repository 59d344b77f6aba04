"""Named keys: whose key it was is in the audit log, and each can be limited, run out, and be revoked alone."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime, timedelta
from typing import Any

from support.gateway import Gateway
from support.raw_request import Client
from support.site import Site
from support.upstream import ScriptedUpstream

CI, NIGHTLY = "the-ci-k3y", "the-nightly-k3y"
READ = ("GET", "/collections/docs")
WRITE = ("POST", "/collections/docs/points/delete")
OPTIONAL = {"verify_https_client_certificate": False}


def digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def key(value: str, name: str = "ci", role: str = "search", **more: Any) -> dict[str, Any]:
    return {"name": name, "sha256": digest(value), "role": role, **more}


def test_each_has_its_role_and_its_name(own_site: Site, upstream: ScriptedUpstream) -> None:
    own_site.write("nightly.key", NIGHTLY.encode() + b"\n")
    keys = [key(CI), {"name": "nightly", "file": "nightly.key", "role": "ingest"}]
    config = own_site.write_config(upstream.url, service=OPTIONAL, keys=keys)
    with Gateway(config) as gateway, Client(gateway, own_site.client(None)) as connection:
        for value, what, status, name, role in (
            (CI, READ, 200, "ci", "search"),
            (CI, WRITE, 403, "ci", "search"),
            (NIGHTLY, WRITE, 200, "nightly", "ingest"),
            (NIGHTLY, ("GET", "/collections/other"), 403, "nightly", "ingest"),
        ):
            assert connection.ask(*what, [("api-key", value)]).status == status
            record = gateway.audited(auth_type="ApiKey")
            assert (record["key"], record["role"], record["status"]) == (name, role, status)
            assert value not in str(record)
            assert digest(value) not in str(record)
        assert connection.ask(*READ, [("api-key", digest(CI))]).status == 401


def test_one_is_revoked_and_the_other_goes_on(own_site: Site, upstream: ScriptedUpstream) -> None:
    both = [key(CI), key(NIGHTLY, "nightly")]
    config = own_site.write_config(upstream.url, service=OPTIONAL, keys=both)
    with Gateway(config) as gateway, Client(gateway, own_site.client(None)) as kept:
        assert [kept.ask(*READ, [("api-key", each)]).status for each in (CI, NIGHTLY)] == [200, 200]
        own_site.edit_config(config, keys=both[1:])
        gateway.reloaded()
        assert [kept.ask(*READ, [("api-key", each)]).status for each in (CI, NIGHTLY)] == [401, 200]


def test_one_runs_out_on_an_open_connection(own_site: Site, upstream: ScriptedUpstream) -> None:
    moment = datetime.now(UTC) + timedelta(seconds=2)
    config = own_site.write_config(upstream.url, service=OPTIONAL, keys=[key(CI, expires=moment.isoformat())])
    with Gateway(config) as gateway, Client(gateway, own_site.client(None)) as kept:
        while kept.ask(*READ, [("api-key", CI)]).status == 200:
            assert datetime.now(UTC) < moment + timedelta(seconds=5)
        assert datetime.now(UTC) >= moment


def test_one_counts_only_beside_a_certificate(site: Site, upstream: ScriptedUpstream) -> None:
    keys = [key(CI, require_certificate={"cn": "ingest-*"})]
    service = OPTIONAL | {"unmapped_certificate": "token"}
    with Gateway(site.write_config(upstream.url, service=service, keys=keys)) as gateway:
        for client, status in ((None, 401), ("stranger", 401), ("admin", 401), ("ingest", 200)):
            with Client(gateway, site.client(client)) as connection:
                assert connection.ask(*READ, [("api-key", CI)]).status == status, client
