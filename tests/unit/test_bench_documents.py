"""What the documents say of the benchmark is so."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

import pytest

from bench.__main__ import instructions, quick, run, scale
from bench.dimensions import SCALE
from bench.peers import PEERS
from bench.results import Results
from bench.standing import markdown
from bench.workloads import BY_NAME

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "benchmark.md").read_text()
COMMANDS = {"bench": run, "bench-quick": quick, "bench-scale": scale, "bench-instructions": instructions}
EXAMPLES = re.findall(r'make (bench[a-z-]*) BENCH_ARGS="([^"]*)"', PAGE + (ROOT / "bench" / "README.md").read_text())


def test_table_is_that_of_the_results_beside_it() -> None:
    table = "\n".join(markdown(Results.read(ROOT / "bench" / "published" / "results.json")))
    assert table in PAGE


@pytest.mark.parametrize(("target", "arguments"), EXAMPLES)
def test_arguments_are_taken(target: str, arguments: str) -> None:
    command = COMMANDS[target]
    told = command.make_context(target, shlex.split(arguments)).params
    assert set(told.get("only", ())) <= ({row.name for row in SCALE} if command is scale else set(PEERS))
    assert set(told.get("workloads", ())) <= set(BY_NAME)
    made = subprocess.run(
        ["make", "--no-print-directory", "-n", target, f"BENCH_ARGS={arguments}"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert made.splitlines()[-1].endswith(f"-m bench {command.name} {arguments}")


def test_there_is_an_example() -> None:
    assert EXAMPLES
