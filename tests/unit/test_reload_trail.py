"""One line on a change: in words, bounded, without an empty part."""

from __future__ import annotations

from tlsproxy.proxy.core.impact import Consequences
from tlsproxy.service.reload_trail import MAX_CHANGES, audit_fields, log_text, sentences
from tlsproxy.snapshot.diff import Change

RULE = Change("rule", "staff", "removed")
ROLE = Change("role", "ingest", "changed", "access rw on docs added")
SOME = Consequences(connections=12, affected={"ingest": 2, "": 1, "key ci": 1}).as_json()


def test_words() -> None:
    assert sentences([ROLE, RULE]) == "role ingest: access rw on docs added; rule staff removed"
    assert log_text([ROLE], SOME) == (
        "; role ingest: access rw on docs added; 4 of 12 live connections affected (ingest 2, (no role) 1, key ci 1)"
    )
    assert log_text([], Consequences(connections=1).as_json()) == "; 0 of 1 live connection affected"
    assert log_text([ROLE], None) == ""


def test_fields() -> None:
    assert audit_fields([RULE], SOME) == {
        "affected": 4,
        "changes": "rule staff removed",
        "affected_roles": "ingest 2, (no role) 1, key ci 1",
    }
    assert audit_fields([], Consequences().as_json()) == {"affected": 0}
    assert audit_fields([RULE], None) == {}


def test_a_line_is_bounded_and_printable() -> None:
    told = sentences([Change("role", f"r{number}", "added", "x\x1b[2J\n") for number in range(3 * MAX_CHANGES)])
    assert told.endswith(f"; {2 * MAX_CHANGES} more")
    assert told.isprintable()
    many = Consequences(affected={f"r{number}": 1 for number in range(100)}).as_json()
    assert "80 more roles" in str(audit_fields([], many)["affected_roles"])
