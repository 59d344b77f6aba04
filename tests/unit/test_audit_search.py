"""Questions about the audit log: which files and lines are looked at, and how long."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tlsproxy.audit.query import AuditQuery, read_query
from tlsproxy.audit.search import matching_entries
from tlsproxy.errors import BadRequest, Overloaded


def line(when: str, **fields: object) -> str:
    return json.dumps({"timestamp": when, **fields}) + "\n"


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    files = {
        "audit.2026-01-01.log": line("2026-01-01T10:00:00Z", n=1) + line("2026-01-01T23:00:00.5Z", n=2),
        "audit.2026-01-02.log": line("2026-01-02T00:00:00Z", n=3, ok=True) + "half a li",
        "audit.2026-01-02-05.log": "[]\n\n" + line("2026-01-02T05:00:00Z", n=4, list=["sre", 5]),
        "audit.log": line("2026-01-01T00:00:00Z", n=5),
        "other.2026-01-01.log": line("2026-01-01T00:00:00Z", n=6),
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    return tmp_path


def found(directory: Path, body: str) -> set[int]:
    return {json.loads(each)["n"] for each in matching_entries(directory, read_query(body.encode()))}


@pytest.mark.parametrize(
    ("body", "numbers"),
    [
        ("{}", {1, 2, 3, 4}),
        ('{"limit": 1}', {1}),
        ('{"limit": null, "time_from": null, "filters": {}}', {1, 2, 3, 4}),
        ('{"time_from": "2026-01-01T23:00:00.5Z"}', {2, 3, 4}),
        ('{"time_to": "2026-01-01T23:00:00.5Z"}', {1}),
        ('{"time_from": "2026-01-02T01:00:00+01:00", "time_to": "2026-01-02T00:00:01Z"}', {3}),
        ('{"filters": {"n": "2"}}', {2}),
        ('{"filters": {"list": "sre"}}', {4}),
        ('{"filters": {"list": "5"}}', {4}),
        ('{"filters": {"list": "sr"}}', set()),
        ('{"filters": {"ok": "true"}}', {3}),
        ('{"filters": {"n": "2", "ok": "true"}}', set()),
        ('{"filters": {"absent": ""}}', set()),
    ],
)
def test_what_is_found(directory: Path, body: str, numbers: set[int]) -> None:
    assert found(directory, body) == numbers


def test_files_that_cannot_hold_it_are_not_opened(directory: Path) -> None:
    (directory / "audit.2026-01-01.log").unlink()
    (directory / "audit.2026-01-01.log").mkdir()
    assert found(directory, '{"time_from": "2026-01-02T00:00:00Z"}') == {3, 4}
    with pytest.raises(OSError, match="directory"):
        found(directory, "{}")


def test_a_link_is_not_followed(directory: Path) -> None:
    (directory / "audit.2026-01-03.log").symlink_to(directory / "audit.log")
    with pytest.raises(OSError, match="symbolic links"):
        found(directory, "{}")


def test_it_takes_only_so_long(directory: Path) -> None:
    with pytest.raises(Overloaded):
        matching_entries(directory, AuditQuery(), patience=-1.0)


@pytest.mark.parametrize("body", ["", "[]", '{"limit": true}', '{"limit": 1.0}', '{"filters": null}', '{"time_to": 5}'])
def test_malformed(body: str) -> None:
    with pytest.raises(BadRequest):
        read_query(body.encode())
