"""Active checks of nodes: an error in one of them says nothing of its node, and ends no other."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest

from tlsproxy.admin import node_checks
from tlsproxy.admin.node_checks import NodeChecks
from tlsproxy.admin.upstream_probe import Target
from tlsproxy.proxy.core.balancer import FALL, Balancer
from tlsproxy.service.node_trail import NodeHealth
from tlsproxy.snapshot.nodes import Node, Upstream
from tlsproxy.tls.client_context import ServerRefused

WAIT = 10.0


def node(name: str) -> Node:
    return Node(name, Upstream(f"http://{name}:1", name.encode(), ()), None, drained=False, max_connections=None)


def test_an_internal_error_ends_no_checks(
    runner: asyncio.Runner, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    balancer = Balancer()
    balancer.adopt([node("broken"), node("bad")], 0.0, affinity=False)
    upstream = SimpleNamespace(check_interval=0.001)
    generation = SimpleNamespace(config=SimpleNamespace(upstream=upstream), protocols=["rest"], upstream_api_key=None)
    asked: list[bytes] = []

    async def run() -> None:
        enough = asyncio.Event()

        async def is_ready(target: Target, _deadline: float) -> bool:
            asked.append(target.upstream.authority)
            if asked.count(b"bad") > FALL:
                enough.set()
            if target.upstream.authority == b"broken":
                raise RuntimeError("a fault of ours")
            raise ServerRefused("name_mismatch", "another server")

        monkeypatch.setattr(node_checks, "is_ready", is_ready)
        checks = NodeChecks(balancer, lambda: generation)  # type: ignore[arg-type,return-value]
        checks.adopt()
        await asyncio.wait_for(enough.wait(), WAIT)
        checks.close()

    runner.run(run())
    broken, bad = balancer.nodes
    assert (broken.condition(0.0), bad.condition(0.0)) == ("up", "down")
    assert "node broken over rest" in caplog.text
    assert "a fault of ours" in caplog.text
    NodeHealth(balancer).look()
    assert "node bad fails its checks: TLS with it fails: another server (name_mismatch)" in caplog.text
    upstream.check_interval = 0.0
    NodeChecks(balancer, lambda: generation).adopt()  # type: ignore[arg-type,return-value]
    assert bad.condition(0.0) == "up", "no check would ever take it back"
    assert bad.rest.fault == ""
