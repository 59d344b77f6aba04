"""Route affinities: one for each caller, which tells nobody who that is; and when they are sent."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from unittest.mock import MagicMock

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.site import Site

from tlsproxy.authz.access import Rights
from tlsproxy.authz.admission import Admission, Credential
from tlsproxy.authz.identity import Identity
from tlsproxy.authz.roles import Principal
from tlsproxy.proxy.core.gateway import Gateway
from tlsproxy.proxy.decision.affinity import HEADER, clients_affinity, own_affinity
from tlsproxy.proxy.limits.table import LimitTable
from tlsproxy.proxy.transport.deadlines import Deadlines
from tlsproxy.snapshot.files import read_inputs
from tlsproxy.snapshot.generation import Generation
from tlsproxy.snapshot.startup import first_generation
from tlsproxy.wire.grpc import CallHead
from tlsproxy.wire.http1 import RequestHead

KEY = b"k" * 32
ALICE = Identity(subject="CN=alice", issuer="CN=ca", serial="1", sha256="00", not_after=2e9, common_name="alice")
HEAD = RequestHead("GET", "/collections", ((b"host", b"h"),), b"h", 0, frozenset(), expects_continue=False)
CALL = CallHead("/qdrant.Points/Search", (), b"h")


def affinity(identity: Identity | None, credential: Credential | None = None, key: bytes | None = KEY) -> bytes:
    admission = Admission(Principal(identity, "", "", Rights(), None), credential)
    sent = own_affinity(HEAD, key, admission)
    assert sent == own_affinity(CALL, key, admission), "both protocols read from one replica"
    return sent


def token(subject: str, issuer: str = "login") -> Credential:
    return Credential("Jwt", issuer, (), subject=subject)


def named(key: str) -> Credential:
    return Credential("ApiKey", key, ())


def test_each_caller_has_its_own() -> None:
    bob = replace(ALICE, subject="CN=bob", common_name="bob")
    callers = [
        (ALICE, None),
        (bob, None),
        (None, token("alice")),
        (None, token("bob")),
        (None, token("alice", "other")),
        (None, token("", "login")),
        (None, named("ci")),
        (None, named("login")),
        (None, token("", "ci")),
    ]
    found = [affinity(*caller) for caller in callers]
    assert len(set(found)) == len(callers)
    assert all(len(one) == 24 and one.isalnum() for one in found)
    assert found == [affinity(*caller) for caller in callers]
    assert not set(found) & {affinity(*caller, key=b"another") for caller in callers}


def test_a_user_is_the_same_behind_any_service_and_a_service_with_any_key() -> None:
    renewed = replace(ALICE, serial="2", sha256="11", not_after=3e9)
    assert affinity(ALICE, token("u")) == affinity(None, token("u")) != affinity(ALICE)
    assert affinity(ALICE, named("ci")) == affinity(ALICE, token("")) == affinity(ALICE) == affinity(renewed)


def test_it_is_not_sent_without_a_key_or_a_caller_or_in_place_of_the_clients() -> None:
    assert affinity(None) == affinity(ALICE, key=None) == b""
    admission = Admission(Principal(ALICE, "", "", Rights(), None), None)
    for given_value in (b"own", b""):
        head = replace(HEAD, fields=((HEADER, given_value),))
        assert own_affinity(head, KEY, admission) == b""
        assert clients_affinity(head) == given_value
    assert own_affinity(HEAD, KEY, None) == clients_affinity(HEAD) == b""


@given(st.tuples(st.text(), st.text()), st.tuples(st.text(), st.text()))
def test_two_callers_have_two(one: tuple[str, str], other: tuple[str, str]) -> None:
    """Whatever is in their names."""
    same = affinity(None, token(*one)) == affinity(None, token(*other))
    assert same == (one == other)


@pytest.fixture
def generation(tmp_path: Path) -> Generation:
    path = Site(tmp_path).write_config("http://127.0.0.1:6333")
    return first_generation(path, {}, read_inputs(path, {}), {}).generation


def test_only_from_the_release_that_reads_it_on(generation: Generation) -> None:
    """Remembered plans go where that changes, and stay where it does not."""
    principal = generation.policy.principal_of(replace(ALICE, organizational_units=("platform",)))
    head = b"GET /collections HTTP/1.1\r\nhost: h\r\n\r\n"

    async def outcomes(*releases: tuple[int, int] | None) -> list[tuple[bool, bool]]:
        gateway = Gateway(
            generation, MagicMock(), MagicMock(), Deadlines(MagicMock()), MagicMock(), LimitTable.private(), KEY
        )
        found = []
        for release in releases:
            plans = gateway.plans
            gateway.learn_release(release)
            sent = HEADER in gateway.plans.of(principal, head, 0.0, None)[0].upstream
            found.append((sent, gateway.plans is plans))
        return found

    releases = (None, (1, 18), (1, 19), (1, 20), (2, 0), (1, 18), (1, 20), None)
    sent, kept = zip(*asyncio.run(outcomes(*releases)), strict=True)
    assert sent == (False, False, True, True, True, False, True, False)
    assert kept == (True, True, False, True, True, False, False, False)
