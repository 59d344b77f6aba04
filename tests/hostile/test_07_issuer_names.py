"""Issuer names: a trusted CA speaks for itself, and never in the name of another.

Two CAs are trusted, one's own (Staff CA) and a partner's. The partner's is hostile: it calls its intermediates as it
likes, and its clients too.
"""

from __future__ import annotations

import json
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from click.testing import CliRunner, Result
from support.certificates import certified, fingerprint
from support.gateway import Gateway
from support.grpc_channels import call, channel
from support.grpc_upstream import GrpcUpstream
from support.kept_connection import Caller
from support.limit_answers import named_key
from support.raw_request import Client, ask
from support.site import Site
from support.upstream import ScriptedUpstream

from tlsproxy.cli import main
from tlsproxy.tls.pki import Authority

DELETE = ("DELETE", "/collections/docs")
STAFF, PARTNER = Authority.create("Staff CA"), Authority.create("Partner CA")
ISSUING = STAFF.intermediate("Staff Issuing CA")
LOWER = PARTNER.intermediate("Partner Issuing CA")
BRIDGE = STAFF.intermediate("Bridge CA")
KEY = "the-staff-k3y"

FORGED = {
    "an intermediate of that name": PARTNER.intermediate("Staff CA"),
    "one further below": LOWER.intermediate("Staff CA"),
    "one below one, both of that name": PARTNER.intermediate("Staff CA").intermediate("Staff CA"),
    "an intermediate between them": PARTNER.intermediate("Staff CA").intermediate("Staff Issuing CA"),
    "the name of an intermediate": PARTNER.intermediate("Staff Issuing CA"),
    "in other letters": PARTNER.intermediate("STAFF  CA"),
}
RULES: list[dict[str, Any]] = [
    {"name": "by-issuer", "match": {"cn": "alice", "issuer": "CN=Staff CA"}, "role": "admin"},
    {"name": "by-glob", "match": {"cn": "alice", "issuer": "CN=Staff*", "ca": "**"}, "role": "admin"},
    {"name": "unnamed", "match": {"cn": "alice", "issuer": "CN=Staff Issuing CA"}, "role": "admin"},
    {"name": "named", "match": {"cn": "bob", "issuer": "CN=Staff Issuing CA", "ca": "CN=Staff CA"}, "role": "admin"},
    {"name": "by-ca", "match": {"cn": "carol", "ca": "CN=Staff CA"}, "role": "admin"},
    {
        "name": "by-digest",
        "match": {
            "cn": "dave",
            "ca_sha256": ":".join(fingerprint(STAFF)[at : at + 2] for at in range(0, 64, 2)).upper(),
        },
        "role": "admin",
    },
    {"name": "by-nothing", "match": {"cn": "erin"}, "role": "search"},
]
MATCHED = {"alice": "by-issuer", "bob": "named", "carol": "by-ca", "dave": "by-digest"}


@dataclass(frozen=True, slots=True)
class Place:
    site: Site
    gateway: Gateway

    def client(self, authority: Authority, name: str) -> ssl.SSLContext:
        self.site.issue("client", authority=authority, client=True, common_name=name)
        return self.site.client("client")

    def asked(self, authority: Authority, name: str, *fields: tuple[str, str]) -> tuple[int, dict[str, Any]]:
        """The status of a request that only an admin may make, and its audit line."""
        with self.gateway.connect(self.client(authority, name)) as sock:
            status = ask(sock, *DELETE, fields).status
        return status, self.gateway.audited(method="delete_collection")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, shared_upstream: ScriptedUpstream) -> Iterator[Place]:
    site = Site(tmp_path_factory.mktemp("cas"))
    site.write("clients.pem", STAFF.certificate_pem + PARTNER.certificate_pem)
    listener = {"port": 0, "mode": "tcp", "upstream": shared_upstream.url.removeprefix("http://"), "allow": ["admin"]}
    with GrpcUpstream() as grpc_upstream:
        config = site.write_config(
            shared_upstream.url,
            grpc=grpc_upstream.url,
            tls={"ca_cert": "clients.pem"},
            identities=RULES,
            listeners=[listener],
            keys=[
                named_key(KEY, "admin") | {"require_certificate": {"cn": "erin", "issuer": "CN=Staff CA"}},
            ],
        )
        with Gateway(config) as gateway:
            yield Place(site, gateway)


# Who is below which CA


@pytest.mark.parametrize("authority", FORGED.values(), ids=FORGED)
@pytest.mark.parametrize("name", MATCHED)
def test_no_name_makes_a_partner_one_of_the_staff(place: Place, authority: Authority, name: str) -> None:
    status, line = place.asked(authority, name)
    assert (status, line["reason"], line.get("role")) == (403, "no_role", None)
    assert line["ca_sha256"] == fingerprint(PARTNER)


@pytest.mark.parametrize("name", MATCHED)
def test_the_staff_is_who_it_was(place: Place, name: str) -> None:
    status, line = place.asked(ISSUING if name == "bob" else STAFF, name)
    assert (status, line["rule"], line["ca_sha256"]) == (200, MATCHED[name], fingerprint(STAFF))


def test_an_intermediate_of_ones_own_needs_its_ca_named(place: Place) -> None:
    """Nobody can tell it from one of the partner's by its name alone."""
    assert place.asked(ISSUING, "alice")[0] == 403
    assert place.asked(ISSUING, "bob")[0] == 200


def test_an_intermediate_with_its_own_cas_name_is_that_ca(place: Place) -> None:
    assert place.asked(STAFF.intermediate("Staff CA"), "alice")[0] == 200


def test_over_grpc_alike(place: Place) -> None:
    for authority, code in (
        (FORGED["an intermediate of that name"], grpc.StatusCode.PERMISSION_DENIED),
        (STAFF, grpc.StatusCode.OK),
    ):
        place.client(authority, "alice")
        with channel(place.gateway, place.site, "client") as opened:
            assert call(opened, "/qdrant.Collections/Delete", b"\n\x04docs").code is code
        assert place.gateway.audited(method="delete_collection")["ca_sha256"]


def test_in_mode_tcp_alike(place: Place) -> None:
    port = place.gateway.ports["TCP"][0]
    for authority, reason in ((FORGED["an intermediate of that name"], "no_role"), (STAFF, "allowed")):
        with place.gateway.connect(place.client(authority, "alice"), port=port):
            line = place.gateway.audited(event="tcp_open")
        assert (line["reason"], line["ca_sha256"] == fingerprint(STAFF)) == (reason, authority is STAFF)


def test_a_key_that_needs_a_certificate_is_no_use_beside_a_forged_one(place: Place) -> None:
    forged, line = place.asked(FORGED["an intermediate of that name"], "erin", ("api-key", KEY))
    assert (forged, line["reason"]) == (401, "invalid_key")
    own, line = place.asked(STAFF, "erin", ("api-key", KEY))
    assert (own, line["key"]) == (403, "ci")  # her own role is the narrower one


def test_one_certificate_with_two_chains_is_two_identities(place: Place) -> None:
    """Where both CAs have certified an intermediate, the client chooses by which of them it comes."""
    issued = BRIDGE.issue(client=True, common_name="carol")
    by_partner = certified(BRIDGE, PARTNER).intermediates_pem
    place.site.write("client.key", issued.key_pem)
    for chain, status in ((BRIDGE.intermediates_pem, 200), (by_partner, 403)) * 2:
        place.site.write("client.pem", issued.certificate_pem + chain)
        with place.gateway.connect(place.site.client("client")) as sock:
            assert ask(sock, *DELETE).status == status


def test_everybody_is_told_by_their_ca(place: Place) -> None:
    with Caller(place.gateway, place.client(FORGED["an intermediate of that name"], "erin")) as caller:
        told = json.loads(caller.ask("/_tlsproxy/whoami").body)["identity"]
        assert (told["issuer"], told["ca"]) == ("CN=Staff CA", "CN=Partner CA")
        assert told["ca_sha256"] == fingerprint(PARTNER)
        live = json.loads(place.gateway.ask_admin("/status")[1])["connections"]["live"]
        assert [one["ca"] for one in live if one["identity"] == "CN=erin"] == ["CN=Partner CA"]


# Accounts


def test_nobody_uses_up_what_another_cas_client_of_the_same_name_may_use(
    own_site: Site, upstream: ScriptedUpstream
) -> None:
    own_site.write("clients.pem", STAFF.certificate_pem + PARTNER.certificate_pem)
    own_site.issue("own", authority=STAFF, client=True, common_name="alice")
    own_site.issue("renewed", authority=STAFF, client=True, common_name="alice")
    own_site.issue("forged", authority=PARTNER.intermediate("Staff CA"), client=True, common_name="alice")
    config = own_site.write_config(
        upstream.url,
        tls={"ca_cert": "clients.pem"},
        identities=[{"name": "any", "match": {"cn": "alice"}, "role": "search"}],
        keys=[named_key(KEY)],
        limits={
            "per_identity": {"requests_per_second": 0.01, "burst": 3},
            "per_address": {"failed_authentications": 2},
        },
    )
    with (
        Gateway(config) as gateway,
        Client(gateway, own_site.client("forged")) as forged,
        Client(gateway, own_site.client("own")) as own,
        Client(gateway, own_site.client("renewed")) as renewed,
    ):
        wrong = ("api-key", "a-gue55")
        assert [forged.ask(fields=[wrong]).status for _ in range(4)] == [401, 401, 401, 429]
        assert gateway.audited(status=429)["reason"] == "too_many_failures"
        assert forged.ask().status == 429
        assert gateway.audited(status=429)["reason"] == "rate_limited"
        assert own.ask(fields=[("api-key", KEY)]).status == 200
        assert renewed.ask().status == 200
        assert own.ask().status == 200
        assert renewed.ask().status == 429


# Publications


def test_a_second_ca_leaves_names_in_doubt_that_one_alone_could_give(
    own_site: Site, upstream: ScriptedUpstream, grpc_upstream: GrpcUpstream
) -> None:
    """Fails closed, for live connections too, and tells the operator what to write."""
    own_site.write("clients.pem", STAFF.certificate_pem)
    own_site.issue("own", authority=ISSUING, client=True, common_name="alice")
    own_site.issue("forged", authority=PARTNER.intermediate("Staff Issuing CA"), client=True, common_name="alice")
    match = {"cn": "alice", "issuer": "CN=Staff Issuing CA"}
    rule = {"name": "issuing", "match": match, "role": "admin"}
    config = own_site.write_config(
        upstream.url, grpc=grpc_upstream.url, tls={"ca_cert": "clients.pem"}, identities=[rule]
    )
    with (
        Gateway(config) as gateway,
        Caller(gateway, own_site.client("own")) as live,
        channel(gateway, own_site, "own") as opened,
    ):
        assert live.ask(*reversed(DELETE)).status == 200
        assert call(opened, "/qdrant.Collections/List").code is grpc.StatusCode.OK
        own_site.replace("clients.pem", STAFF.certificate_pem + PARTNER.certificate_pem)
        gateway.reloaded()
        assert live.is_closed()
        assert gateway.audited(event="connection")["reason"] == "no_role"
        warning = gateway.log.wait(lambda line: "identities[0].match.issuer" in line)
        assert "add ca" in warning
        assert '"CN=Staff CA", "CN=Partner CA"' in warning
        with Caller(gateway, own_site.client("own")) as own:
            assert own.ask().status == 403
        assert call(opened, "/qdrant.Collections/List").code is grpc.StatusCode.PERMISSION_DENIED

        own_site.edit_config(config, identities=[rule | {"match": match | {"ca": "CN=Staff CA"}}])
        gateway.reloaded()
        for client, status in (("own", 200), ("forged", 403)):
            with Caller(gateway, own_site.client(client)) as caller:
                assert caller.ask().status == status


def test_a_ca_that_is_issued_anew_starts_no_account(own_site: Site, upstream: ScriptedUpstream) -> None:
    """And rules by its name go on."""
    own_site.write("clients.pem", STAFF.certificate_pem)
    own_site.issue("own", authority=STAFF, client=True, common_name="alice")
    config = own_site.write_config(
        upstream.url,
        tls={"ca_cert": "clients.pem"},
        identities=[{"name": "any", "match": {"cn": "alice", "ca": "CN=Staff CA"}, "role": "search"}],
        limits={"per_identity": {"requests_per_second": 0.01, "burst": 2}},
    )
    with Gateway(config) as gateway:
        for status in (200, 200, 429):
            with Caller(gateway, own_site.client("own")) as caller:
                assert caller.ask().status == status
            own_site.replace("clients.pem", certified(STAFF, STAFF).certificate_pem)
            gateway.reloaded()


# The operator is told before it happens


def check(site: Site, **sections: Any) -> Result:
    site.write("clients.pem", STAFF.certificate_pem + PARTNER.certificate_pem)
    config = site.write_config("http://127.0.0.1:1", **{"tls": {"ca_cert": "clients.pem"}} | sections)
    return CliRunner().invoke(main, ["check", "--config", str(config)])


def test_check_warns_of_rules_that_name_no_ca(site: Site) -> None:
    result = check(site, identities=RULES, keys=[named_key(KEY) | {"require_certificate": {"ou": "jobs"}}])
    assert result.exit_code == 0
    told = [line.split(" ", 2)[2] for line in result.stderr.splitlines() if ".yaml:" in line and "there are" in line]
    there = 'there are "CN=Staff CA", "CN=Partner CA"'
    any_name = f"names no CA, and any of several may give these names; add ca (or ca_sha256); {there}"
    no_issuer = f"matches nobody: any of several CAs may give an intermediate this name; add ca; {there}"
    assert told == [
        f'identities[2].match.issuer: rule "unnamed" {no_issuer}',
        f'identities[6].match: rule "by-nothing" {any_name}',
        f'keys[0].require_certificate: key "ci" {any_name}',
    ]


def test_check_warns_of_token_roles_that_believe_any_certificate(site: Site) -> None:
    """No rule stands between such a role and the certificate that it takes a tenant from."""
    tenant = {"access": [{"collection": "docs", "access": "rw"}], "filter": {"tenant": "{ou}"}}
    issuer = {"name": "login", "issuer": "i", "audience": "a", "algorithm": "ES256", "role": "tenant"}
    sections = {"roles": {"tenant": tenant}, "jwt_issuers": [issuer | {"jwks": "https://login.example/keys"}]}
    result = check(site, identities=[], **sections)
    assert result.exit_code == 0
    assert "jwt_issuers[0].role: the filter of role 'tenant' takes names from certificates of any CA" in result.stderr
    by_claims = {"name": "sre", "match": {"claims": {"groups": "sre"}}, "role": "tenant"}
    result = check(site, identities=[by_claims], **sections)
    assert "identities[0].role: the filter of role 'tenant' takes names from certificates of any CA" in result.stderr
    confined = {"ca_cert": "clients.pem", "ca_constraints": [CONSTRAINT]}
    assert "of any CA" not in check(site, identities=[by_claims], tls=confined, **sections).stderr


def test_a_rule_has_what_is_below_its_ca_with_intermediates_in_the_file_too(
    own_site: Site, upstream: ScriptedUpstream
) -> None:
    """OpenSSL's chain ends at the intermediate then; whose it is does not change."""
    own_site.write("clients.pem", ISSUING.certificate_pem + PARTNER.certificate_pem + STAFF.certificate_pem)
    own_site.issue("own", authority=ISSUING, client=True, common_name="alice")
    config = own_site.write_config(
        upstream.url,
        tls={"ca_cert": "clients.pem"},
        identities=[{"name": "staff", "match": {"ca": "CN=Staff CA"}, "role": "search"}],
    )
    with Gateway(config) as gateway, Caller(gateway, own_site.client("own")) as caller:
        assert caller.ask().status == 200
        assert gateway.audited(status=200)["ca_sha256"] == fingerprint(ISSUING)


def test_check_is_silent_about_one_ca_and_its_intermediates(site: Site) -> None:
    site.write("whole.pem", STAFF.certificate_pem + ISSUING.certificate_pem)
    result = check(site, tls={"ca_cert": "whole.pem"}, identities=RULES[-1:])
    assert (result.exit_code, "several" in result.stderr) == (0, False)


def test_check_warns_of_a_ca_that_is_not_there_and_of_two_of_one_name(site: Site) -> None:
    site.write("twins.pem", STAFF.certificate_pem + Authority.create("Staff CA").certificate_pem)
    rule = {"name": "a", "match": {"cn": "a", "ca": "CN=Stuff CA"}, "role": "search"}
    result = check(site, tls={"ca_cert": "twins.pem"}, identities=[rule])
    assert result.exit_code == 0
    assert (
        'identities[0].match.ca: rule "a" matches nobody: no CA of tls.ca_cert is this one; there are ' in result.stderr
    )
    assert f'"CN=Staff CA" ({fingerprint(STAFF)})' in result.stderr
    assert 'tls.ca_cert: several CAs, with different keys, are called "CN=Staff CA"' in result.stderr


def test_explain_finds_the_ca_by_what_stands_behind_the_certificate(place: Place) -> None:
    place.client(FORGED["one further below"], "alice")
    certificate = str(place.site.directory / "client.pem")
    result = CliRunner().invoke(main, ["explain", "--config", str(place.gateway.config), certificate, *DELETE])
    assert result.exit_code == 1
    assert f"issuer     CN=Staff CA\nca         CN=Partner CA\nca_sha256  {fingerprint(PARTNER)}\n" in result.stdout
    assert 'rule "by-issuer" (role "admin"): issuer is not believed of this CA' in result.stdout


# A CA that is confined

Names = dict[str, list[str]]
WITHIN: dict[str, Names] = {
    "a SPIFFE ID": {"uris": ["spiffe://partner.example/app"]},
    "the trust domain itself": {"uris": ["spiffe://partner.example"]},
    "a DNS name": {"dns": ["api.partner.example"]},
    "the suffix itself": {"dns": ["PARTNER.example"]},
    "an email address": {"emails": ["a@mail.partner.example"]},
    "several": {"dns": ["a.partner.example"], "uris": ["spiffe://partner.example/a"]},
}
OUTSIDE: dict[str, Names] = {
    "another trust domain": {"uris": ["spiffe://example.org/search/web"]},
    "one that begins like it": {"uris": ["spiffe://partner.example.org/app"]},
    "one with a port": {"uris": ["spiffe://partner.example:1/app"]},
    "one behind a user": {"uris": ["spiffe://partner.example@example.org/app"]},
    "another scheme": {"uris": ["https://partner.example/app"]},
    "another DNS name": {"dns": ["api.example.org"]},
    "no whole label": {"dns": ["evilpartner.example"]},
    "a suffix in front": {"dns": ["partner.example.evil.org"]},
    "one of several": {"dns": ["api.partner.example", "api.example.org"]},
    "another email address": {"emails": ["root@example.org"]},
    "an IP address": {"ips": ["127.0.0.1"]},
    "an IP address beside": {"dns": ["api.partner.example"], "ips": ["127.0.0.1"]},
    "nothing but a subject": {},
}
CONSTRAINT = {"ca": "CN=Partner CA", "trust_domain": "partner.example", "dns": ["partner.example"]}
CONFINED: list[dict[str, Any]] = [
    {"name": "own", "match": {"ca": "CN=Partner CA", "cn": "svc"}, "role": "search"},
    {"name": "issued", "match": {"issuer": "CN=Partner CA", "o": "Partner"}, "role": "search"},
    {"name": "names", "match": {"dns": "*.partner.example", "cn": "*.partner.example"}, "role": "search"},
    {"name": "cn", "match": {"cn": "alice"}, "role": "admin"},
    {"name": "ou", "match": {"ou": "platform"}, "role": "admin"},
    {"name": "subject", "match": {"subject": "CN=eve**"}, "role": "admin"},
    {"name": "tenant", "match": {"uri": "spiffe://partner.example/tenant"}, "role": "tenant"},
    {"name": "staff", "match": {"uri": "spiffe://example.org/**"}, "role": "admin"},
]


@pytest.fixture(scope="module")
def confined(tmp_path_factory: pytest.TempPathFactory, shared_upstream: ScriptedUpstream) -> Iterator[Place]:
    site = Site(tmp_path_factory.mktemp("confined"))
    site.write("clients.pem", STAFF.certificate_pem + PARTNER.certificate_pem)
    tenant = {"access": [{"collection": "docs", "access": "rw"}], "filter": {"tenant": "{ou}"}}
    with GrpcUpstream() as grpc_upstream:
        config = site.write_config(
            shared_upstream.url,
            grpc=grpc_upstream.url,
            tls={"ca_cert": "clients.pem", "ca_constraints": [CONSTRAINT]},
            roles={"tenant": tenant},
            identities=CONFINED,
            keys=[named_key(KEY)],
            service={"unmapped_certificate": "token"},
        )
        with Gateway(config) as gateway:
            yield Place(site, gateway)


def confined_answer(confined: Place, authority: Authority, path: str = "/collections", **names: Any) -> tuple[int, str]:
    confined.site.issue("client", authority=authority, client=True, **names)
    with confined.gateway.connect(confined.site.client("client")) as sock:
        response = ask(sock, "GET", path)
        return response.status, confined.gateway.audited(status=response.status)["reason"]


@pytest.mark.parametrize("names", WITHIN.values(), ids=WITHIN)
def test_a_confined_ca_speaks_for_its_own_names(confined: Place, names: Names) -> None:
    assert confined_answer(confined, LOWER, common_name="svc", **names) == (200, "allowed")


@pytest.mark.parametrize("names", OUTSIDE.values(), ids=OUTSIDE)
@pytest.mark.parametrize("authority", [PARTNER, FORGED["an intermediate of that name"]], ids=["directly", "below"])
def test_and_for_no_others(confined: Place, authority: Authority, names: Names) -> None:
    """Whatever its rules, and a key beside it, would give."""
    confined.site.issue("client", authority=authority, client=True, common_name="svc", **names)
    with Caller(confined.gateway, confined.site.client("client")) as caller:
        for key in ({}, {"api_key": KEY}):
            answer = caller.ask(**key)
            assert (answer.status, "tls.ca_constraints" in answer.body) == (403, True)
            line = confined.gateway.audited(status=403)
            assert (line["reason"], line["ca_sha256"]) == ("ca_constraint", fingerprint(PARTNER))


def test_a_confined_ca_over_grpc(confined: Place) -> None:
    for names, code in (
        ({"dns": ["api.example.org"]}, grpc.StatusCode.PERMISSION_DENIED),
        ({"dns": ["api.partner.example"]}, grpc.StatusCode.OK),
    ):
        confined.site.issue("client", authority=PARTNER, client=True, common_name="svc", **names)
        with channel(confined.gateway, confined.site, "client") as opened:
            assert call(opened, "/qdrant.Collections/List").code is code


@pytest.mark.parametrize(
    "subject",
    [
        {"common_name": "alice"},
        {"common_name": "x", "organizational_unit": "platform"},
        {"common_name": "eve"},
        {"common_name": "alice.example.org"},
    ],
    ids=str,
)
def test_its_subjects_count_where_a_rule_names_it_only(confined: Place, subject: dict[str, Any]) -> None:
    own = {"dns": ["api.partner.example"]}
    assert confined_answer(confined, PARTNER, **own, **subject) == (401, "no_credential")
    if subject["common_name"] == "alice":
        assert confined_answer(confined, STAFF, **subject) == (200, "allowed")


def test_the_ca_is_named_as_the_issuer_too(confined: Place) -> None:
    subject: dict[str, Any] = {"organization": "Partner", "dns": ["api.partner.example"]}
    assert confined_answer(confined, PARTNER, **subject) == (200, "allowed")
    assert confined_answer(confined, PARTNER.intermediate("Partner CA 2"), **subject) == (401, "no_credential")


def test_a_common_name_within_counts(confined: Place) -> None:
    assert confined_answer(confined, PARTNER, common_name="a.partner.example", dns=["a.partner.example"])[0] == 200


def test_its_subjects_choose_no_tenant(confined: Place) -> None:
    names = {"uris": ["spiffe://partner.example/tenant"], "organizational_unit": "acme"}
    assert confined_answer(confined, PARTNER, **names) == (403, "no_tenant")


def test_other_cas_are_not_confined(confined: Place) -> None:
    assert confined_answer(confined, STAFF, uris=["spiffe://example.org/a"]) == (200, "allowed")


def test_explain_says_which_name_it_is(confined: Place) -> None:
    confined.site.issue("client", authority=PARTNER, client=True, common_name="svc", dns=["api.example.org"])
    certificate = str(confined.site.directory / "client.pem")
    asked = ["explain", "--config", str(confined.gateway.config), certificate, "GET", "/collections"]
    result = CliRunner().invoke(main, asked)
    assert (
        "no rule is tried, for tls.ca_constraints confines the CA to other names than DNS api.example.org"
        in result.stdout
    )
    assert "it has DNS api.example.org" in result.stdout
    assert (result.exit_code, "(ca_constraint)" in result.stdout) == (1, True)


def test_a_constraint_counts_for_live_connections(own_site: Site, upstream: ScriptedUpstream) -> None:
    own_site.write("clients.pem", STAFF.certificate_pem + PARTNER.certificate_pem)
    own_site.issue("partner", authority=PARTNER, client=True, uris=["spiffe://example.org/search/web"])
    config = own_site.write_config(upstream.url, tls={"ca_cert": "clients.pem"})
    with Gateway(config) as gateway:
        with Caller(gateway, own_site.client("partner")) as live:
            assert live.ask().status == 200
            own_site.edit_config(config, tls={"ca_constraints": [CONSTRAINT]})
            gateway.reloaded()
            assert live.is_closed()
            assert gateway.audited(event="connection")["reason"] == "ca_constraint"
        own_site.edit_config(config, tls={"ca_constraints": []})
        gateway.reloaded()
        with Caller(gateway, own_site.client("partner")) as again:
            assert again.ask().status == 200


def test_a_constraint_that_is_left_behind_keeps_no_ca_in(own_site: Site, upstream: ScriptedUpstream) -> None:
    """What takes a CA away is published; what brings one in again is not, while a constraint is of none."""
    own_site.write("clients.pem", STAFF.certificate_pem + PARTNER.certificate_pem)
    tls = {"ca_cert": "clients.pem", "ca_constraints": [CONSTRAINT]}
    config = own_site.write_config(upstream.url, tls=tls)
    with Gateway(config) as gateway:
        own_site.replace("clients.pem", STAFF.certificate_pem)
        gateway.reloaded()
        assert "no CA of tls.ca_cert is this one" in gateway.log.wait(lambda line: "ca_constraints[0].ca" in line)
        gateway.hang_up()
        gateway.reloaded()
        successor = Authority.create("Partner CA, second")
        own_site.replace("clients.pem", STAFF.certificate_pem + successor.certificate_pem)
        assert "ca_constraints[0].ca" in gateway.reloaded("failed")["error"]


@pytest.mark.parametrize(
    ("constraint", "key", "text"),
    [
        ({"ca": "CN=Partnr CA", "dns": ["a"]}, ".ca", 'there are "CN=Staff CA", "CN=Partner CA"'),
        ({"ca_sha256": "0" * 64, "dns": ["a"]}, ".ca_sha256", 'there are "CN=Staff CA", "CN=Partner CA"'),
        ({"ca_sha256": "0" * 63, "dns": ["a"]}, ".ca_sha256", "64 hex digits"),
        ({"dns": ["a"]}, "", "one of ca and ca_sha256 is needed"),
        ({"ca": "CN=Partner CA", "ca_sha256": "0" * 64, "dns": ["a"]}, "", "keep one of"),
        ({"ca": "CN=Partner CA"}, "", "trust_domain or dns is needed"),
        ({"ca": "CN=Partner CA", "trust_domain": "https://a"}, ".trust_domain", "a SPIFFE trust domain"),
        ({"ca": "CN=Partner CA", "dns": ["a", "*.a"]}, ".dns[1]", "without wildcards"),
        ({"ca": "CN=Partner CA", "trust_domian": "a"}, ".trust_domian", "did you mean"),
    ],
)
def test_a_constraint_that_would_not_hold_is_an_error(
    site: Site, constraint: dict[str, Any], key: str, text: str
) -> None:
    result = check(site, tls={"ca_cert": "clients.pem", "ca_constraints": [constraint]})
    assert result.exit_code == 2
    place = f" tls.ca_constraints[0]{key}: "
    line = next(line for line in result.stderr.splitlines() if place in line)
    assert text in line
    file, _, position = line.partition(place)[0].removeprefix("error: ").partition(".yaml:")
    assert Path(f"{file}.yaml").exists()
    assert all(part.isdigit() for part in position.split(":"))
