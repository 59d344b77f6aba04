from __future__ import annotations

import json
from collections import Counter
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from tlsproxy.audit.line import Refusal
from tlsproxy.metrics.recent import KEPT, OTHERS, SECONDS, SLOTS, Recent, dated, merged_decisions, merged_refusals

Event = tuple[float, str, str]

events = st.lists(
    st.tuples(
        st.floats(1_800_000_000, 1_800_003_000),
        st.sampled_from(["", "admin", "ingest", "search"]),
        st.sampled_from(["allowed", "denied", "failed"]),
    ),
    max_size=60,
)
refusals = st.lists(
    st.builds(
        Refusal,
        when=st.floats(1_800_000_000, 1_800_000_100),
        remote=st.sampled_from(["192.0.2.1", "2001:db8::1"]),
        operation=st.sampled_from(["handshake", "search_points"]),
        reason=st.sampled_from(["unknown_ca", "needs_write"]),
        identity=st.sampled_from(["", "CN=alice"]),
    ),
    max_size=3 * KEPT,
)


class Clock:
    def __init__(self, now: float = 1_800_000_003.5) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def recorded(happened: list[Event], now: float) -> Recent:
    clock = Clock()
    recent = Recent(clock)
    for when, role, outcome in happened:
        clock.now = when
        recent.decided(role, outcome)
    clock.now = now
    return recent


def counts(section: dict[str, Any]) -> Counter[tuple[int, str, str]]:
    return Counter(
        {
            (slot["start"], role, outcome): count
            for slot in section["slots"]
            for role, outcomes in slot["roles"].items()
            for outcome, count in outcomes.items()
        }
    )


def test_slots_begin_at_multiples_of_their_length() -> None:
    clock = Clock(1_800_000_003.5)
    recent = Recent(clock)
    for _ in range(3):
        recent.decided("admin", "allowed")
    clock.now = 1_800_000_009.999
    recent.decided("search", "denied")
    clock.now = 1_800_000_010.0
    recent.decided("admin", "failed")
    assert recent.decisions() == {
        "seconds": 10,
        "kept": 90,
        "slots": [
            {"start": 1_800_000_000, "roles": {"admin": {"allowed": 3}, "search": {"denied": 1}}},
            {"start": 1_800_000_010, "roles": {"admin": {"failed": 1}}},
        ],
    }


@given(events)
def test_what_happened_in_the_last_quarter_of_an_hour_is_told_and_nothing_else(happened: list[Event]) -> None:
    happened.sort()
    now = happened[-1][0] if happened else 1_800_000_000.0
    told = counts(recorded(happened, now).decisions())
    expected: Counter[tuple[int, str, str]] = Counter()
    for when, role, outcome in happened:
        start = int(when) // SECONDS * SECONDS
        if start > now - SLOTS * SECONDS:
            expected[start, role, outcome] += 1
    assert told == expected


@given(events, st.floats(-1e9, 1e9))
def test_slots_are_told_by_the_wall_clock_wherever_it_is(happened: list[Event], ahead: float) -> None:
    section = recorded(sorted(happened), 1_800_003_000.0).decisions()
    told = dated(section, ahead)
    assert counts(told).total() == counts(section).total()
    assert len({slot["start"] for slot in told["slots"]}) == len(section["slots"])
    for slot, before in zip(told["slots"], section["slots"], strict=True):
        assert slot["start"] % SECONDS == 0
        assert 0 <= before["start"] + ahead - slot["start"] < SECONDS


@given(events, events, events)
def test_merging_adds_up_in_whatever_order(first: list[Event], second: list[Event], third: list[Event]) -> None:
    now = 1_800_003_000.0
    a, b, c = (recorded(sorted(each), now).decisions() for each in (first, second, third))
    merged = merged_decisions([a, b, c])
    assert counts(merged) == counts(a) + counts(b) + counts(c)
    assert merged == merged_decisions([merged_decisions([c, a]), b])
    assert merged == merged_decisions([merged])
    assert merged == recorded(sorted([*first, *second, *third]), now).decisions()


def test_however_many_roles_there_are_a_slot_is_bounded_and_loses_no_count() -> None:
    recent = Recent(Clock())
    for number in range(10_000):
        recent.decided(f"role-{number}", "allowed")
        recent.decided("role-0", "denied")
    (slot,) = recent.decisions()["slots"]
    assert len(slot["roles"]) <= 200
    assert sum(outcomes.get("allowed", 0) for outcomes in slot["roles"].values()) == 10_000
    assert slot["roles"][OTHERS]["allowed"] > 9_000
    assert slot["roles"]["role-0"]["denied"] == 10_000


def test_refusals_are_bounded_in_number_and_size_and_the_latest_come_first() -> None:
    recent = Recent(Clock())
    for number in range(2 * KEPT):
        recent.refused(Refusal(float(number), "192.0.2.1", "search_points", "collection", identity="C" * 70_000))
    told = recent.refusals()
    assert [each["when"] for each in told] == [float(number) for number in range(2 * KEPT - 1, KEPT - 1, -1)]
    assert told[0] == {
        "when": 2 * KEPT - 1,
        "remote": "192.0.2.1",
        "operation": "search_points",
        "reason": "collection",
        "identity": "C" * 256,
        "key": None,
        "rule": None,
        "role": None,
        "collection": None,
        "presented": None,
    }
    assert len(json.dumps(told)) < 100_000


def test_strangers_do_not_push_out_what_callers_met() -> None:
    recent = Recent(Clock())
    recent.refused(Refusal(1.0, "192.0.2.1", "search_points", "collection", identity="CN=alice"))
    recent.refused(Refusal(2.0, "192.0.2.1", "search_points", "collection", key="nightly"))
    for number in range(1000):
        recent.refused(Refusal(3.0 + number, "203.0.113.9", "handshake", "no_certificate"))
    told = recent.refusals()
    assert len(told) == KEPT + 2
    assert [each["identity"] or each["key"] for each in told[-2:]] == ["nightly", "CN=alice"]
    assert merged_refusals([told, told])[-1]["identity"] == "CN=alice"


@given(st.lists(refusals, max_size=4))
def test_merged_refusals_are_the_latest_of_all(parts: list[list[Refusal]]) -> None:
    sections = []
    for part in parts:
        recent = Recent(Clock())
        for refusal in sorted(part, key=lambda each: each.when):
            recent.refused(refusal)
        sections.append(recent.refusals())
    merged = merged_refusals(sections)
    assert merged == merged_refusals(reversed([*map(merged_refusals, ([each] for each in sections))]))
    assert [each["when"] for each in merged] == sorted((each["when"] for each in merged), reverse=True)
    for known in (True, False):
        every = sorted(each.when for part in parts for each in part if bool(each.identity) is known)
        kept = sorted(each["when"] for each in merged if bool(each["identity"]) is known)
        assert kept == every[len(every) - min(len(every), KEPT) :]
