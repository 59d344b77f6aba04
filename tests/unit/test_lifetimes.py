"""Lifetimes of all that ends, and the moments at which each is warned of."""

from __future__ import annotations

import base64
import itertools
import json
import logging
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st
from jwt.algorithms import ECAlgorithm
from snapshot_site import ROOT, hour, site

from tlsproxy.service.expiry_log import ExpiryLog
from tlsproxy.snapshot.lifetimes import DAY, SOON, URGENT, Kind, Lifetime, due, lifetimes_of, next_due, text, warnings

NOW = 1_800_000_000.0


def lifetime(start: float, end: float, edition: str = "a", kind: Kind = "server") -> Lifetime:
    return Lifetime(kind, "CN=a", "server.pem", "serial 1", start, end, edition)


def days_warned(days: float, step: float, until: float) -> list[float]:
    """Days left at each warning of a certificate for so many days, looked at every ``step`` days."""
    one, told = lifetime(0, days * DAY), []
    warned: Mapping[str, float] = {}
    for look in range(round(until / step)):
        found, warned = due([one], look * step * DAY, warned)
        told += [days - look * step for _ in found]
    return told


def test_ninety_days_are_warned_of_daily_from_the_fourteenth_last_on() -> None:
    told = days_warned(90, 0.1, 91)
    told = [round(left, 3) for left in told]
    assert told[0] == 13.5
    assert all(0.9 <= former - later <= 1.1 or later in {4.5, 0} for former, later in itertools.pairwise(told))
    assert {4.5, 0} <= set(told)


def test_an_hour_is_warned_of_three_times() -> None:
    minute = 1 / 1440
    assert [round(left / minute, 2) for left in days_warned(1 / 24, minute / 4, 1 / 12)] == [9, 3, 0]


def test_one_that_is_renewed_in_time_is_never_warned_of() -> None:
    warned: Mapping[str, float] = {}
    for turn in range(48):  # an hour's certificate, renewed after two thirds
        one = lifetime(turn * 2400, turn * 2400 + 3600, str(turn))
        for now in range(turn * 2400, (turn + 1) * 2400, 100):
            found, warned = due([one], now, warned)
            assert (found, warned) == ((), {})


LIFETIMES = st.lists(
    st.builds(
        lambda edition, start, length: lifetime(start, start + length, edition),
        st.sampled_from("abcd"),
        st.floats(-400 * DAY, 10 * DAY),
        st.floats(0, 500 * DAY),
    ),
    max_size=4,
    unique_by=lambda one: one.edition,
)


@given(LIFETIMES, st.lists(st.floats(0, 40 * DAY), min_size=1, max_size=40))
def test_every_milestone_is_warned_of_once(lifetimes: list[Lifetime], looks: list[float]) -> None:
    warned: Mapping[str, float] = {}
    told: dict[str, list[float]] = {one.edition: [] for one in lifetimes}
    before = -1.0
    for now in sorted(looks):
        expected = next_due(lifetimes, before, warned) if before >= 0 else None
        found, warned = due(lifetimes, now, warned)
        assert due(lifetimes, now, warned)[0] == (), "once"
        if expected is not None:
            assert bool(found) == (now >= expected), "nothing is due before the moment that was told, and then it is"
        for one in found:
            assert now >= one.at(SOON)
            told[one.edition].append(now)
        assert warned.keys() == {one.key for one in lifetimes if now >= one.at(SOON)}
        before = now
    for one in lifetimes:
        moments = told[one.edition]
        seen = [look for look in sorted(looks) if look >= one.at(SOON)]
        assert moments[:1] == seen[:1]
        for former, later in itertools.pairwise(moments):
            assert later - former >= DAY or any(former < each <= later for each in (one.at(URGENT), one.end))
        assert all(any(0 <= look - moment < DAY for moment in moments) for look in seen)


@given(LIFETIMES, st.floats(0, 40 * DAY))
def test_a_clock_that_is_set_back_by_a_day_is_no_excuse(lifetimes: list[Lifetime], now: float) -> None:
    _, warned = due(lifetimes, now + 2 * DAY, {})
    found, _ = due(lifetimes, now, warned)
    assert set(found) == {one for one in lifetimes if now >= one.at(SOON)}


def test_texts() -> None:
    one = lifetime(NOW - 78 * DAY, NOW + 12 * DAY)
    assert text(one, NOW) == (
        "server.pem: CN=a is valid only until 2027-01-27 08:00:00 UTC: 12 days left, 13 % of its lifetime"
    )
    assert text(one, one.end + 1) == "server.pem: CN=a expired at 2027-01-27 08:00:00 UTC"
    assert "API key CN=a is valid" in text(replace(one, kind="key"), NOW)
    crl = replace(one, kind="crl")
    assert len([*warnings([one, crl], NOW)]) == 2
    assert [*warnings([one, crl], one.end)] == [text(one, one.end)], "what the trust warns of itself"
    assert [*warnings([one, crl], NOW - 30 * DAY)] == []


def jwk(**more: Any) -> dict[str, Any]:
    return {**ECAlgorithm.to_jwk(ec.generate_private_key(ec.SECP256R1()).public_key(), as_dict=True), **more}


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ([jwk(kid="a", exp=NOW, nbf=NOW - 9), jwk(kid="b", exp=NOW + 5, nbf=NOW - 8)], ("key b", NOW - 8, NOW + 5)),
        ([jwk(kid="a", exp=NOW)], ("key a", NOW - 90 * DAY, NOW)),
        ([jwk(exp=NOW), jwk()], None),
        ([jwk(exp="soon"), jwk(exp=True)], None),
        ([jwk(x5c=["no base64"], exp=NOW)], None),
        ([jwk(x5c=[base64.b64encode(b"no certificate").decode()])], None),
    ],
)
def test_the_last_key_of_an_issuer(
    tmp_path: Path, keys: list[dict[str, Any]], expected: tuple[Any, ...] | None
) -> None:
    made = site(tmp_path, jwt_issuers=ISSUERS)
    made.write("idp.json", json.dumps({"keys": keys}).encode())
    found = [one for one in lifetimes_of(made.build()) if one.kind == "issuer"]
    assert [(one.detail, one.start, one.end) for one in found] == ([expected] if expected else [])


ISSUERS: Any = [{"name": "idp", "issuer": "https://idp", "audience": "q", "algorithm": "ES256", "jwks": "idp.json"}]


def test_everything_that_ends_is_in_the_list_and_warned_of_in_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Once, and again for what has changed."""
    start = datetime.now(UTC) - timedelta(hours=18)
    authority = type(ROOT).create("short", lifetime=hour(24)).intermediate("servers")
    issued = authority.issue(dns=["localhost"], server=True, lifetime=hour(20), not_before=start)
    certificate = authority._certificate().public_bytes(serialization.Encoding.DER)
    made = site(
        tmp_path,
        tls={"crl": ["root.crl"]},
        jwt_issuers=ISSUERS,
        keys=[{"name": "ci", "sha256": "ab" * 32, "role": "admin", "expires": "2027-03-01T00:00:00Z"}],
    )
    made.serve(issued)
    made.write("root.crl", ROOT.crl_pem())
    made.write("idp.json", json.dumps({"keys": [jwk(x5c=[base64.b64encode(certificate).decode()])]}).encode())
    generation = made.build()
    found = lifetimes_of(generation)
    assert [(one.kind, one.name, Path(one.source).name) for one in found] == [
        ("server", "localhost", "server.pem"),
        ("intermediate", "CN=servers", "server.pem"),
        ("ca", "CN=test root", "ca.pem"),
        ("crl", "CN=test root", "root.crl"),
        ("key", "ci", "keys.ci"),
        ("issuer", "idp", "jwt_issuers.idp"),
    ]
    assert found[1].end == found[5].end

    log, now = ExpiryLog(), (start + hour(18)).timestamp()
    with caplog.at_level(logging.WARNING):
        again = log.report(lifetimes_of(generation), now)
        assert again == found[0].at(URGENT)
        assert log.report(lifetimes_of(generation), again - 1) == again
        assert len(caplog.records) == 1
        assert log.report(lifetimes_of(generation), again) == found[0].end
        log.report(lifetimes_of(generation), found[0].end)
        assert [record.levelname for record in caplog.records] == ["WARNING", "WARNING"]
        log.report(lifetimes_of(generation), found[5].end)
    errors = [record.message for record in caplog.records if record.levelname == "ERROR"]
    assert any("idp" in text for text in errors)
    assert not any("localhost" in text for text in errors), "that is told by the verdict on readiness"
