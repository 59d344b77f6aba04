"""What workers tell, as one service tells it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import orjson
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from tlsproxy.admin.readiness import OK, Readiness, degraded, not_ready
from tlsproxy.form import form
from tlsproxy.metrics.families import REQUESTS
from tlsproxy.metrics.metrics import Metrics
from tlsproxy.metrics.prometheus import Series, exposition
from tlsproxy.metrics.recent import Recent
from tlsproxy.service.workers import merged_metrics
from tlsproxy.service.workers.merged_metrics import LINE, Totals, report, reported
from tlsproxy.service.workers.merging import merged_figures, merged_readiness
from tlsproxy.service.workers.supervisor import FIRST_PAUSE, LONGEST_PAUSE, STABLE, Backoff


def metrics() -> Metrics:
    return Metrics(pool=lambda: (1, 2, 0), audit=lambda: (3, 4, 5, 6), limits=lambda: (0, 0))


def families(of: Metrics) -> list[Series]:
    """As they come over the control channel."""
    return list(reported(report(of.series())))


def samples(totals: Totals) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """Raises where a series is there twice, or a family is."""
    found: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}
    text = exposition(totals.series()).decode()
    types = [line for line in text.splitlines() if line.startswith("# TYPE")]
    assert len(types) == len(set(types))
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            key = (sample.name, tuple(sorted(sample.labels.items())))
            assert key not in found
            found[key] = sample.value
    return found


def test_one_process_is_told_as_it_is_but_for_the_name_of_the_process() -> None:
    one = metrics()
    one.request("scroll", "admin", "allowed", "allowed", 0.02)
    one.connection("accepted")
    totals, own = Totals(), {}
    totals.add(families(one), "worker 1")
    for family in text_string_to_metric_families(exposition(one.series()).decode()):
        for sample in family.samples:
            labels = sample.labels | ({"process": "worker 1"} if sample.name.startswith("process_") else {})
            own[sample.name, tuple(sorted(labels.items()))] = sample.value
    merged = samples(totals)
    assert merged.keys() == own.keys()
    volatile = {key for key in own if key[0].startswith("process_")}
    assert {key: merged[key] for key in own.keys() - volatile} == {key: own[key] for key in own.keys() - volatile}


@given(st.lists(st.lists(st.sampled_from(["accepted", "limit"]), max_size=4), min_size=1, max_size=4))
def test_counters_are_summed_and_never_go_back(came: list[list[str]]) -> None:
    each = [metrics() for _ in came]
    for one, outcomes in zip(each, came, strict=True):
        for outcome in outcomes:
            one.connection(outcome)
    everybody, gone = Totals(), Totals()
    for number, one in enumerate(each):
        everybody.add(families(one), f"worker {number}")
        gone.add_ended(families(one))
    before = samples(everybody)
    accepted = sum(outcomes.count("accepted") for outcomes in came)
    assert before.get(("tlsproxy_connections_total", (("outcome", "accepted"),)), 0) == accepted
    assert before["tlsproxy_connections", ()] == accepted
    assert before["tlsproxy_build_info", (("form", form()), ("version", "0.1.0"))] == 1

    # All of them die, and are replaced by one that has counted nothing.
    after = gone.copy()
    after.add(families(metrics()), "worker 1")
    now = samples(after)
    growing = {key for key in before if key[0].endswith(("_total", "_bucket", "_count", "_sum"))}
    assert all(now[key] >= before[key] for key in growing if not key[0].startswith("process_"))
    assert now["tlsproxy_connections", ()] == 0
    assert now["tlsproxy_upstream_connections", (("state", "idle"),)] == 1


def test_what_ended_workers_counted_stays() -> None:
    one, other = metrics(), metrics()
    one.request("scroll", "admin", "allowed", "allowed", 0.02)
    other.request("scroll", "admin", "denied", "no_role", 0.7)
    ended = Totals()
    live = {"worker 1": report(one.series()), "worker 2": b""}
    text, kept = merged_metrics.merged(metrics().series(), live, ended, [report(other.series())])
    assert 'tlsproxy_requests_total{operation="scroll",outcome="allowed",role="admin"} 1.0\n' in text.decode()
    assert 'tlsproxy_request_duration_seconds_bucket{le="0.5",operation="scroll"} 1.0\n' in text.decode()
    assert 'tlsproxy_request_duration_seconds_count{operation="scroll"} 2.0\n' in text.decode()
    assert 'process_open_fds{process="worker 1"} ' in text.decode()
    again, same = merged_metrics.merged(metrics().series(), live, kept, [])
    assert stable(again) == stable(text)
    assert same == kept
    assert ended == Totals()


def stable(text: bytes) -> list[str]:
    return [line for line in text.decode().splitlines() if line.startswith("tlsproxy_")]


def test_no_line_of_a_report_is_long() -> None:
    one = metrics()
    for number in range(3 * LINE + 1):
        one.request("scroll", f"role {number}", "allowed", "allowed", 0.02)
    lines = [orjson.loads(line) for line in report(one.series()).splitlines()]
    assert [len(samples) for name, samples in lines if name == REQUESTS.name] == [LINE, LINE, LINE, 1]
    assert max(len(samples) for _, samples in lines) == LINE


V13 = {"version": "TLSv1.3", "cipher": "TLS_AES_256_GCM_SHA384", "group": None}
V12 = {"version": "TLSv1.2", "cipher": "ECDHE-ECDSA-AES256-GCM-SHA384", "group": None}


def figures(number: int, *, draining: bool = False) -> dict[str, Any]:
    return {
        "connections": {"open": 2, "draining": draining, "live": [{"number": number}, {"number": number + 2}]},
        "tls": [{**V13, "connections": 2}],
        "upstream": {"rest": "http://127.0.0.1:1", "idle": 1, "busy": 0},
        "audit": {"queued": 0, "written": number, "dropped": 0},
        "decisions": Recent().decisions(),
        "refusals": [],
    }


def test_figures_are_summed_and_connections_listed_by_number() -> None:
    other = figures(1, draining=True)
    other["tls"] = [{**V12, "connections": 1}, {**V13, "connections": 1}]
    merged = merged_figures([figures(2), other], most=3)
    assert merged == {
        "connections": {"open": 4, "draining": True, "live": [{"number": 1}, {"number": 2}, {"number": 3}]},
        "tls": [{**V13, "connections": 3}, {**V12, "connections": 1}],
        "upstream": {"rest": "http://127.0.0.1:1", "idle": 2, "busy": 0},
        "audit": {"queued": 0, "written": 3, "dropped": 0},
        "decisions": Recent().decisions(),
        "refusals": [],
    }
    assert merged_figures([figures(2)], most=9) == figures(2)


def test_a_node_is_as_bad_as_the_worst_worker_has_it() -> None:
    def row(name: str, state: str, count: int) -> dict[str, Any]:
        return {"name": name, "state": state, "in_flight": count, "connections": 1, "ejections": 2}

    each = [[row("a", "up", 1), row("b", "drained", 0)], [row("a", "down", 2), row("b", "up", 3)]]
    merged = merged_figures([figures(1) | {"nodes": rows} for rows in each], most=9)["nodes"]
    assert [(one["state"], one["in_flight"], one["ejections"]) for one in merged] == [("down", 3, 4), ("up", 3, 4)]


def test_a_part_is_as_bad_as_that_of_the_worst_worker() -> None:
    full, gone, none_left = not_ready("full"), not_ready("refused"), not_ready("no descriptors")
    each = {
        1: Readiness({"audit": OK, "upstream_rest": gone, "crl": OK, "descriptors": OK}),
        2: Readiness({"audit": full, "upstream_rest": gone, "crl": OK, "descriptors": none_left}),
    }
    assert merged_readiness(each, 2) == {
        "audit": replace(full, where="worker 2"),
        "upstream_rest": gone,
        "crl": OK,
        "descriptors": replace(degraded("no descriptors"), where="worker 2"),
    }
    each[1] = each[2]
    assert merged_readiness(each, 2)["descriptors"] == none_left
    assert merged_readiness({3: Readiness({"audit": full})}, 3) == {"audit": replace(full, where="worker 3")}
    assert merged_readiness({}, 2) == {}


@given(st.lists(st.floats(0, 200), min_size=1, max_size=30))
def test_pauses_double_up_to_the_cap_until_one_served_well(served: list[float]) -> None:
    backoff, expected = Backoff(), FIRST_PAUSE
    for seconds in served:
        if seconds >= STABLE:
            expected = FIRST_PAUSE
        assert backoff.after(seconds) == expected
        expected = min(2 * expected, LONGEST_PAUSE)
