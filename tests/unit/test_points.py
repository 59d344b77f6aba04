"""What an upstream's answer says of the point that a token requires."""

from __future__ import annotations

import json
from http import HTTPStatus

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tlsproxy.authz.access import Decision
from tlsproxy.errors import Form, UpstreamBroken
from tlsproxy.proxy.points import LARGEST_ANSWER, LONGEST_TEXT, verdict_of

TEXT = "Service internal error: 1 of 1 read operations failed"


def error(text: object) -> bytes:
    return json.dumps({"status": {"error": text}, "time": 0.1}).encode()


def test_a_point_or_none() -> None:
    assert verdict_of(200, b'{"result":{"points":[{"id":1}]},"status":"ok","time":0.1}') is None
    none = verdict_of(200, b'{"result":{"points":[]},"status":"ok","time":0.1}')
    missing = verdict_of(404, error("Not found: Collection `users` doesn't exist!"))
    assert isinstance(none, Decision)
    assert isinstance(missing, Decision)
    assert (none.status, missing.status) == (401, 403)
    assert none.text == missing.text == "Invalid JWT, stateful validation failed"


@pytest.mark.parametrize("status", [400, 403, 405, 408, 409, 429, 500, 503, 507])
def test_an_error_of_storage_is_handed_on(status: int) -> None:
    verdict = verdict_of(status, error(TEXT))
    assert isinstance(verdict, Decision)
    assert (verdict.allowed, verdict.status, verdict.text, verdict.form) == (False, status, TEXT, Form.TEXT)


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (200, b""),
        (200, b"[]"),
        (200, b'{"result":{"points":{"id":1}}}'),
        (200, b'{"result":{"points":[1]}'),
        (200, error(TEXT)),
        (204, b'{"result":{"points":[1]}}'),
        (206, b'{"result":{"points":[1]}}'),
        (302, error(TEXT)),
        (401, error(TEXT)),
        (401, b"Invalid API key or JWT"),
        (500, b"Internal Server Error"),
        (500, error(None)),
        (500, error({"text": TEXT})),
        (500, b'{"status":"error"}'),
        (500, b'{"status":{"error":"\\ud800"}}'),
        (500, error("x" * LARGEST_ANSWER)),
        (200, b'{"result":{"points":[1]}}' + b" " * LARGEST_ANSWER),
        (502, error(TEXT)),
        (599, error(TEXT)),
    ],
)
def test_what_is_no_answer_of_qdrants(status: int, body: bytes) -> None:
    assert isinstance(verdict_of(status, body), UpstreamBroken)


def test_a_long_text_is_cut() -> None:
    verdict = verdict_of(500, error("é" * 5000))
    assert isinstance(verdict, Decision)
    assert verdict.text == "é" * LONGEST_TEXT


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(["result", "points", "status", "error"]), inner),
)


@pytest.mark.fuzz
@given(st.sampled_from([*HTTPStatus]), st.binary() | json_values.map(lambda value: json.dumps(value).encode()))
def test_nothing_else_says_that_there_is_a_point(status: int, body: bytes) -> None:
    verdict = verdict_of(status, body)
    if verdict is None:
        assert status == 200
        assert json.loads(body)["result"]["points"]
    elif isinstance(verdict, Decision):
        assert not verdict.allowed
        HTTPStatus(verdict.status)
        verdict.text.encode()
