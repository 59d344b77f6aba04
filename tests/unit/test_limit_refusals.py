"""A refusal by a limit: its status and reason, the limit in its text, and whole seconds to wait, at least one."""

from __future__ import annotations

import pytest

from tlsproxy.proxy.limits.gcra import SECOND, Charge, Excess, Penalty, Rate
from tlsproxy.proxy.limits.quotas import refusal_of


@pytest.mark.parametrize(
    ("rate", "wait", "reason", "text", "seconds"),
    [
        (Rate.of(2.5, None), 1, "rate_limited", 'role "r" has 2.5 requests per second', 1),
        (Rate.of(1, None), 1, "rate_limited", 'role "r" has 1 request per second', 1),
        (Rate.of(0.5, 9), SECOND + 1, "rate_limited", 'role "r" has 0.5 requests per second', 2),
        (Rate.of(2.5, None), 0, "too_many_requests_in_flight", 'role "r" has 7 requests at a time', 1),
        (None, 0, "too_many_requests_in_flight", 'role "r" has 7 requests at a time', 1),
    ],
)
def test_a_refusal_names_its_limit(rate: Rate | None, wait: int, reason: str, text: str, seconds: int) -> None:
    refusal = refusal_of(Excess(Charge(1, 'role "r"', rate, 7), wait))
    assert refusal.allowed is False
    assert (refusal.status, refusal.reason, refusal.retry_after) == (429, reason, seconds)
    assert refusal.text == f"Rate limiting exceeded: {text}. Retry after {seconds}s"


def test_failures_are_counted_for_a_minute() -> None:
    assert Penalty.of(60, 60.0).rate == Rate(SECOND, 60 * SECOND)
