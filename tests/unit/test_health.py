"""A health check whose answer fails, or does not come, holds nothing up."""

from __future__ import annotations

import asyncio
import logging

import pytest

from tlsproxy.admin import health
from tlsproxy.admin.readiness import OK, Readiness, not_ready
from tlsproxy.config.endpoints import Endpoint
from tlsproxy.proxy.frontend.listener import bind


class State:
    def __init__(self, readiness: Readiness | Exception | None) -> None:
        self.readiness = readiness
        self.cancelled = asyncio.Event()

    async def ready(self) -> Readiness:
        if self.readiness is None:
            try:
                await asyncio.Event().wait()
            finally:
                self.cancelled.set()
        if isinstance(self.readiness, Exception):
            raise self.readiness
        assert self.readiness is not None
        return self.readiness

    async def metrics(self) -> tuple[bytes, str]:
        return b"up 1\n", "text/plain"


def answered(readiness: Readiness | Exception | None) -> bytes:
    """All that `/readyz` is answered with, until the connection ends."""

    async def main() -> bytes:
        sock, state = bind(Endpoint("127.0.0.1", 0), 0).sock, State(readiness)
        present = health.HealthSettings(metrics=True)
        server = health.HealthServer(sock, state, lambda: present, lambda: None)
        reader, writer = await asyncio.open_connection(*sock.getsockname()[:2])
        writer.write(b"GET /readyz HTTP/1.1\r\n\r\n")
        try:
            answer = await reader.read()
            if readiness is None:
                await state.cancelled.wait()
            return answer
        finally:
            writer.close()
            server.close()
            assert sock.fileno() == -1

    with asyncio.Runner() as runner:
        return runner.run(main())


def test_parts_have_names_and_no_reasons() -> None:
    answer = answered(Readiness({"audit": OK, "crl": not_ready("the CRL of CN=secret is out of date")}))
    assert answer.startswith(b"HTTP/1.1 503 ")
    assert answer.endswith(b'{"ready":false,"parts":{"audit":"ok","crl":"not_ready"}}')


def test_an_answer_that_fails(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR):
        answer = answered(ValueError("a secret"))
    assert answer.startswith(b"HTTP/1.1 500 ")
    assert b"secret" not in answer
    assert "health: GET /readyz" in caplog.text


def test_an_answer_that_does_not_come(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "DEADLINE", 0.05)
    assert answered(None) == b""
