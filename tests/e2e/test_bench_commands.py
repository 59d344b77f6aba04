"""The bench's command line: the cost table, and two results beside each other."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from support.bench import built, installed

from bench.__main__ import main
from bench.dimensions import SCALE
from bench.figures import Sample
from bench.results import Results


def bench(command: str, *arguments: str) -> Result:
    return CliRunner().invoke(main.commands[command], arguments)


@pytest.mark.timeout(180)
def test_cost_table_is_measured_without_an_error(
    tmp_path_factory: pytest.TempPathFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A row of it, cut short."""
    directory = installed(tmp_path / "data", built(tmp_path_factory))
    (row,) = (row for row in SCALE if row.name == "collections")
    monkeypatch.setattr("bench.session.SCALE", [replace(row, sizes=(1, 10))])
    monkeypatch.setattr("bench.__main__._raise_file_limit", lambda: None)  # this process goes on
    done = bench("scale", "--dir", str(directory), "--only", row.name, "--rounds", "1", "--seconds", "0.1")
    assert done.exit_code == 0, done.output
    assert "errors" not in done.stderr
    measured = Results.read(directory / "scale.json").workloads[row.name]
    assert list(measured.samples) == ["1", "10"]
    assert all(measured.summary(size) is not None for size in measured.samples)
    assert done.stdout.splitlines()[-2].startswith(row.title)
    assert bench("show", str(directory / "scale.json")).stdout == done.stdout


def test_row_of_the_cost_table_that_is_none_is_refused(tmp_path: Path) -> None:
    done = bench("scale", "--dir", str(tmp_path), "--only", "roles,colections")
    assert done.exit_code == 1
    assert "colections" in done.stderr


def result(path: Path, costs: Mapping[str, float]) -> str:
    """A file of one round, with so many µs of CPU per request."""
    samples = {
        name: [asdict(Sample(1000, 0, "", 0.5, cost / 1000, 0.001, 0.002, 200_000, 100_000, 50_000))]
        for name, cost in costs.items()
    }
    told: dict[str, Any] = {
        "format": 1, "about": {}, "contenders": {}, "absent": {}, "notes": {}, "idle": {}, "rotation": {},
        "workloads": {"get": {"title": "small GET", "unit": "request", "samples": samples}},
    }  # fmt: skip
    path.write_text(json.dumps(told))
    return str(path)


def test_comparison_of_two_files_exits_with_what_became_of_us(tmp_path: Path) -> None:
    old = result(tmp_path / "old.json", {"tlsproxy": 50, "nginx": 40})
    slower_machine = result(tmp_path / "machine.json", {"tlsproxy": 100, "nginx": 80})
    slower = result(tmp_path / "slower.json", {"tlsproxy": 60, "nginx": 40})
    assert bench("compare", old, slower_machine).exit_code == 0
    done = bench("compare", old, slower)
    assert done.exit_code == 1
    assert "+20.0 %" in done.stdout
    assert "WORSE" in done.stdout
    assert bench("compare", old, slower, "--tolerance", "0.3").exit_code == 0


@pytest.mark.parametrize("text", ["{}", "[]", "not JSON", '{"format": 1}'])
def test_file_that_is_no_result_is_refused_in_a_line(tmp_path: Path, text: str) -> None:
    path = tmp_path / "other.json"
    path.write_text(text)
    for command in (["show", str(path)], ["compare", str(path), str(path)]):
        done = bench(*command)
        assert done.exit_code == 1
        assert done.stderr == f"Error: {path} is not a result of this bench\n"
