"""The documents' recipes, as their readers would use them; reasons, audit fields and metrics of observability.md."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "observability.md"
METRICS = ROOT / "docs" / "metrics.md"
REASON = re.compile(r'"reason":"((?:[^"\\]|\\.)*)"')
FIELD = re.compile(r'[{,]"(\w+)":')


@cache
def described(section: str) -> frozenset[str]:
    """The names in the first column of a section's tables: `Audit log` or `Reasons`."""
    text = PAGE.read_text().partition(f"\n## {section}\n")[2].partition("\n## ")[0]
    return _first_column(text)


def metrics() -> frozenset[str]:
    return _first_column(METRICS.read_text())


def _first_column(text: str) -> frozenset[str]:
    firsts = re.findall(r"^\| ([^|]+) \|", text, re.MULTILINE)
    return frozenset(name for cell in firsts for name in re.findall(r"`(\w+)`", cell))


def undescribed(lines: list[str]) -> set[str]:
    """Reasons and fields of audit lines that the page does not have."""
    reasons = {reason for line in lines for reason in REASON.findall(line)}
    fields = {field for line in lines for field in FIELD.findall(line)}
    return (reasons - described("Reasons")) | (fields - described("Audit log"))


def labels_of(metric: str) -> frozenset[str]:
    row = re.search(rf"^\| `{metric}` \| \w+ \|([^|]*)\|", METRICS.read_text(), re.MULTILINE)
    return frozenset(re.findall(r"`(\w+)`", row.group(1) if row else ""))


def recipes(page: str, language: str) -> list[str]:
    """The blocks of code of a page in this language."""
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)


def commands(page: str, program: str) -> list[str]:
    """The lines of a page's shell that call this program."""
    lines = [line for block in recipes(page, "sh") for line in block.splitlines()]
    return [line for line in lines if line.startswith(f"{program} ")]
