"""docs/qdrant-operations.md has every operation, with what the independent access data says of it."""

from __future__ import annotations

import re
from pathlib import Path

from support.access_table import FINER, ROWS

from tlsproxy.qdrant.operation_groups import OperationGroup, grouped
from tlsproxy.qdrant.operations import OPERATIONS
from tlsproxy.qdrant.reference import as_markdown

PAGE = Path(__file__).parents[2] / "docs" / "qdrant-operations.md"
QDRANTS = {"r": "cr", "prw": "cprw", "rw": "crw"}
OWN = {"pr": "cpr", "m": "cm"}


def test_the_page_is_that_of_the_tables() -> None:
    """After a change of a table: `make reference`."""
    assert PAGE.read_text() == as_markdown()


def test_every_operation_has_one_row() -> None:
    assert sorted(re.findall(r"^\| `(\w+)` \|", as_markdown(), re.MULTILINE)) == sorted(OPERATIONS)
    assert sorted(name for rows in grouped().values() for name, _ in rows) == sorted(OPERATIONS)


def test_modes_are_those_of_the_access_data() -> None:
    rows = [line.split(" | ") for line in as_markdown().splitlines() if line.startswith("| `")]
    told = {cells[0].strip("| `"): cells for cells in rows}
    by_route = {(one.method, one.path): one for each in OPERATIONS.values() for one in each}
    for row in ROWS:
        operation = by_route[row["method"], row["path"]]
        if operation.name in {name for name, _ in grouped()[OperationGroup.OPEN]}:
            continue
        qdrants, own = row["passes"].split(), FINER[row["surface"], row["method"], row["path"]]
        grants = {mode for mode, name in QDRANTS.items() if name in qdrants}
        grants |= {mode for mode, name in OWN.items() if name in own}
        assert set(re.findall(r"\w+", told[operation.name][2])) == grants, operation
        whole = {mode for mode in ("r", "m") if mode in qdrants} | {"pr"}.intersection(own)
        assert set(re.findall(r"\w+", told[operation.name][3])) == whole, operation
