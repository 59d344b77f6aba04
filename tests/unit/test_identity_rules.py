from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.rows import rows

from tlsproxy.authz.access import GlobalMode, Grant, Grants, Rights, forbidden
from tlsproxy.authz.identity import Anchor, Identity
from tlsproxy.authz.keys import Keys
from tlsproxy.authz.matcher import Matcher
from tlsproxy.authz.roles import Policy, Principal
from tlsproxy.authz.rules import Rule
from tlsproxy.authz.templates import parse_template

ALICE = Identity(
    subject="CN=alice,OU=platform,O=Acme",
    issuer="CN=Clients CA,O=Acme",
    serial="abc",
    sha256="ab" * 32,
    not_after=0.0,
    common_name="alice",
    organizations=("Acme",),
    organizational_units=("platform", "search"),
    dns_names=("api.example.org",),
    uris=("spiffe://example.org/search/a",),
    emails=("alice@example.org",),
    ips=("10.0.0.1", "2001:db8::1"),
    anchors=(Anchor("CN=Root CA,O=Acme", "ef" * 32, "01" * 32), Anchor("CN=Upper CA", "fe" * 32, "02" * 32)),
)
DOUBTED = replace(ALICE, doubted=frozenset({"issuer", "ou"}))
NOBODY = Identity(subject="", issuer="CN=Clients CA,O=Acme", serial="1", sha256="00" * 32, not_after=0.0)
ADMIN = Rights(everywhere=GlobalMode.M)
DOCS = Rights(grants=Grants(Grant("docs", write=True, extras=True)))


def policy(*rules: Rule) -> Policy:
    return Policy(roles={"admin": ADMIN, "ingest": DOCS}, rules=rules, keys=Keys())


@rows(
    "matcher",
    [
        Matcher(cn="alice"),
        Matcher(cn="al*"),
        Matcher(o="Acme"),
        Matcher(ou="platform"),
        Matcher(ou="search"),
        Matcher(dns="API.Example.org"),
        Matcher(dns="*.example.org"),
        Matcher(uri="spiffe://example.org/search/*"),
        Matcher(email="*@example.org"),
        Matcher(ip="10.0.0.1"),
        Matcher(ip="10.0.0.*"),
        Matcher(ip="2001:0DB8:0::1"),
        Matcher(subject="CN=alice,OU=platform,O=Acme"),
        Matcher(issuer="CN=Clients CA,O=Acme"),
        Matcher(serial="0A:BC"),
        Matcher(sha256=":".join(["AB"] * 32)),
        Matcher(cn="alice", ou="search", issuer="CN=Clients CA,*"),
        Matcher(ca="CN=Root CA,O=Acme"),
        Matcher(ca="CN=Root**"),
        Matcher(ca="CN=Upper CA"),
        Matcher(ca_sha256="fe" * 32),
        Matcher(ca_sha256=":".join(["EF"] * 32)),
    ],
)
def test_matches(matcher: Matcher) -> None:
    assert matcher.matches(ALICE)
    principal = policy(Rule("other", Matcher(cn="bob"), "ingest"), Rule("rule", matcher, "admin")).principal_of(ALICE)
    assert (principal.rule, principal.role, principal.rights) == ("rule", "admin", ADMIN)


@rows(
    "matcher",
    [
        Matcher(),
        Matcher(cn="Alice"),
        Matcher(cn="alic"),
        Matcher(cn="spiffe://example.org/search/a"),
        Matcher(o="acme"),
        Matcher(ou="platform,search"),
        Matcher(uri="spiffe://example.org/*"),
        Matcher(uri="spiffe://EXAMPLE.org/search/a"),
        Matcher(dns="*.org"),
        Matcher(ip="10.0.0.2"),
        Matcher(serial="abcd"),
        Matcher(sha256="cd" * 32),
        Matcher(cn="alice", issuer="CN=Servers CA,O=Acme"),
        Matcher(cn="mallory", ou="platform"),
        Matcher(cn="alice", ca="CN=Clients CA,O=Acme"),
        Matcher(cn="alice", ca_sha256="ab" * 32),
    ],
)
def test_does_not_match(matcher: Matcher) -> None:
    assert not matcher.matches(ALICE)


@rows(
    ("field", "pattern", "form"),
    [
        ("dns", "API.Example.org", "api.example.org"),
        ("sha256", "AB:CD", "abcd"),
        ("ca_sha256", "AB:CD", "abcd"),
        ("serial", "0A:BC", "abc"),
        ("serial", "A0", "a0"),
        ("serial", "0X", "x"),
        ("serial", "00", "0"),
        ("ip", "2001:0DB8:0::1", "2001:db8::1"),
        ("ip", "10.0.0.*", "10.0.0.*"),
        ("cn", "0A:BC", "0A:BC"),
    ],
)
def test_a_pattern_has_the_form_of_the_values(field: str, pattern: str, form: str) -> None:
    assert Matcher(**{field: pattern}).given() == ((field, form),)


@pytest.mark.parametrize("field", ["issuer", "ou"])
def test_what_is_in_doubt_holds_beside_the_name_of_the_ca_only(field: str) -> None:
    pattern = {"issuer": "CN=Clients CA,O=Acme", "ou": "platform"}[field]
    assert Matcher(cn="alice").matches(DOUBTED)
    for more, holds in (
        ({}, False),
        ({"cn": "alice"}, False),
        ({"ca": "CN=Root**"}, False),
        ({"ca_sha256": "ef*"}, False),
        ({"ca": "CN=Root CA,O=Acme"}, True),
        ({"ca_sha256": "ef" * 32}, True),
        ({"ca": "CN=Root**", "ca_sha256": "ef" * 32}, True),
        ({"ca": "CN=Other"}, False),
    ):
        matcher = Matcher(**{field: pattern}, **more)
        assert matcher.matches(DOUBTED) is holds, more
        assert bool(list(matcher.misses(DOUBTED))) is not holds
        assert matcher.matches(ALICE) is (more != {"ca": "CN=Other"})


@pytest.mark.parametrize(
    ("issuer", "holds"), [("CN=Clients CA,O=Acme", True), ("CN=Clients CA,**", False), ("CN=Other CA", False)]
)
def test_an_issuer_that_is_in_no_doubt_names_its_ca(issuer: str, holds: bool) -> None:  # noqa: FBT001
    confined = replace(ALICE, doubted=frozenset({"cn", "ou"}))
    assert Matcher(cn="alice", issuer=issuer).matches(confined) is holds
    assert not Matcher(cn="alice", issuer=issuer).matches(replace(confined, doubted=frozenset({"cn", "issuer"})))


FIELDS = ("cn", "o", "ou", "dns", "uri", "email", "ip", "subject", "ca", "ca_sha256")


@rows("field", FIELDS)
def test_absent_attribute_is_matched_by_nothing(field: str) -> None:
    assert not Matcher(**{field: "**"}).matches(NOBODY)


_patterns = st.none() | st.sampled_from(
    [
        "alice",
        "Alice",
        "al*",
        "a**e",
        "*",
        "**",
        "?lice",
        "alicealice",
        "search",
        "Acme",
        "10.0.0.1",
        "10.*",
        "api.*.org",
        "",
    ]
)
_cas = st.none() | st.sampled_from(["CN=Root CA,O=Acme", "CN=Root**", "CN=Other CA", "**"])
_issuers = st.none() | st.sampled_from(["CN=Clients CA,O=Acme", "CN=Clients CA,**", "CN=Other CA"])
_matchers = st.builds(
    Matcher, cn=_patterns, o=_patterns, ou=_patterns, uri=_patterns, ip=_patterns, ca=_cas, issuer=_issuers
)
_identities = st.sampled_from(
    [
        ALICE,
        NOBODY,
        DOUBTED,
        replace(ALICE, doubted=frozenset({"cn", "o", "ou", "subject"})),
        replace(ALICE, common_name="", uris=()),
    ]
)


@given(_matchers, _identities)
def test_the_quick_answer_is_that_of_the_explanation(matcher: Matcher, identity: Identity) -> None:
    assert matcher.matches(identity) is (next(matcher.misses(identity), None) is None)


@given(st.lists(_matchers, max_size=8), _identities)
def test_the_rule_that_is_found_is_the_first_of_all_that_matches(matchers: list[Matcher], identity: Identity) -> None:
    rules = tuple(Rule(str(place), matcher, "admin") for place, matcher in enumerate(matchers))
    obvious = next((rule.name for rule in rules if rule.match.matches(identity)), "")
    assert policy(*rules).principal_of(identity).rule == obvious


def test_each_field_that_does_not_match_is_explained() -> None:
    assert list(Matcher().misses(ALICE)) == ["names no field"]
    assert list(Matcher(ou="sales").misses(ALICE)) == ['ou is "platform" or "search", not "sales"']
    assert list(Matcher(o="Acme", dns="*.b", cn="**").misses(NOBODY)) == [
        'cn is absent, not "**"',
        'o is absent, not "Acme"',
        'dns is absent, not "*.b"',
    ]
    doubt = "is not believed of this CA: "
    assert list(Matcher(issuer="CN=Clients CA,O=Acme", ou="platform", cn="alice").misses(DOUBTED)) == [
        f"ou {doubt}tls.ca_constraints confines it to other names; a rule may name the CA too (ca, ca_sha256)",
        f"issuer {doubt}another one may have issuers of this name; name the CA too (ca, ca_sha256)",
    ]


def test_first_match_wins() -> None:
    principal = policy(
        Rule("other", Matcher(cn="bob"), "admin"),
        Rule("narrow", Matcher(cn="alice"), "ingest"),
        Rule("wide", Matcher(ou="platform"), "admin"),
    ).principal_of(ALICE)
    assert (principal.rule, principal.role, principal.rights, principal.refusal) == ("narrow", "ingest", DOCS, None)


def test_certificate_without_a_role_is_refused() -> None:
    principal = policy(Rule("other", Matcher(cn="bob"), "admin")).principal_of(ALICE)
    assert principal.rights == Rights()
    assert principal.refusal is not None
    assert (principal.refusal.status, principal.refusal.reason) == (403, "no_role")
    assert principal.refusal.text.startswith('Forbidden: no role for certificate "CN=alice,OU=platform,O=Acme"')
    assert "`identities`" in principal.refusal.text


def test_refusal_names_a_certificate_that_has_no_subject() -> None:
    for identity, shown in ((replace(NOBODY, uris=("spiffe://a/b",)), "spiffe://a/b"), (NOBODY, "SHA-256 0000")):
        refusal = policy().principal_of(identity).refusal
        assert refusal is not None
        assert f'no role for certificate "{shown}' in refusal.text


def test_a_refusal_says_what_is_wrong_with_the_certificate() -> None:
    everybody = policy(Rule("everybody", Matcher(cn="**"), "admin"))
    name = 'no role for certificate "CN=alice,OU=platform,O=Acme"'
    for identity, rules, reason, text in (
        (
            replace(ALICE, defect="odd"), everybody, "certificate_defect",
            f"{name} (odd): issue it anew without this defect",
        ),
        (
            replace(ALICE, foreign="DNS a.org"), everybody, "ca_constraint",
            f"{name}: it has DNS a.org, and its CA is confined to other names (`tls.ca_constraints`)",
        ),
        (ALICE, policy(), "no_role", f"{name}: the gateway's administrator can add a rule for it to `identities`"),
    ):  # fmt: skip
        principal = rules.principal_of(identity)
        assert (principal.identity, principal.rule, principal.role) == (identity, "", "")
        assert (principal.rights, principal.by_claim) == (Rights(), False)
        assert principal.refusal == forbidden(reason, text)


def test_a_role_without_its_tenant_refuses_by_name() -> None:
    rules = (Rule("rule", Matcher(cn="alice"), "admin"),)
    for text, needs in (
        ("{ou}", "certificates with exactly one ou"),
        ("x-{claim:https://a/team}", "callers whose token has a value as its claim https://a/team"),
    ):
        strict = Policy({"admin": ADMIN}, rules, Keys(), filters={"admin": (parse_template("tenant", text),)})
        refusal = strict.confined(ADMIN, "admin", ALICE, {})
        assert refusal == forbidden("no_tenant", f'role "admin" is for {needs}')
        principal = strict.principal_of(ALICE)
        assert principal.rights == Rights()
        assert principal.identity is ALICE
        if "claim" in text:
            assert (principal.rule, principal.role, principal.refusal) == ("rule", "admin", None)
            assert principal.by_claim is True
        else:
            assert (principal.rule, principal.role, principal.refusal) == ("", "", refusal)
            assert principal.by_claim is False


def test_without_a_rule_a_certificate_may_be_one_of_nobody() -> None:
    open_ = Policy({}, (), Keys(), unmapped_may_use_credentials=True)
    principal = open_.principal_of(ALICE)
    assert (principal.identity, principal.rule, principal.role, principal.refusal) == (ALICE, "", "", None)
    assert (principal.rights, principal.by_claim) == (Rights(), False)


def test_empty_policy_admits_nobody() -> None:
    refusal = policy().principal_of(ALICE).refusal
    assert refusal is not None
    assert not refusal.allowed


@given(st.sampled_from(FIELDS))
def test_certificate_with_a_defect_never_has_a_role(field: str) -> None:
    odd = replace(ALICE, defect="several common names")
    principal = policy(Rule("everybody", Matcher(**{field: "**"}), "admin")).principal_of(odd)
    assert (principal.rule, principal.role, principal.rights) == ("", "", Rights())
    assert principal.refusal is not None
    assert principal.refusal.reason == "certificate_defect"
    assert "several common names" in principal.refusal.text


def test_no_certificate_has_no_rights_and_no_refusal() -> None:
    principal = policy(Rule("everybody", Matcher(cn="**"), "admin")).principal_of(None)
    assert (principal.identity, principal.rule, principal.role) == (None, "", "")
    assert principal.rights == Rights()
    assert principal.refusal is None


def test_principal_is_compared_as_an_object() -> None:
    rules = policy(Rule("a", Matcher(cn="alice"), "admin"))
    one, other = rules.principal_of(ALICE), rules.principal_of(ALICE)
    assert one != other
    assert len({one, other}) == 2
    assert isinstance(one, Principal)


def test_why_says_which_field_did_not_hold() -> None:
    rules = policy(
        Rule("other", Matcher(cn="bob", email="bob@example.org"), "admin"),
        Rule("narrow", Matcher(cn="alice"), "ingest"),
        Rule("wide", Matcher(ou="platform"), "admin"),
    )
    assert rules.why(ALICE) == (
        'rule "other" (role "admin"): cn is "alice", not "bob"; email is "alice@example.org", not "bob@example.org"',
        'rule "narrow" (role "ingest"): matched; later rules are not tried',
    )
    assert rules.why(NOBODY)[-1] == "no rule matched"
    assert "absent" in rules.why(NOBODY)[0]
    assert rules.why(replace(ALICE, defect="several common names")) == (
        "no rule is tried, for the certificate has a defect: several common names",
    )
    assert rules.why(replace(ALICE, foreign="DNS a.org")) == (
        "no rule is tried, for tls.ca_constraints confines the CA to other names than DNS a.org",
    )
