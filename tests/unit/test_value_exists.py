"""What an upstream's answer says of the point that a token requires."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from http import HTTPStatus
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tlsproxy.authz.access import Decision
from tlsproxy.authz.claims import ValueExists
from tlsproxy.errors import Form, Overloaded, UpstreamBroken
from tlsproxy.proxy.upstream import subrequests as module
from tlsproxy.proxy.upstream.value_exists import LARGEST_ANSWER, LONGEST_TEXT, Points, Verdict, verdict_of
from tlsproxy.wire.http1_response import ResponseHead

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


class Bench:
    """A pool of one connection, and an upstream whose state is a number that grows."""

    def __init__(self) -> None:
        self.now = self.sent = 0
        self.soon: list[Callable[[], None]] = []
        self.waiting: list[Any] = []
        self.running: tuple[Any, int] | None = None
        self.told: list[tuple[int, int]] = []
        generation = SimpleNamespace(number=1, upstream_api_key=None)
        node = SimpleNamespace(rest=SimpleNamespace(authority=b"h:1"))
        self.upstream = SimpleNamespace(node=SimpleNamespace(node=node), begin=lambda *_, **__: None)
        gateway: Any = SimpleNamespace(
            generation=generation,
            loop=SimpleNamespace(call_soon=lambda call, *of: self.soon.append(partial(call, *of))),
        )
        self.points = Points(gateway, SimpleNamespace(acquire=self.waiting.append))  # type: ignore[arg-type]

    def arrive(self) -> None:
        self.points.ask(ValueExists("users", b"{}"), b"", ("subject", "a"), partial(self._tell, self.now))

    def _tell(self, arrived: int, verdict: Verdict) -> None:
        assert isinstance(verdict, Decision)
        self.told.append((arrived, int(verdict.text)))

    def send(self) -> None:
        if self.running is None and self.waiting:
            question = self.waiting.pop(0)
            self.running = question, self.now  # it may be answered as things stand now
            question.upstream_ready(self.upstream)
            self.sent += 1

    def answer(self) -> None:
        if self.running is not None:
            (question, seen), self.running = self.running, None
            question.response_head(ResponseHead(500, b"", b"", 0, keep=True))
            question.response_body(error(str(seen)))
            question.response_done()

    def change(self) -> None:
        self.now += 1


@given(st.lists(st.sampled_from(["arrive", "send", "answer", "change"]), max_size=60))
def test_an_answer_is_never_older_than_the_request(steps: list[str]) -> None:
    """And identical questions are never more than two: the one under way, and the next."""
    bench = Bench()
    for step in steps:
        getattr(bench, step)()
        assert len(bench.waiting) + (bench.running is not None) <= 2
    while bench.waiting or bench.running:
        bench.send()
        bench.answer()
    assert len(bench.told) == steps.count("arrive")
    assert all(seen >= arrived for arrived, seen in bench.told)
    assert bench.sent <= steps.count("arrive")


def test_many_that_come_at_once_share_the_next_answer() -> None:
    bench = Bench()
    bench.arrive()
    bench.send()
    for _ in range(100):
        bench.arrive()
    bench.answer()
    bench.send()
    bench.answer()
    assert (len(bench.told), bench.sent) == (101, 2)


def test_those_that_wait_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_WAITING", 3)
    bench = Bench()
    for _ in range(3):
        bench.arrive()
    with pytest.raises(Overloaded):
        bench.arrive()
