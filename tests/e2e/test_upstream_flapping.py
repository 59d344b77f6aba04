"""Qdrant goes and comes back, again and again, under load: each request has an answer, and nothing is left behind."""

from __future__ import annotations

import json
import os
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial

import grpc
import pytest
from support.gateway import DEADLINE, Gateway
from support.grpc_channels import call, channel
from support.h2_upstream import H2Upstream
from support.load import CLIENTS, Load
from support.raw_connection import sockets
from support.raw_request import Client
from support.site import Site
from support.upstream import ScriptedUpstream

ROUNDS = 300 if os.environ.get("TLSPROXY_SOAK") else 6
UP, DOWN = "up", "down"


def ready(gateway: Gateway, part: str) -> bool:
    return bool(json.loads(gateway.ask_admin("/readyz")[1])["parts"][part] == "ok")


@pytest.fixture
def port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as reserved:
        return int(reserved.getsockname()[1])


@contextmanager
def loaded(gateway: Gateway) -> Iterator[tuple[Load, ExitStack]]:
    """The clients end when it is left: afterwards the gateway holds what it held before."""
    load, before = Load(), sockets(gateway)
    with ExitStack() as stack:
        stack.callback(load.stop)
        yield load, stack
        load.stop()
    end = time.monotonic() + DEADLINE
    while sockets(gateway) > before + 1:  # readiness may have asked since, and its connection be kept for the next
        assert time.monotonic() < end, "sockets are left"
    status = json.loads(gateway.ask_admin("/status")[1])
    assert (status["connections"]["open"], status["upstream"]["busy"]) == (0, 0)


def flap(load: Load, gateway: Gateway, upstream: Callable[[], AbstractContextManager[object]], part: str) -> None:
    """Readiness follows: what a probe of before has found is told for a second."""
    for number in range(ROUNDS):
        load.until(DOWN)
        while number == 1 and ready(gateway, part):
            pass
        with upstream():
            load.until(UP)
            while number == 1 and not ready(gateway, part):
                pass
    load.until(DOWN)


REQUESTS = (("GET", "/collections", b""), ("PUT", "/collections/docs/points", b'{"points":[]}'))


def ask_rest(client: Client, method: str, target: str, body: bytes) -> str:
    answer = client.ask(method, target, (), body)
    if answer.status == 200:
        return UP
    assert answer.status == 502, answer
    assert answer.json["status"]["error"].startswith("The upstream")
    assert answer.json.keys() == {"status", "time"}
    return DOWN


@pytest.mark.soak
@pytest.mark.timeout(900)
def test_rest(site: Site, port: int) -> None:
    with Gateway(site.write_config(f"http://127.0.0.1:{port}")) as gateway:
        with loaded(gateway) as (load, stack):
            clients = [stack.enter_context(Client(gateway, site.client())) for _ in range(CLIENTS)]
            load.start(partial(ask_rest, one, *REQUESTS[number % 2]) for number, one in enumerate(clients))
            flap(load, gateway, lambda: ScriptedUpstream(port=port), "upstream_rest")
        records = [one for one in gateway.stop() if "event" not in one]
    assert Counter(UP if one["status"] == 200 else DOWN for one in records) == load.seen
    reasons = {one["reason"] for one in records}
    assert {"allowed", "upstream_unreachable"} <= reasons <= {"allowed", "upstream_unreachable", "upstream_broken"}


def ask_grpc(opened: grpc.Channel) -> str:
    answer = call(opened, "/qdrant.Collections/List")
    if answer.code is grpc.StatusCode.OK:
        return UP
    assert answer.code is grpc.StatusCode.UNAVAILABLE, answer
    assert answer.text.startswith("The upstream"), answer
    return DOWN


@pytest.mark.soak
@pytest.mark.timeout(900)
def test_grpc(site: Site, upstream: ScriptedUpstream, port: int) -> None:
    """Clients as they come: what a GOAWAY says was never begun, gRPC's libraries send again by themselves."""
    with Gateway(site.write_config(upstream.url, grpc=f"http://127.0.0.1:{port}")) as gateway:
        with loaded(gateway) as (load, stack):
            clients = [stack.enter_context(channel(gateway, site, grpc_enable_retries=1)) for _ in range(CLIENTS)]
            load.start(partial(ask_grpc, one) for one in clients)
            flap(load, gateway, lambda: H2Upstream(port=port), "upstream_grpc")
        records = [one for one in gateway.stop() if "event" not in one]
    assert Counter(UP if one["grpc_status"] == 0 else DOWN for one in records) == load.seen
    assert {one["grpc_status"] for one in records} == {0, 14}
