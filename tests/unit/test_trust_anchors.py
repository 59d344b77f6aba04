"""Which CA a chain rests on, and what it may say: against a twin that follows the definition literally."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.rows import rows

from tlsproxy.authz.identity import Anchor, Identity
from tlsproxy.authz.matcher import Matcher
from tlsproxy.authz.trust_anchors import Anchors, Confinement, folded

NAMES = ("CN=Staff CA", "CN=STAFF  CA", "CN=Partner CA", "CN=Issuing CA")
LEAF = Identity(subject="CN=a", issuer="", serial="1", sha256="00", not_after=0.0, common_name="a")


def anchor(name: str, key: str, edition: int = 0) -> Anchor:
    return Anchor(name, f"{name}/{key}/{edition}".lower(), key)


_anchors = st.builds(anchor, st.sampled_from(NAMES), st.sampled_from("klm"), st.integers(0, 1))
_trusted = st.lists(_anchors, max_size=4, unique_by=lambda one: one.sha256)


@st.composite
def _sites(draw: st.DrawFn) -> tuple[list[Anchor], dict[str, list[str]], list[Anchor]]:
    """CAs that are trusted, who issued which of them, and a chain of issuers that ends in one of them, or in none."""
    trusted = draw(_trusted)
    issued = {one.sha256: draw(st.lists(st.sampled_from(trusted), max_size=2)) for one in trusted}
    above = {lower: [one.sha256 for one in uppers] for lower, uppers in issued.items()}
    chain = [*draw(st.lists(_anchors, max_size=3)), *draw(st.lists(st.sampled_from(trusted or [None]), max_size=1))]
    return trusted, above, [one for one in chain if one is not None]


def same(one: Anchor, other: Anchor) -> bool:
    return folded(one.subject) == folded(other.subject) and one.key == other.key


def independent(trusted: Sequence[Anchor], above: dict[str, list[str]]) -> list[Anchor]:
    """Those that no other CA of the file has issued."""
    by_digest = {one.sha256: one for one in trusted}
    return [one for one in trusted if all(same(by_digest[upper], one) for upper in above[one.sha256])]


def vouching(one: Anchor, trusted: Sequence[Anchor], above: dict[str, list[str]]) -> set[Anchor]:
    """A CA's own certificates, and those of whoever issued one of them, and so on up to an independent CA."""
    tops = independent(trusted, above)
    found = {one}
    for _ in trusted:
        lower = {each for each in found if not any(same(each, top) for top in tops)}
        found |= {other for other in trusted if any(same(other, each) for each in found)}
        found |= {other for other in trusted for each in lower if other.sha256 in above.get(each.sha256, ())}
    return found


def believed(issuer: str, chain: Sequence[Anchor], trusted: Sequence[Anchor], above: dict[str, list[str]]) -> bool:
    """The definition: the issuer is the anchor, or stands below the only anchor of that name, or below the only one."""
    rests = next((one for one in chain if one in trusted), chain[-1])
    if rests not in trusted:
        return False
    direct = chain[0] == rests
    of_that_name = [one for one in trusted if folded(one.subject) == folded(rests.subject)]
    only_of_that_name = all(same(one, rests) for one in of_that_name)
    tops = independent(trusted, above)
    only = bool(tops) and all(same(one, rests) for one in tops)
    return (issuer == rests.subject and (direct or only_of_that_name)) or only


@given(_sites(), st.sampled_from(NAMES))
def test_the_issuers_name_is_believed_by_definition(
    site: tuple[list[Anchor], dict[str, list[str]], list[Anchor]], issuer: str
) -> None:
    trusted, above, chain = site
    identity = Anchors(trusted, above).identified(replace(LEAF, issuer=issuer), chain)
    matcher = Matcher(issuer=issuer)
    if not chain:
        assert (identity.ca, matcher.matches(identity)) == ("", False)
        return
    rests = next((one for one in chain if one in trusted), chain[-1])
    assert identity.anchors[0] == rests
    assert set(identity.anchors) == vouching(rests, trusted, above)
    assert matcher.matches(identity) is believed(issuer, chain, trusted, above)
    assert Matcher(issuer=issuer, ca=rests.subject).matches(identity)
    others = {one.subject for one in trusted} - {one.subject for one in identity.anchors}
    assert not any(Matcher(issuer=issuer, ca=other).matches(identity) for other in others)


@given(_sites())
def test_no_rule_for_one_ca_matches_below_another(
    site: tuple[list[Anchor], dict[str, list[str]], list[Anchor]],
) -> None:
    """Two roots without a name in common: whatever the chain below one looks like, no issuer of the other matches."""
    chain = site[2]
    staff, partner = anchor("CN=Staff Root", "s"), anchor("CN=Partner Root", "p")
    anchors = Anchors([staff, partner], {})
    for name in {"CN=Staff Root", *(one.subject for one in chain), *NAMES}:
        identity = anchors.identified(replace(LEAF, issuer=name), [*chain, partner])
        assert not Matcher(issuer="CN=Staff Root").matches(identity)
        assert not Matcher(issuer="**", ca="CN=Staff Root").matches(identity)
        assert not Matcher(issuer=name, ca_sha256=staff.sha256).matches(identity)
        assert Matcher(issuer=name, ca_sha256=partner.sha256).matches(identity)
        assert identity.account != anchors.identified(replace(LEAF, issuer=name), [*chain, staff]).account


def test_a_ca_that_was_issued_anew_is_the_same_account() -> None:
    old, new = anchor("CN=Root", "k", 0), anchor("CN=Root", "k", 1)
    leaf = replace(LEAF, issuer="CN=Root")
    one, other = Anchors([old]).identified(leaf, [old]), Anchors([new]).identified(leaf, [new])
    assert one.account == other.account
    assert one.ca_sha256 != other.ca_sha256
    both = Anchors([old, new])
    assert (both.several, list(both.shared_names())) == (False, [])
    another_key = Anchors([anchor("CN=Root", "l")]).identified(leaf, [anchor("CN=Root", "l")])
    assert one.account != another_key.account


@pytest.mark.parametrize("direct", [True, False])
def test_a_change_of_keys_under_one_name(*, direct: bool) -> None:
    """Both are that CA; what stands below either needs it named, which goes through the change."""
    old, new, issuing = anchor("CN=Root", "k"), anchor("CN=Root", "l"), anchor("CN=Issuing", "i")
    anchors = Anchors([old, new])
    assert list(anchors.shared_names()) == ["CN=Root"]
    for root in (old, new):
        issuer = root if direct else issuing
        identity = anchors.identified(replace(LEAF, issuer=issuer.subject), [root] if direct else [issuing, root])
        assert Matcher(issuer=issuer.subject).matches(identity) is direct
        assert Matcher(issuer=issuer.subject, ca="CN=Root").matches(identity)


@pytest.mark.parametrize("keys", ["k", "kl"])
def test_an_intermediate_with_the_name_of_its_root_is_believed_where_that_is_one_ca(keys: str) -> None:
    roots = [anchor("CN=Root", key) for key in keys]
    anchors = Anchors([*roots, anchor("CN=Other", "o")])
    identity = anchors.identified(replace(LEAF, issuer="CN=Root"), [anchor("CN=Root", "i"), roots[0]])
    assert Matcher(issuer="CN=Root").matches(identity) is (len(roots) == 1)


def test_an_intermediate_beside_its_root_makes_no_second_ca() -> None:
    root, one, other = anchor("CN=Root", "r"), anchor("CN=One", "1"), anchor("CN=Other", "2")
    anchors = Anchors([root, one], {one.sha256: [root.sha256], root.sha256: [root.sha256]})
    assert not anchors.several
    for chain, issuer, holds in (
        ([one], "CN=One", True),
        ([root], "CN=Root", True),
        ([other, root], "CN=Other", True),
        ([other, one], "CN=Other", False),
    ):
        identity = anchors.identified(replace(LEAF, issuer=issuer), chain)
        assert Matcher(issuer=issuer).matches(identity) is holds
        # A rule that names the root has what stands below it, wherever OpenSSL found the chain's end.
        assert Matcher(issuer=issuer, ca="CN=Root").matches(identity)
        assert Matcher(ca="CN=One").matches(identity) is (chain[-1] is one)


def test_a_ca_that_another_has_certified_too_is_still_another() -> None:
    staff, partner, crossed = anchor("CN=Staff", "s"), anchor("CN=Partner", "p", 0), anchor("CN=Partner", "p", 1)
    anchors = Anchors([staff, partner, crossed], {crossed.sha256: [staff.sha256]})
    for end in (partner, crossed):
        identity = anchors.identified(replace(LEAF, issuer="CN=Partner"), [end])
        assert not Matcher(ca="CN=Staff").matches(identity)
        assert Matcher(ca_sha256=partner.sha256).matches(identity)
        assert Matcher(ca_sha256=crossed.sha256).matches(identity)


def test_cas_that_issued_each_other_leave_all_in_doubt() -> None:
    one, other = anchor("CN=One", "1"), anchor("CN=Other", "2")
    anchors = Anchors([one, other], {one.sha256: [other.sha256], other.sha256: [one.sha256]})
    assert anchors.several
    assert "issuer" in anchors.identified(replace(LEAF, issuer="CN=X"), [anchor("CN=X", "x"), one]).doubted


# Confinement

OWN = Confinement(ca="CN=Partner CA", trust_domain="partner.example", dns=("partner.example",))
_labels = st.sampled_from(["a", "partner", "example", "evilpartner", "org", "*"])
_names = st.lists(_labels, min_size=1, max_size=4).map(".".join)


@given(
    st.lists(_names, max_size=3),
    st.lists(
        st.sampled_from(["spiffe://", "https://", "SPIFFE://"]).flatmap(lambda s: _names.map(s.__add__)), max_size=1
    ),
    st.lists(_names.map("x@".__add__), max_size=2),
    st.lists(st.just("10.0.0.1"), max_size=1),
    st.sampled_from(["", "a", "a.partner.example"]),
)
def test_all_names_must_be_within(dns: list[str], uris: list[str], emails: list[str], ips: list[str], cn: str) -> None:
    def labels(name: str) -> bool:
        return name.split(".")[-2:] == ["partner", "example"]

    identity = replace(
        LEAF, dns_names=tuple(dns), uris=tuple(uris), emails=tuple(emails), ips=tuple(ips), common_name=cn
    )
    within = [*map(labels, dns), *(labels(email.partition("@")[2]) for email in emails), *(False for _ in ips)]
    within += [uri == "spiffe://partner.example" for uri in uris]
    expected = all(within) if within else labels(cn)
    assert (OWN.outside(identity) == "") is expected


@rows(
    ("names", "outside"),
    [
        ({"uris": ("spiffe://partner.example/a", "https://partner.example")}, "URI https://partner.example"),
        ({"dns_names": ("a.partner.example", "evilpartner.example")}, "DNS evilpartner.example"),
        ({"emails": ("x@partner.example", "x@other.org")}, "email x@other.org"),
        ({"emails": ("x@partner.example",)}, ""),
        ({"emails": ('"x@partner.example"@other.org',)}, 'email "x@partner.example"@other.org'),
        ({"emails": ('"x@other.org"@partner.example',)}, ""),
        ({"emails": ("partner.example",)}, ""),
        ({"emails": ("x@y@partner.example",)}, ""),
        ({"emails": ("x@partner.example@other.org",)}, "email x@partner.example@other.org"),
        ({"ips": ("10.0.0.1",)}, "IP 10.0.0.1"),
        ({"dns_names": ("a.partner.example",), "ips": ("10.0.0.1",)}, "IP 10.0.0.1"),
        ({}, "no alternative name"),
        ({"common_name": "a.partner.example"}, ""),
    ],
)
def test_the_first_name_outside_is_told(names: dict[str, tuple[str, ...]], outside: str) -> None:
    assert OWN.outside(replace(LEAF, **names)) == outside  # type: ignore[arg-type]


def test_a_constraint_is_shown_with_all_that_it_permits() -> None:
    assert str(replace(OWN, dns=("partner.example", "b.org"))) == "spiffe://partner.example, *.partner.example, *.b.org"
    assert str(replace(OWN, trust_domain="")) == "*.partner.example"


def test_other_kinds_of_names_are_within_nothing() -> None:
    assert OWN.outside(replace(LEAF, dns_names=("partner.example",), other_names=("OtherName",))) == "OtherName"


def test_a_trust_domain_alone_has_no_dns_names_and_the_other_way_round() -> None:
    spiffe, dns = replace(LEAF, uris=("spiffe://partner.example/a",)), replace(LEAF, dns_names=("partner.example",))
    domain, suffix = replace(OWN, dns=()), replace(OWN, trust_domain="")
    assert [bool(one.outside(identity)) for one in (domain, suffix) for identity in (spiffe, dns)] == [
        False,
        True,
        True,
        False,
    ]


def test_confinement_is_of_a_key_and_of_what_it_issued() -> None:
    """Neither another certificate of the same CA is a way out, nor an intermediate that is trusted by itself."""
    old, new, lower = anchor("CN=Partner CA", "p", 0), anchor("CN=Partner CA", "p", 1), anchor("CN=Lower", "l")
    lowest, staff = anchor("CN=Lowest", "m"), anchor("CN=Staff CA", "s")
    above = {lower.sha256: [old.sha256], lowest.sha256: [lower.sha256]}
    for confinement in (OWN, replace(OWN, ca="", ca_sha256=old.sha256), replace(OWN, ca="cn=PARTNER ca")):
        anchors = Anchors([old, new, lower, lowest, staff], above, [confinement])
        for one in (old, new, lower, lowest):
            identity = anchors.identified(LEAF, [one])
            assert identity.foreign == "no alternative name"
            assert identity.doubted >= {"cn", "o", "ou", "subject"}
        assert anchors.identified(LEAF, [staff]).foreign == ""
        assert anchors.unconfined == (staff,)


@pytest.mark.parametrize("issuer", ["CN=Partner CA", "CN=Issuing CA"])
@pytest.mark.parametrize(("cn", "within"), [("a.partner.example", True), ("partner.example", True), ("alice", False)])
def test_a_confined_ca_is_believed_about_a_common_name_within(issuer: str, cn: str, *, within: bool) -> None:
    partner, issuing = anchor("CN=Partner CA", "p"), anchor("CN=Issuing CA", "i")
    anchors = Anchors([partner, anchor("CN=Staff CA", "s")], {}, [OWN])
    chain = [partner] if issuer == partner.subject else [issuing, partner]
    identity = anchors.identified(replace(LEAF, issuer=issuer, common_name=cn), chain)
    doubted = {"o", "ou", "subject", *(() if within else ("cn",)), *(("issuer",) if chain[0] is issuing else ())}
    assert identity.doubted == doubted


def test_a_confined_ca_that_signed_itself_is_below_itself_once() -> None:
    partner, staff = anchor("CN=Partner CA", "p"), anchor("CN=Staff CA", "s")
    for signers in ([partner.sha256], [staff.sha256]):
        anchors = Anchors([partner, staff], {partner.sha256: signers, staff.sha256: [partner.sha256]}, [OWN])
        assert anchors.confinements(partner) == [OWN]


def test_the_names_of_two_confinements_must_both_hold() -> None:
    partner = anchor("CN=Partner CA", "p")
    anchors = Anchors([partner], {}, [OWN, Confinement(ca_sha256=partner.sha256, dns=("a.partner.example",))])
    for name, outside in (("a.partner.example", ""), ("b.partner.example", "DNS b.partner.example")):
        assert anchors.identified(replace(LEAF, dns_names=(name,)), [partner]).foreign == outside
