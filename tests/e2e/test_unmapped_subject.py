"""A sound certificate without a rule, or one that could be read in two ways, has no role, and its holder is told."""

from __future__ import annotations

import pytest
from cryptography import x509
from cryptography.x509.name import _ASN1Type
from support.certificates import CN, OU, issue_odd, name
from support.gateway import Gateway
from support.raw_request import ask
from support.site import Site
from support.upstream import ScriptedUpstream


def test_who_has_no_rule_is_told_what_would_help(
    site: Site, shared_gateway: Gateway, shared_upstream: ScriptedUpstream
) -> None:
    with shared_gateway.connect(site.client("stranger")) as sock:
        for target in ("/collections", "/collections/docs/points/1", "/metrics", "/no/such/route"):
            response = ask(sock, target=target)
            assert response.status == 403
            assert response.json["status"]["error"] == (
                'Forbidden: no role for certificate "CN=nobody": '
                "the gateway's administrator can add a rule for it to `identities`"
            )
            record = shared_gateway.audited(status=403)
            assert record["reason"] == "no_role"
            assert record["certificate_subject"] == "CN=nobody"
            assert "role" not in record
    assert not shared_upstream.requests


def test_health_is_answered_without_a_role(
    site: Site, shared_gateway: Gateway, shared_upstream: ScriptedUpstream
) -> None:
    with shared_gateway.connect(site.client("stranger")) as sock:
        assert ask(sock, target="/healthz").status == 200
    assert shared_upstream.requests.pop().line == "GET /healthz HTTP/1.1"


ODD = {
    "several common names": name((OU, "platform"), (CN, "alice"), (CN, "ingest-1")),
    "control or invisible character in the subject": name((OU, "platform"), (CN, "ingest-7\x00.evil")),
    "control or invisible character in the subject ": name((OU, "platform"), (CN, "alice\u200b")),
    "control or invisible character in the subject  ": name((OU, "platform"), (CN, "ali\r\nce\x1b[2J")),
    "leading or trailing space in the subject": name((OU, "platform"), (CN, "alice ")),
    "empty subject and no alternative name": name(),
    "in an encoding other than": name((OU, "platform"), (CN, "alice"), encoding=_ASN1Type.BMPString),
}


@pytest.mark.parametrize("defect", ODD)
def test_an_ambiguous_name_is_no_name(
    site: Site, shared_gateway: Gateway, shared_upstream: ScriptedUpstream, defect: str
) -> None:
    label = f"odd-{list(ODD).index(defect)}"
    issue_odd(site, label, ODD[defect])
    with shared_gateway.connect(site.client(label)) as sock:
        response = ask(sock)
    assert response.status == 403
    assert defect.strip() in response.json["status"]["error"]
    record = shared_gateway.audited(status=403)
    assert record["reason"] == "certificate_defect"
    assert record["result"] == "denied"
    assert "role" not in record
    assert str(record).isprintable()
    assert not shared_upstream.requests


@pytest.mark.parametrize(
    "alternatives",
    [
        ["spiffe://example.org.evil/search/web"],
        ["spiffe://evil.example.org/search/web"],
        ["spiffe://example.org/search/web/admin"],
        ["spiffe://example.org/admin", "spiffe://example.org/search/web"],
        ["SPIFFE://example.org/search/web"],
    ],
)
def test_a_uri_that_only_looks_like_the_one_of_a_rule(
    site: Site, shared_gateway: Gateway, shared_upstream: ScriptedUpstream, alternatives: list[str]
) -> None:
    label = "uri-" + "-".join(str(ord(character)) for character in alternatives[0][:2] + alternatives[0][-12:])
    sans = [x509.UniformResourceIdentifier(uri) for uri in alternatives]
    issue_odd(site, label, name(), alternatives=sans)
    with shared_gateway.connect(site.client(label)) as sock:
        assert ask(sock).status == 403
    assert "role" not in shared_gateway.audited(status=403)
    assert not shared_upstream.requests


@pytest.mark.parametrize("called", ["ingest.7", "Ingest-7", "xingest-7", "ingest-a.b", "ingest-a/b", "ingest"])
def test_a_common_name_that_only_looks_like_the_one_of_a_rule(
    site: Site, shared_gateway: Gateway, shared_upstream: ScriptedUpstream, called: str
) -> None:
    label = "cn-" + called.replace("/", "_")
    issue_odd(site, label, name((CN, called)))
    with shared_gateway.connect(site.client(label)) as sock:
        assert ask(sock, target="/collections/docs").status == 403
    assert shared_gateway.audited(status=403)["reason"] == "no_role"
    assert not shared_upstream.requests


def test_an_alternative_name_is_no_common_name(
    site: Site, shared_gateway: Gateway, shared_upstream: ScriptedUpstream
) -> None:
    site.issue("san", client=True, common_name="nobody", dns=["ingest-7"], emails=["ingest-7@example.org"])
    with shared_gateway.connect(site.client("san")) as sock:
        assert ask(sock, target="/collections/docs").status == 403
    assert not shared_upstream.requests
