"""Seconds that a client gives the upstream, and as many as the operator lets it have."""

from __future__ import annotations

import math
from urllib.parse import parse_qsl, quote

from hypothesis import given
from hypothesis import strategies as st
from support.rows import rows

from tlsproxy.config.model import Config
from tlsproxy.proxy.core.runtime_limits import LAST_ANSWER, RuntimeLimits
from tlsproxy.qdrant.operations import GRPC, OWN, REST
from tlsproxy.qdrant.timeouts import SNAPSHOT, timeout_in, timeout_of
from tlsproxy.wire.grpc import deadline_block, seconds_in


@rows(
    ("query", "seconds"),
    [
        ("timeout=600", 600),
        ("wait=true&timeout=600&ordering=weak", 600),
        ("%74imeout=6%30", 60),
        ("timeout=%2B60", 60),
        ("timeout=18446744073709551615", 18446744073709551615),
        ("", 0),
        ("timeout", 0),
        ("timeout=", 0),
        ("timeout=0", 0),
        ("timeout=-1", 0),
        ("timeout=1e99", 0),
        ("timeout=inf", 0),
        ("timeout=nan", 0),
        ("timeout=1.5", 0),
        ("timeout=0x10", 0),
        ("timeout=1_0", 0),
        ("timeout=%D9%A3", 0),
        ("timeout= 1", 0),
        ("timeout=" + "9" * 5000, 0),
        ("timeout=5&timeout=5", 0),
        ("timeout=5&time%6fut=500", 0),
        ("Timeout=5", 0),
        ("a=" * 2000 + "&timeout=5", 5),
        ("&".join(["a=1"] * 200) + "&timeout=5", 0),
    ],
)
def test_a_timeout_is_read_as_qdrant_reads_it(query: str, seconds: float) -> None:
    assert timeout_in(query) == float(seconds)


@given(st.text(max_size=60).map(lambda text: quote(text, safe="&=+timeout0123456789")))
def test_no_query_is_more_than_finite_seconds(query: str) -> None:
    assert 0 <= timeout_in(query) < math.inf


@given(
    st.lists(st.sampled_from(["timeout=5", "%74imeout=6", "timeout", "wait=true", "&", "=7", ";", "+"])).map("".join)
)
def test_a_query_that_seems_to_say_none_says_none(query: str) -> None:
    values = [value for name, value in parse_qsl(query) if name == "timeout"]
    assert timeout_in(query) == (float(values[0]) if len(values) == 1 and values[0].isdecimal() else 0)


@given(st.integers(0, 10**8 - 1), st.sampled_from("HMSmun"))
def test_a_deadline_is_read_back(number: int, unit: str) -> None:
    seconds = {"H": 3600.0, "M": 60.0, "S": 1.0, "m": 1e-3, "u": 1e-6, "n": 1e-9}[unit]
    assert seconds_in(deadline_block(b"%d%b" % (number, unit.encode()))) == number * seconds


def limits(response: float, most: float, snapshots: float) -> RuntimeLimits:
    given_limits = {"max_response_timeout": most, "snapshot_timeout": snapshots}
    upstream = {"response_timeout": response}
    tls = {"cert": "/c", "key": "/k"}
    return RuntimeLimits(Config.model_validate({"tls": tls, "limits": given_limits, "upstream": upstream}))


SECONDS = st.floats(0.1, 1e6)


@given(SECONDS, SECONDS, SECONDS, st.floats(0, 1e20))
def test_a_wait_is_within_the_operators_limits(response: float, most: float, snapshots: float, asked: float) -> None:
    bounds = limits(response, most, snapshots)
    assert bounds.response_wait(SNAPSHOT) == snapshots
    assert response <= bounds.response_wait(asked) <= max(response, most)
    if asked + LAST_ANSWER <= most:
        assert bounds.response_wait(asked) >= asked


def test_snapshots_are_those_of_the_storage_collections_and_shards() -> None:
    paths = {one.path for one in (*REST, *OWN, *GRPC) if one.snapshot}
    assert paths == {one.path for one in (*REST, *GRPC) if "snapshot" in one.path.lower()}
    assert len(paths) >= 15
    assert all(timeout_of(one, "timeout=5") == (SNAPSHOT if one.snapshot else 5) for one in REST)
