"""Who counts as one address, and which failures are whose."""

from __future__ import annotations

import pytest
from support.manual_clock import Clock

from tlsproxy.config.limits import LimitsConfig, PerAddress
from tlsproxy.proxy.limits.addresses import (
    ADDRESS_LIMIT,
    CONNECTION_LIMIT,
    HANDSHAKE_RATE,
    TOO_MANY_FAILURES,
    TURN,
    Addresses,
    network_of,
)
from tlsproxy.proxy.limits.gcra import SECOND, Rate
from tlsproxy.proxy.limits.table import LimitTable


@pytest.fixture
def clock() -> Clock:
    return Clock()


def addresses(clock: Clock, **settings: object) -> Addresses:
    made = Addresses(LimitTable.private(clock))
    made.adopt(LimitsConfig.model_validate(settings))
    return made


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("192.0.2.1", "192.0.2.2", False),
        ("2001:db8::1", "2001:db8::ffff:1", True),
        ("2001:db8::1", "2001:db8::8000:0:0:1", True),
        ("2001:db8::1", "2001:db8:0:1::1", False),
        ("fe80::1%eth0", "fe80::2%eth1", True),
        ("::1", "::1", True),
    ],
)
def test_an_ipv6_network_of_64_bits_is_one_client(one: str, other: str, *, same: bool) -> None:
    assert (network_of(one) == network_of(other)) is same


def test_connections_are_counted_for_each_address_and_in_all(clock: Clock) -> None:
    some = addresses(clock, connections=3, connections_per_address=2)
    first = some.connect("a")
    assert isinstance(first, tuple)
    assert isinstance(some.connect("a"), tuple)
    assert some.connect("a") == ADDRESS_LIMIT
    assert isinstance(some.connect("b"), tuple)
    assert some.connect("c") == CONNECTION_LIMIT
    some.release(first)
    assert isinstance(some.connect("c"), tuple)
    assert some.connect("a") == CONNECTION_LIMIT


def test_new_connections_have_a_rate_for_each_address(clock: Clock) -> None:
    some = addresses(clock, per_address={"handshakes_per_second": 2, "burst": 3})
    for _ in range(3):
        held = some.connect("a")
        assert isinstance(held, tuple)
        some.release(held)
    assert some.connect("a") == HANDSHAKE_RATE
    assert isinstance(some.connect("b"), tuple)
    clock.now += SECOND // 2
    assert isinstance(some.connect("a"), tuple)
    assert some.connect("a") == HANDSHAKE_RATE


def test_an_address_that_fails_is_not_heard_for_a_while_and_then_everybody_there_is(clock: Clock) -> None:
    some = addresses(clock, per_address={"failed_authentications": 2, "max_delay": 4})
    some.failed("a", ())
    some.failed("a", ())
    assert isinstance(some.connect("a"), tuple)
    for expected in (1, 4, 4):
        some.failed("a", ())
        assert some.delay("a", ()) == expected * SECOND
        assert some.connect("a") == TOO_MANY_FAILURES
        assert isinstance(some.connect("b"), tuple)
        refusal = some.refusal("a", ())
        assert refusal is not None
        assert (refusal.status, refusal.retry_after, refusal.reason) == (429, expected, TOO_MANY_FAILURES)
        assert refusal.text == (f"Rate limiting exceeded: too many failed authentications. Retry after {expected}s")
        clock.now += expected * SECOND
        # One that goes on failing at once begins no delay yet.
        for _ in range(3):
            some.failed("a", ())
            assert isinstance(some.connect("a"), tuple)
        clock.now += TURN
    clock.now += 600 * SECOND
    some.failed("a", ())
    assert some.delay("a", ()) == 0, "time has made up for all of it"


def test_the_failures_of_an_identity_are_its_own(clock: Clock) -> None:
    some = addresses(clock, per_address={"failed_authentications": 1})
    some.failed("a", ("CN=one",))
    some.failed("a", ("CN=one",))
    assert some.delay("a", ("CN=one",)) == SECOND
    assert some.delay("a", ("CN=two",)) == some.delay("b", ("CN=one",)) == some.delay("a", ()) == 0
    for address, identity in (("a", ("CN=two",)), ("b", ("CN=one",)), ("a", ())):
        some.failed(address, identity)
        assert some.delay(address, identity) == 0, "one failure has no delay yet"
    assert isinstance(some.connect("a"), tuple)
    clock.now += SECOND
    assert some.delay("a", ("CN=one",)) == 0
    some.failed("a", ("CN=one",))
    assert some.delay("a", ("CN=one",)) == 2 * SECOND, "nobody waits with it, so that it is not heard in between"


def test_requests_of_unidentified_clients_are_counted_apart_from_connections(clock: Clock) -> None:
    some = addresses(clock, connections_per_address=1, per_address={"unidentified": {"requests_per_second": 5}})
    charge = some.request("a")
    assert (charge.rate, charge.concurrent) == (Rate.of(5, None), 0)
    assert charge.key not in {some.request("b").key, 0}
    held = some.connect("a")
    assert isinstance(held, tuple)
    some.adopt(LimitsConfig.model_validate({"per_address": {"unidentified": {"concurrent_requests": 1}}}))
    charge = some.request("a")
    assert (charge.rate, charge.concurrent) == (None, 1)
    assert isinstance(some._table.take((charge,)), tuple), "an open connection is no request"


def test_without_settings_nothing_is_remembered(clock: Clock) -> None:
    some = addresses(clock)
    for _ in range(100):
        some.failed("a", ())
    some.adopt(LimitsConfig(per_address=PerAddress(failed_authentications=1)))
    assert some.delay("a", ()) == 0
