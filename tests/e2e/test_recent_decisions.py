"""The last minutes on the admin server's `/status`: who was allowed what, who was refused, and why."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

from support.gateway import Gateway
from support.raw_request import Client, alert
from support.site import Site
from support.upstream import ScriptedUpstream

SEARCH = ("POST", "/collections/docs/points/search")


def sections(gateway: Gateway) -> tuple[Counter[tuple[str, str]], list[dict[str, Any]]]:
    """The decisions by role and outcome, whatever the slot, and the refusals."""
    told = json.loads(gateway.ask_admin("/status")[1])
    counted: Counter[tuple[str, str]] = Counter()
    for slot in told["decisions"]["slots"]:
        assert slot["start"] % told["decisions"]["seconds"] == 0
        for role, outcomes in slot["roles"].items():
            counted.update({(role, outcome): count for outcome, count in outcomes.items()})
    return counted, told["refusals"]


def test_requests_count_by_role_and_outcome_and_refusals_say_why(site: Site, gateway: Gateway) -> None:
    with Client(gateway, site.client("admin")) as admin, Client(gateway, site.client("ingest")) as ingest:
        for _ in range(3):
            assert admin.ask().status == 200
        assert ingest.ask("DELETE", "/collections/s%65cret?k3y=v4lue", (), b'{"b0dy": 1}').status == 403
        assert ingest.ask("GET", "/collections/docs").status == 200
    counted, (refusal,) = sections(gateway)
    assert counted == {("admin", "allowed"): 3, ("ingest", "allowed"): 1, ("ingest", "denied"): 1}
    record = gateway.audited(result="denied")
    assert refusal.pop("when") > 1_700_000_000
    assert refusal == {
        "remote": "127.0.0.1",
        "operation": "delete_collection",
        "reason": record["reason"],
        "identity": "CN=ingest-7",
        "key": None,
        "rule": "ingest-jobs",
        "role": "ingest",
        "collection": "secret",
        "presented": None,
    }
    assert "v4lue" not in str(refusal)
    assert "b0dy" not in str(refusal)


def test_what_was_allowed_and_then_failed_is_no_refusal(site: Site) -> None:
    with ScriptedUpstream() as gone:
        url = gone.url
    with Gateway(site.write_config(url)) as gateway, Client(gateway, site.client("admin")) as admin:
        assert admin.ask().status == 502
        assert sections(gateway) == ({("admin", "failed"): 1}, [])


def test_handshakes_and_connections_that_were_refused(site: Site, gateway: Gateway) -> None:
    assert "CERTIFICATE_REQUIRED" in alert(gateway, site.client(None))
    with Client(gateway, site.client("search")) as client:
        assert client.ask().status == 200
        (live,) = json.loads(gateway.ask_admin("/status")[1])["connections"]["live"]
        assert gateway.ask_admin(f"/connections/{live['number']}/cut", "POST")[0] == 200
    _, (cut, handshake) = sections(gateway)
    assert (handshake["operation"], handshake["reason"], handshake["identity"]) == ("handshake", "no_certificate", None)
    assert (cut["operation"], cut["reason"], cut["role"]) == ("connection", "cut_by_operator", "search")
    assert cut["identity"].startswith("spiffe://")
