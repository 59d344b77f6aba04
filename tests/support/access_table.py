"""What Qdrant asks of its callers, and what the gateway's own modes pass, as data that no code of ours makes."""

from __future__ import annotations

import csv
from pathlib import Path

_DATA = Path(__file__).parent.parent / "data"


def _rows(name: str) -> list[dict[str, str]]:
    with (_DATA / name).open(encoding="utf-8") as lines:
        return list(csv.DictReader(line for line in lines if not line.startswith("#")))


ROWS = _rows("qdrant-1.20-access.csv")
FINER = {(row["surface"], row["method"], row["path"]): row["passes"].split() for row in _rows("finer-grants.csv")}
"""Each row of these → the gateway's own modes that pass it."""
