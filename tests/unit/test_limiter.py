"""Counting a request: whose rows it is counted in, its refusals, and failed authentications before everything else."""

from __future__ import annotations

from dataclasses import replace

import pytest
from support.manual_clock import Clock

from tlsproxy.authz.access import Decision, GlobalMode, Rights
from tlsproxy.authz.identity import Identity
from tlsproxy.authz.roles import Principal
from tlsproxy.config.limits import LimitsConfig, PerAddress, Quota, RoleLimits
from tlsproxy.config.model import Config, Role
from tlsproxy.proxy.limits.addresses import TOO_MANY_FAILURES
from tlsproxy.proxy.limits.gcra import SECOND, Charge
from tlsproxy.proxy.limits.limiter import Limiter
from tlsproxy.proxy.limits.quotas import IN_FLIGHT, RATE, LimitCheck
from tlsproxy.proxy.limits.table import LimitTable

IDENTITY = Identity(subject="CN=a", issuer="CN=ca", serial="1", sha256="00", not_after=2e9)
OTHER = replace(IDENTITY, subject="CN=b")
STRANGER = LimitCheck((), authenticates=False, failed=False, unidentified=True)
WRONG, RIGHT = (LimitCheck((), authenticates=True, failed=failed) for failed in (True, False))
HERE, BESIDE, ELSEWHERE = "2001:db8::1", "2001:db8::2", "2001:db8:0:1::1"


@pytest.fixture
def clock() -> Clock:
    return Clock()


def limiter(clock: Clock, role: RoleLimits | None = None, **per_address: object) -> Limiter:
    made = Limiter(LimitTable.private(clock))
    made.adopt(
        Config.model_construct(
            roles={"role": Role(access=GlobalMode.M, limits=role or RoleLimits())},
            limits=LimitsConfig(per_address=PerAddress.model_validate(per_address)),
        )
    )
    return made


def of_role(limiter: Limiter) -> LimitCheck:
    """Check of a request by a certificate with the role, by the quotas in force."""
    check = limiter.quotas.check(Principal(IDENTITY, "rule", "role", Rights(), None), None, None, None)
    assert check is not None
    return check


def count(limiter: Limiter, check: LimitCheck, address: str = HERE, identity: Identity | None = None) -> str:
    """The reason of the refusal, or ""."""
    outcome = limiter.count(check, address, identity)
    return outcome.reason if isinstance(outcome, Decision) else ""


def test_concurrent_requests_count_until_they_are_released(clock: Clock) -> None:
    some = limiter(clock, RoleLimits(concurrent_requests=1))
    rows = some.count(of_role(some), HERE, IDENTITY)
    assert isinstance(rows, tuple)
    assert count(some, of_role(some)) == IN_FLIGHT
    some.release(rows)
    assert count(some, of_role(some)) == ""


def test_a_rate_counts_whoever_asks_and_wherever(clock: Clock) -> None:
    some = limiter(clock, RoleLimits(requests_per_second=1, burst=1))
    assert count(some, of_role(some), HERE, IDENTITY) == ""
    refusal = some.count(of_role(some), ELSEWHERE, OTHER)
    assert isinstance(refusal, Decision)
    assert (refusal.reason, refusal.retry_after) == (RATE, 1)
    clock.now += SECOND
    assert count(some, of_role(some), HERE, IDENTITY) == ""


def test_a_client_without_a_name_is_its_network(clock: Clock) -> None:
    some = limiter(clock, unidentified=Quota(concurrent_requests=1))
    rows = some.count(STRANGER, HERE, None)
    assert isinstance(rows, tuple)
    assert count(some, STRANGER, BESIDE) == IN_FLIGHT
    assert count(some, STRANGER, ELSEWHERE) == ""
    some.release(rows)
    refusal = some.count(STRANGER, ELSEWHERE, None)
    assert isinstance(refusal, Decision)
    assert "each address of unidentified clients has 1 requests at a time" in refusal.text
    assert count(some, STRANGER, BESIDE) == ""


def test_a_client_without_a_name_is_charged_beside_what_else_is_charged(clock: Clock) -> None:
    some = limiter(clock, unidentified=Quota(requests_per_second=1, burst=2))
    mine = Charge(7, "each key", None, 1)
    both = replace(STRANGER, charges=(mine,))
    rows = some.count(both, HERE, None)
    assert isinstance(rows, tuple)
    assert count(some, both) == IN_FLIGHT
    some.release(rows)
    assert count(some, both) == ""
    assert count(some, STRANGER) == RATE


def test_a_delay_refuses_good_keys_too_and_only_there(clock: Clock) -> None:
    some = limiter(clock, failed_authentications=1)
    for check in (WRONG, WRONG):
        assert count(some, check, HERE, IDENTITY) == "", "the failure itself is answered as what it is"
    for check in (WRONG, RIGHT):
        assert count(some, check, BESIDE, IDENTITY) == TOO_MANY_FAILURES
    assert count(some, RIGHT, HERE, OTHER) == ""
    assert count(some, RIGHT, HERE, None) == ""
    assert count(some, RIGHT, ELSEWHERE, IDENTITY) == ""
    clock.now += SECOND
    assert count(some, RIGHT, HERE, IDENTITY) == ""
    assert count(some, WRONG, HERE, IDENTITY) == ""
    clock.now += SECOND
    assert count(some, RIGHT, HERE, IDENTITY) == TOO_MANY_FAILURES, "refused ones were not counted: it is 2 s now"
    clock.now += SECOND
    assert count(some, RIGHT, HERE, IDENTITY) == ""


def test_good_keys_are_no_failures(clock: Clock) -> None:
    some = limiter(clock, failed_authentications=1)
    for _ in range(9):
        assert count(some, RIGHT, HERE, None) == ""
    assert some.addresses.delay("2001:db8::/64", ()) == 0


def test_failures_without_a_certificate_are_the_networks(clock: Clock) -> None:
    some = limiter(clock, failed_authentications=1)
    for _ in range(2):
        assert count(some, WRONG, HERE, None) == ""
    assert count(some, RIGHT, BESIDE, None) == TOO_MANY_FAILURES
    assert some.addresses.connect("2001:db8::/64") == TOO_MANY_FAILURES
    assert count(some, RIGHT, HERE, IDENTITY) == ""
