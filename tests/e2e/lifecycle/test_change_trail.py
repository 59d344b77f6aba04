"""A change of the configuration leaves a trail: log, audit log and `reload` say in words what it was and for whom."""

from __future__ import annotations

import hashlib
import re
from contextlib import ExitStack

import pytest
from support.gateway import Gateway
from support.kept_connection import Caller
from support.operator_tools import operator
from support.site import CONFIG, Site
from support.upstream import ScriptedUpstream

GRANTS = [{"collection": "docs", "access": "rw"}]
MORE = {
    "roles": {"ingest": {"access": [*GRANTS, {"collection": "logs", "access": "r"}]}},
    "identities": CONFIG["identities"][:2],
    "service": {"api_key": "s3cret-key"},
    "limits": {"per_identity": {"requests_per_second": 5000}},
}
TOLD = (
    "role ingest: access r on logs added",
    "rule search-svc removed",
    "key api_key added: access m",
    "setting limits.per_identity.requests_per_second changed: none → 5000.0",
    "setting service.api_key changed",
)


@pytest.mark.parametrize("workers", [1, 2])
def test_what_was_changed_and_for_whom(own_site: Site, upstream: ScriptedUpstream, workers: int) -> None:
    """Held back first, so that it can be asked beforehand."""
    config = own_site.write_config(upstream.url, workers=workers, limits={"mass_cut": {"number": 0}})
    with Gateway(config) as gateway, ExitStack() as stack:
        started = gateway.audited(event="start")
        assert started["config_sha256"] == hashlib.sha256(config.read_bytes()).hexdigest()
        names = ("admin", "ingest", "ingest", "search")
        callers = [stack.enter_context(Caller(gateway, own_site.client(name))) for name in names]
        assert [caller.ask("/collections/docs").status for caller in callers] == [200, 200, 200, 200]
        own_site.edit_config(config, **MORE)
        digest = hashlib.sha256(config.read_bytes()).hexdigest()
        held = gateway.reloaded("failed")
        assert (held["changes"], held["affected_roles"]) == ("; ".join(TOLD), "ingest 2, search 1")
        assert held["config_sha256"] == started["config_sha256"]

        code, out, _ = operator(gateway, "reload", "--dry-run")
        assert code == 1
        for told in (*TOLD, "3 of 4 live connections affected (ingest 2, search 1)", f"configuration SHA-256 {digest}"):
            assert f"  {told}" in out.splitlines()
        assert re.search(r"\n  1 of 4 live connections cut \(no_role 1\)\n    \d+ rest .*, role search: no_role\n", out)

        assert operator(gateway, "reload", "--force")[0] == 0
        line = gateway.log.wait(lambda line: "generation 2 serves" in line)
        assert f"configuration SHA-256 {digest}; {'; '.join(TOLD)}; 3 of 4 live connections affected " in line
        assert "(ingest 2, search 1)" in line
        record = gateway.reloaded()
        assert record["changes"] == "; ".join(TOLD)
        assert (record["affected"], record["affected_roles"]) == (3, "ingest 2, search 1")
        assert record["config_sha256"] == digest
        assert "s3cret" not in out + line + str(record)
