"""`workers: 2`: a limit is one for both processes, and what a killed one had going on is given back."""

from __future__ import annotations

import os
import signal
import socket
from contextlib import ExitStack, suppress

from support.gated_answers import GatedAnswer
from support.gateway import DEADLINE, Gateway
from support.limit_answers import SLOW
from support.raw_connection import GET, RawClient, connected
from support.site import Site
from support.upstream import ScriptedUpstream, plain
from support.workers import at_each, workers


def asked(client: RawClient) -> int:
    client.send(GET)
    return client.response().status


def accepted(metrics: str) -> float:
    return float(metrics.partition('tlsproxy_connections_total{outcome="accepted"} ')[2].partition("\n")[0])


def test_a_rate_and_the_connections_of_an_address(site: Site, upstream: ScriptedUpstream) -> None:
    limits = {"per_identity": {**SLOW, "burst": 10}, "per_address": {"handshakes_per_second": 0.01, "burst": 300}}
    with Gateway(site.write_config(upstream.url, workers=2, limits=limits)) as gateway, ExitStack() as stack:
        clients = [client for _, client in at_each(gateway, site, stack).values()]
        assert [asked(client) for _ in range(7) for client in clients] == [200] * 10 + [429] * 4
        for _ in range(310):
            with suppress(OSError):
                socket.create_connection(("127.0.0.1", gateway.port), timeout=DEADLINE).close()
        metrics = ""
        while 'outcome="handshake_rate"' not in metrics or accepted(metrics) < 300:  # a worker may yet have to tell
            metrics = gateway.ask_admin("/metrics")[1]
        assert accepted(metrics) == 300
        assert "tlsproxy_limit_unlocked_total 0.0" in metrics


def test_requests_at_a_time_and_a_worker_that_is_killed(site: Site, upstream: ScriptedUpstream) -> None:
    held = GatedAnswer()
    upstream.answer = lambda connection, request: (plain() if "/healthz" in request.line else held)(connection, request)
    limits = {"per_identity": {"concurrent_requests": 2}}
    with Gateway(site.write_config(upstream.url, workers=2, limits=limits)) as gateway, ExitStack() as stack:
        stack.callback(held.release.set)
        first, second = (at_each(gateway, site, stack) for _ in range(2))
        for _, client in first.values():
            client.send(GET)
        held.wait(2)
        assert [asked(client) for _, client in second.values()] == [429, 429]
        os.kill(workers(gateway)[1]["pid"], signal.SIGKILL)
        gateway.log.wait(lambda line: "worker 1 (pid" in line and "serves generation" in line)
        survivor = second[2][1]
        survivor.send(GET)
        held.wait(1)
        third = stack.enter_context(connected(gateway, site.client()))
        assert asked(third) == 429, "the other worker's still count"
        held.release.set()
        assert survivor.response().status == first[2][1].response().status == 200
