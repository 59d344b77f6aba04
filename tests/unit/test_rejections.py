"""Connections that are closed unheard: each is told of in one line, and no flood of them is a flood of lines."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tlsproxy.proxy.core.connection_manager import Entry
from tlsproxy.proxy.frontend.rejections import KINDS, Rejections
from tlsproxy.tls.negotiated import Negotiated

pytestmark = pytest.mark.plain  # stand-ins for compiled classes


def told(refused: list[tuple[str, str]]) -> list[dict[str, Any]]:
    lines: list[str] = []
    with asyncio.Runner() as runner:
        gateway: Any = SimpleNamespace(
            loop=runner.get_loop(),
            audit=SimpleNamespace(write=lines.append),
            metrics=SimpleNamespace(connection=lambda _reason: None, refused=lambda _refusal: None),
        )
        rejections = Rejections(gateway)
        for address, reason in refused:
            rejections.count(address, reason)
        assert lines == [], "once a second"
        rejections.write()
        rejections.write()
    return [json.loads(line) for line in lines]


@given(st.lists(st.tuples(st.sampled_from(["192.0.2.1", "192.0.2.2", "2001:db8::/64"]), st.sampled_from("ab"))))
def test_one_line_for_each_address_and_reason(refused: list[tuple[str, str]]) -> None:
    counts = {(one["remote"], one["reason"]): one["connections"] for one in told(refused)}
    assert counts == Counter(refused)


def test_too_many_addresses_share_a_line() -> None:
    lines = told([(f"198.51.{number // 256}.{number % 256}", "limit") for number in range(10_000)])
    assert len(lines) == KINDS + 1
    assert sum(line["connections"] for line in lines) == 10_000
    assert [line["connections"] for line in lines if "remote" not in line] == [10_000 - KINDS]


def test_whoever_never_asked_is_told_of_by_name() -> None:
    lines: list[str] = []
    with asyncio.Runner() as runner:
        gateway: Any = SimpleNamespace(
            loop=runner.get_loop(),
            audit=SimpleNamespace(write=lines.append),
            metrics=SimpleNamespace(connection=lambda _reason: None),
        )
        rejections = Rejections(gateway)
        old, new = Negotiated("TLSv1.2", "ECDHE-ECDSA-AES256-GCM-SHA384"), Negotiated("TLSv1.3")
        came = (("CN=a", "grpc", new), ("CN=b", "grpc", new), ("CN=a", "grpc", new), ("CN=a", "grpc", old))
        for name, protocol, agreed in (*came, ("", "rest", new)):
            identity = SimpleNamespace(name=name, account=("identity", name), sha256="00") if name else None
            standing: Any = SimpleNamespace(identity=identity)
            opened = time.monotonic() - 5
            rejections.never_asked(Entry(1, protocol, "192.0.2.1", standing, opened, negotiated=agreed))
        rejections.write()
    records = [json.loads(line) for line in lines]
    assert [
        (one.get("certificate_subject"), one["protocol"], one["tls_version"], one["connections"]) for one in records
    ] == [
        ("CN=a", "grpc", "TLSv1.3", 2),
        ("CN=b", "grpc", "TLSv1.3", 1),
        ("CN=a", "grpc", "TLSv1.2", 1),
        (None, "rest", "TLSv1.3", 1),
    ]
    assert [one.get("tls_cipher") for one in records] == [None, None, "ECDHE-ECDSA-AES256-GCM-SHA384", None]
    assert {(one["event"], one["result"], one["reason"], one["remote"]) for one in records} == {
        ("connection", "ok", "never_asked", "192.0.2.1")
    }
    assert all(5000 <= one["age_ms"] < 60_000 for one in records)


def test_they_wait_until_the_audit_log_has_room() -> None:
    lines: list[str] = []
    ticks: list[Any] = []
    room = [False]
    gateway: Any = SimpleNamespace(
        loop=SimpleNamespace(
            call_later=lambda _seconds, callback: ticks.append(callback) or SimpleNamespace(cancel=lambda: None)
        ),
        audit=SimpleNamespace(write=lines.append, accepts=lambda: room[0]),
        metrics=SimpleNamespace(connection=lambda _reason: None, refused=lambda _refusal: None),
    )
    rejections = Rejections(gateway)
    for _ in range(3):
        rejections.count("192.0.2.1", "limit")
        ticks.pop()()
        assert lines == []
    room[0] = True
    ticks.pop()()
    (line,) = map(json.loads, lines)
    assert (line["connections"], ticks) == (3, [])
