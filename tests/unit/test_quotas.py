"""Accounts and limits of a caller: whose rows a request is counted in, and the largest body of all its roles."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tlsproxy.authz.access import ALLOWED, GlobalMode, Rights, forbidden
from tlsproxy.authz.admission import Admission, Credential
from tlsproxy.authz.identity import Identity
from tlsproxy.authz.matcher import Claim, ClaimMatcher, Matcher
from tlsproxy.authz.roles import Principal
from tlsproxy.authz.rules import Rule
from tlsproxy.config.limits import LimitsConfig, PerAddress, Quota, RoleLimits
from tlsproxy.config.model import Config, Role
from tlsproxy.errors import Form
from tlsproxy.proxy.limits.gcra import Rate
from tlsproxy.proxy.limits.quotas import LimitCheck, Quotas
from tlsproxy.qdrant.operations import REST

ALL = Rights(everywhere=GlobalMode.M)
IDENTITY = Identity(subject="CN=a", issuer="CN=ca", serial="1", sha256="00", not_after=2e9)
STRANGER = Principal(None, "", "", Rights(), None)
PROBE = next(row for row in REST if row.free)
SEARCH = next(row for row in REST if not row.free and not row.open)
MIB = 1 << 20


def config(roles: dict[str, RoleLimits] | None = None, **limits: object) -> Config:
    made = {name: Role(access=GlobalMode.M, limits=each) for name, each in (roles or {}).items()}
    return Config.model_construct(roles=made, limits=LimitsConfig.model_construct(**{**dict(LimitsConfig()), **limits}))


def row_of(*names: str) -> tuple[int, bytes]:
    return hash(names), b""


def holder(role: str = "", identity: Identity | None = IDENTITY) -> Principal:
    return Principal(identity, "rule", role, ALL, None)


def key(role: str = "", **changes: str) -> Credential:
    return replace(Credential("ApiKey", "ingest", (ALL,), role), **changes)


def check(made: Config, principal: Principal, credential: Credential | None = None) -> LimitCheck | None:
    return Quotas(made, row_of).check(principal, Admission(principal, credential), SEARCH, ALLOWED)


def charged(made: Config, principal: Principal, credential: Credential | None = None) -> dict[str, int]:
    found = check(made, principal, credential)
    return {} if found is None else {charge.whose: charge.key for charge in found.charges}


@pytest.mark.parametrize(("own", "keys", "largest"), [
    (None, None, None), (2, None, 2), (None, 3, 3), (2, 3, 2), (3, 2, 2), (2, 2, 2),
])  # fmt: skip
def test_the_smaller_limit_of_two_roles_counts(own: int | None, keys: int | None, largest: int | None) -> None:
    quotas = Quotas(config({"own": RoleLimits(max_body_mb=own), "keys": RoleLimits(max_body_mb=keys)}), row_of)
    expected = None if largest is None else largest * MIB
    assert quotas.largest_body(Admission(holder("own"), key("keys"))) == expected
    assert quotas.largest_body(None) is None
    assert quotas.largest_body(Admission(holder(), None)) is None


def test_the_subject_of_a_token_is_a_holder_of_its_rules_role() -> None:
    own = RoleLimits(requests_per_second=3, per_identity=Quota(requests_per_second=2))
    made = config({"role": own, "free": RoleLimits(per_identity=Quota())}, per_key=Quota(requests_per_second=7))
    rows = {}
    for role, rate in (("role", Rate.of(2, None)), ("free", None), ("", Rate.of(7, None))):
        rule = Rule("r", Matcher(), role, ClaimMatcher((Claim("groups", "sre"),))) if role else None
        token = Credential("Jwt", "login", (ALL,), subject="alice", rule=rule)
        found = check(made, STRANGER, token)
        charges = {charge.whose: charge for charge in found.charges} if found is not None else {}
        each = charges.get("each subject of tokens")
        assert (each and each.rate) == rate
        assert ('role "role"' in charges) is (role == "role")
        rows[role] = each and each.key
    assert rows["role"] == rows[""] == row_of("key", "Jwt", "login", "alice")[0]


def test_each_role_of_a_caller_is_charged_once() -> None:
    limit = RoleLimits(requests_per_second=5, burst=2, concurrent_requests=7)
    made = config({"own": limit, "keys": limit, "free": RoleLimits()})
    assert charged(made, holder("own"), key("keys")) == {
        'role "own"': row_of("role", "own")[0], 'role "keys"': row_of("role", "keys")[0],
    }  # fmt: skip
    assert list(charged(made, holder("own"), key("own"))) == ['role "own"']
    assert charged(made, holder("free"), key("free")) == {}
    assert charged(made, holder(), None) == {}
    only = Quotas(made, row_of).check(holder("own"), None, SEARCH, forbidden("x", "y"))
    assert only is not None, "a request that is refused counts against the role of its connection"
    (charge,) = only.charges
    assert (charge.rate, charge.concurrent) == (Rate.of(5, 2), 7)
    assert Quotas(made, row_of).check(holder(), None, SEARCH, forbidden("x", "y")) is None


def test_a_rate_and_a_number_at_a_time_are_limits_each_by_itself() -> None:
    for limit, rate, concurrent in (
        (RoleLimits(requests_per_second=5), Rate.of(5, None), 0),
        (RoleLimits(concurrent_requests=1), None, 1),
    ):
        found = check(config({"own": limit}), holder("own"))
        assert found is not None
        assert [(charge.rate, charge.concurrent) for charge in found.charges] == [(rate, concurrent)]


def test_a_certificate_has_the_limit_of_its_role_or_else_that_of_all() -> None:
    own, every = Quota(concurrent_requests=1), Quota(concurrent_requests=9)
    made = config({"own": RoleLimits(per_identity=own), "other": RoleLimits()}, per_identity=every)
    whose = "each client certificate"
    for role, limit in (("own", 1), ("other", 9), ("", 9)):
        found = check(made, holder(role))
        assert found is not None
        assert [(each.whose, each.key, each.concurrent) for each in found.charges] == [
            (whose, row_of(*IDENTITY.account)[0], limit)
        ]
    assert charged(made, STRANGER) == {}


def test_keys_and_subjects_have_rows_of_their_own() -> None:
    made = config(per_key=Quota(concurrent_requests=1))
    rows = {
        charged(made, STRANGER, each)["each subject of tokens" if each.subject else "each key"]
        for each in (key(), key(name="other"), key(subject="s"), key(kind="Jwt"), key(subject="t"))
    }
    assert len(rows) == 5
    assert row_of("key", "ApiKey", "ingest", "s")[0] in rows
    assert charged(made, holder()) == {}


def test_probes_are_never_counted() -> None:
    made = config({"own": RoleLimits(concurrent_requests=1)}, per_address=PerAddress(failed_authentications=1))
    quotas = Quotas(made, row_of)
    assert quotas.check(holder("own"), Admission(holder("own"), key()), PROBE, ALLOWED) is None
    assert quotas.check(holder("own"), None, None, None) is not None, "what is not recognised counts"


@pytest.mark.parametrize("delays", [False, True])
def test_authentications_and_their_failures(*, delays: bool) -> None:
    quotas = Quotas(config(per_address=PerAddress(failed_authentications=3 if delays else None)), row_of)
    wrong = forbidden("invalid_key", "no", Form.BARE)
    failed = quotas.check(holder(), None, SEARCH, wrong)
    good = quotas.check(holder(), Admission(holder(), key()), SEARCH, ALLOWED)
    denied = quotas.check(holder(), Admission(holder(), key()), SEARCH, forbidden("x", "y"))
    assert quotas.check(holder(), Admission(holder(), None), SEARCH, ALLOWED) is None
    assert quotas.check(holder(), None, SEARCH, None) is None
    if delays:
        assert failed == LimitCheck((), authenticates=True, failed=True)
        assert good == denied == LimitCheck((), authenticates=True, failed=False)
    else:
        assert failed is good is denied is None


@pytest.mark.parametrize("limited", [False, True])
def test_a_caller_without_certificate_and_key_counts_for_its_address(*, limited: bool) -> None:
    per_address = PerAddress(unidentified=Quota(concurrent_requests=1) if limited else Quota())
    quotas = Quotas(config(per_address=per_address), row_of)
    for admission in (None, Admission(STRANGER, None)):
        found = quotas.check(STRANGER, admission, SEARCH, None)
        expected = LimitCheck((), authenticates=False, failed=False, unidentified=True) if limited else None
        assert found == expected
    assert quotas.check(STRANGER, Admission(STRANGER, key()), SEARCH, ALLOWED) is None
    assert quotas.check(holder(), None, SEARCH, None) is None
