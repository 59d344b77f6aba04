"""The page of all metrics, docs/metrics.md, from the table of families."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Final

from tlsproxy.metrics.families import FAMILIES, PROCESS

_HEAD: Final = """\
# Metrics

Generated from `tlsproxy/metrics/families.py` by `make reference`. Where to scrape them:
[observability](observability.md#metrics).

Labels come from tables or from the configuration, never from a client, so that no client makes series. `operation` is
Qdrant's name of it, `role` a role of the configuration, `reason` one of the [reasons](observability.md#reasons), `part`
a part of [readiness](observability.md#readiness). With `workers`, all series are of all workers together, but for
`process_*`, which have the label `process` then. A histogram has `_bucket`, `_sum` and `_count`.

| metric | type | labels | unit | |
|---|---|---|---|---|
"""


def as_markdown() -> str:
    return _HEAD + "".join(f"{row}\n" for row in _rows())


def _rows() -> Iterator[str]:
    for each in (*FAMILIES, *PROCESS):
        labels = ", ".join(f"`{label}`" for label in (each.labels if each in FAMILIES else ("process",)))
        yield f"| `{each.name}` | {each.kind} | {labels} | {each.unit} | {each.text} |"


if __name__ == "__main__":
    sys.stdout.write(as_markdown())
