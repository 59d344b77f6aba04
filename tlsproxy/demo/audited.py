"""The demo's view of the audit log: the first line of each kind, as it is in the file."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tlsproxy.demo.steps import StepError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

_DEADLINE = 10.0
_POLL_INTERVAL = 0.05
# Fields that make a kind of line; all others differ from request to request.
_KIND = ("method", "role", "result", "reason", "error", "event")
_FORBIDDEN = 403


@dataclass(frozen=True, slots=True)
class Expected:
    subject: str
    count: int
    holds: Callable[[dict[str, Any]], bool]


EXPECTED = (
    Expected("the three refused requests", 3, lambda line: line.get("status") == _FORBIDDEN),
    Expected("the refused handshake", 1, lambda line: line.get("event") == "handshake" and line["result"] != "ok"),
    Expected("the new certificate", 1, lambda line: line.get("event") == "reload" and line["result"] == "ok"),
)


def show_audit(directory: Path) -> str:
    """Print the lines.

    Raises StepError if an expected one is missing for :data:`_DEADLINE`: they are written in batches.
    """
    deadline = time.monotonic() + _DEADLINE
    while missing := _missing(lines := _lines(directory)):
        if time.monotonic() > deadline:
            raise StepError(f"{', '.join(missing)}: not in {directory}")
        time.sleep(_POLL_INTERVAL)
    kinds: dict[tuple[Any, ...], list[str]] = {}
    for line in lines:
        fields = json.loads(line)
        kinds.setdefault(tuple(fields.get(name) for name in _KIND), []).append(line.rstrip())
    for same in kinds.values():
        more = f"   (and {len(same) - 1} more of the kind)" if len(same) > 1 else ""
        print(f"  {same[0]}{more}")
    return f"{len(lines)} lines in {directory}"


def _missing(lines: list[str]) -> list[str]:
    fields = [json.loads(line) for line in lines]
    return [one.subject for one in EXPECTED if sum(map(one.holds, fields)) < one.count]


def _lines(directory: Path) -> list[str]:
    """Complete lines: the last one may be half written."""
    return [
        line
        for file in sorted(directory.glob("audit.*.log"))
        for line in file.read_text(encoding="utf-8").splitlines(keepends=True)
        if line.endswith("\n")
    ]
