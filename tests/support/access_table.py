"""What Qdrant asks of its callers, row by row, as data that no code of ours was made from or makes."""

from __future__ import annotations

import csv
from pathlib import Path

_DATA = Path(__file__).parent.parent / "data" / "qdrant-1.19-access.csv"
with _DATA.open(encoding="utf-8") as _lines:
    ROWS = list(csv.DictReader(line for line in _lines if not line.startswith("#")))
