from __future__ import annotations

import json
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tlsproxy.audit.line import (
    Caller,
    Outcome,
    Prepared,
    event_line,
    json_string,
    prepare,
    request_line,
    timestamp,
)
from tlsproxy.wire.tracing import Tracing

PLATFORM = Caller("Certificate", "admin", "platform", "CN=alice,OU=platform", "ab" * 32)
ORDER = [
    "timestamp", "method", "api", "auth_type", "subject", "remote", "collection", "tracing_id", "result", "error",
    "role", "rule", "certificate_subject", "certificate_sha256", "request_id", "trace_id", "status", "bytes_in",
    "bytes_out", "duration_ms", "reason",
]  # fmt: skip
ANY_TEXT = st.text(st.characters(exclude_categories=()))
NASTY = '\x1b[2K\r\n","result":"ok"}\u2028\u2029\x85\x7f\x9b\u202e\0\\"'


def refused(caller: Caller = PLATFORM, **changes: Any) -> Prepared:
    fields: dict[str, Any] = {
        "method": "upsert_points",
        "api": "/collections/docs/points",
        "caller": caller,
        "collection": "docs",
        "allowed": False,
        "error": "Forbidden: no",
        "reason": "needs_write",
    }
    return prepare(**{**fields, **changes})


def line_of(prepared: Prepared, **changes: Any) -> str:
    fields: dict[str, Any] = {
        "when": 1_785_846_896.123456,
        "request_id": "0a" * 16,
        "tracing_id": "trace-1",
        "trace_id": "0b" * 16,
        "remote": json_string("10.0.0.5"),
        "status": 403,
        "grpc_status": None,
        "bytes_in": 12,
        "bytes_out": 34,
        "duration": 0.0012345,
        "reason": "",
    }
    told = SimpleNamespace(**{**fields, **changes})
    outcome = Outcome()
    outcome.when, outcome.id, outcome.tracing = told.when, told.request_id, Tracing(told.tracing_id, told.trace_id)
    outcome.status, outcome.grpc_status = told.status, told.grpc_status
    outcome.bytes_in, outcome.bytes_out = told.bytes_in, told.bytes_out
    return request_line(prepared, outcome, told.remote, told.duration, told.reason)


def only_record(line: str) -> dict[str, Any]:
    """The one record of a line that is one line to every reader."""
    assert line.endswith("\n")
    assert len(line.splitlines()) == 1
    assert all(" " <= character <= "~" for character in line[:-1])
    strict = orjson.loads(line)
    assert strict == json.loads(line)
    assert isinstance(strict, dict)
    return strict


def readable(text: str) -> str:
    return "".join("\ufffd" if 0xD800 <= ord(character) <= 0xDFFF else character for character in text)


def test_fields_stand_in_qdrants_order_and_ours_after_them() -> None:
    assert list(only_record(line_of(refused()))) == ORDER


def test_values_of_a_refusal() -> None:
    assert only_record(line_of(refused())) == {
        "timestamp": "2026-08-04T12:34:56.123456Z",
        "method": "upsert_points",
        "api": "/collections/docs/points",
        "auth_type": "Certificate",
        "subject": "CN=alice,OU=platform",
        "remote": "10.0.0.5",
        "collection": "docs",
        "tracing_id": "trace-1",
        "result": "denied",
        "error": "Forbidden: no",
        "role": "admin",
        "rule": "platform",
        "certificate_subject": "CN=alice,OU=platform",
        "certificate_sha256": "ab" * 32,
        "request_id": "0a" * 16,
        "trace_id": "0b" * 16,
        "status": 403,
        "bytes_in": 12,
        "bytes_out": 34,
        "duration_ms": 1.234,
        "reason": "needs_write",
    }


def test_fields_without_a_value_are_left_out() -> None:
    prepared = refused(Caller("None"), method=None, api=None, collection=None, error=None)
    record = only_record(line_of(prepared, tracing_id="", trace_id=""))
    assert list(record) == [
        "timestamp", "auth_type", "remote", "result", "request_id", "status", "bytes_in", "bytes_out", "duration_ms",
        "reason",
    ]  # fmt: skip


def test_a_key_has_no_subject_but_the_certificate_beside_it_is_named() -> None:
    record = only_record(line_of(refused(Caller("ApiKey", certificate_subject="CN=alice"))))
    assert "subject" not in record
    assert record["certificate_subject"] == "CN=alice"


def test_what_went_wrong_after_the_decision_replaces_its_reason_but_not_its_result() -> None:
    prepared = refused(allowed=True, error=None, reason="allowed")
    assert only_record(line_of(prepared))["reason"] == "allowed"
    record = only_record(line_of(prepared, status=502, reason="upstream_unreachable"))
    assert (record["result"], record["reason"], record["status"]) == ("ok", "upstream_unreachable", 502)


def test_a_terminal_sees_no_control_sequence_and_a_reader_no_second_line() -> None:
    record = only_record(line_of(refused(api=NASTY, collection=NASTY), tracing_id=NASTY, remote=json_string(NASTY)))
    assert (record["api"], record["collection"], record["tracing_id"], record["remote"]) == (NASTY,) * 4
    assert record["result"] == "denied"


@given(st.lists(ANY_TEXT, min_size=9, max_size=9), st.booleans())
def test_any_text_is_one_line_that_reads_back_as_it_was(texts: list[str], allowed: bool) -> None:  # noqa: FBT001 - drawn
    method, api, role, rule, subject, collection, error, reason, remote = texts
    prepared = prepare(
        method=method,
        api=api,
        caller=Caller("Certificate", role, rule, subject, "00"),
        collection=collection,
        allowed=allowed,
        error=error,
        reason=reason,
    )
    record = only_record(line_of(prepared, remote=json_string(remote), reason=error))
    assert list(record) == [name for name in ORDER if name in record]
    expected = {
        "method": method,
        "api": api,
        "role": role,
        "rule": rule,
        "subject": subject,
        "certificate_subject": subject,
        "collection": collection,
        "error": error,
    }
    for name, text in expected.items():
        assert record.get(name, "") == readable(text)
    assert record["reason"] == readable(error or reason)
    assert record["remote"] == readable(remote)
    assert record["result"] == ("ok" if allowed else "denied")


@given(
    st.dictionaries(ANY_TEXT, ANY_TEXT | st.integers() | st.floats(allow_nan=True, allow_infinity=True)),
    st.none() | ANY_TEXT,
    ANY_TEXT,
)
def test_any_event_is_one_line_whose_own_fields_detail_cannot_replace(
    detail: dict[str, str | int | float], remote: str | None, reason: str
) -> None:
    forged: dict[str, str | int | float] = {**detail, "result": "forged", "timestamp": "forged", "event": "forged"}
    line = event_line(when=0.0, event="handshake", remote=remote, result="failed", reason=reason, detail=forged)
    assert line.endswith("\n")
    assert len(line.splitlines()) == 1
    pairs = json.loads(line, object_pairs_hook=list)
    record = dict(pairs)
    assert record["event"] == "handshake"
    assert record["result"] == "failed"
    assert record["timestamp"] == "1970-01-01T00:00:00.000000Z"
    assert record.get("reason", "") == readable(reason)
    own = [name for name, _ in pairs if name in {"timestamp", "remote", "result", "event", "reason"}]
    assert len(own) == len(set(own))


def test_an_events_fields() -> None:
    line = event_line(
        when=1.5,
        event="reload",
        remote=None,
        result="ok",
        reason="published",
        detail={"generation": 2, "seconds": 0.25, "reported": "lone \ud800"},
    )
    assert line == (
        '{"timestamp":"1970-01-01T00:00:01.500000Z","result":"ok","event":"reload","reason":"published"'
        ',"generation":2,"seconds":0.25,"reported":"lone \\ufffd"}\n'
    )


def test_half_of_a_character_in_an_events_detail_is_replaced() -> None:
    line = event_line(when=0, event="stop", remote=None, result="ok", reason="", detail={"subject": "CN=a\ud800"})
    assert json.loads(line)["subject"] == "CN=a\ufffd"


def test_what_json_cannot_say_of_a_number_is_null() -> None:
    line = event_line(when=0, event="stop", remote=None, result="ok", reason="", detail={"seconds": float("nan")})
    assert only_record(line)["seconds"] is None


@given(st.datetimes(datetime(1970, 1, 1), datetime(2100, 1, 1)))  # noqa: DTZ001 - Hypothesis takes naive bounds
def test_a_timestamp_is_rfc_3339_in_utc_to_a_microsecond(moment: datetime) -> None:
    when = moment.replace(tzinfo=UTC).timestamp()
    text = timestamp(when)
    assert len(text) == len("2026-08-04T12:34:56.123456Z")
    assert text.endswith("Z")
    assert abs(datetime.fromisoformat(text).timestamp() - when) < 2e-6


@pytest.mark.parametrize(
    ("tracing_id", "expected"),
    [("a" * 256, "a" * 256), ("a" * 257, "a" * 256), ("é" * 200, "é" * 200), ("é" * 300, "é" * 256)],
)
def test_a_long_trace_id_is_cut_as_qdrant_cuts_it(tracing_id: str, expected: str) -> None:
    assert only_record(line_of(refused(), tracing_id=tracing_id))["tracing_id"] == expected
