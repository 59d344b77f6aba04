"""A worker that is killed, or stuck, takes its own requests with it and nothing else; so does the supervisor."""

from __future__ import annotations

import os
import signal
import time
from contextlib import ExitStack
from pathlib import Path

import pytest
from support import hung_calls
from support.background_load import BackgroundLoad
from support.gated_answers import busy, gated
from support.gateway import DEADLINE, Gateway
from support.kept_connection import Caller
from support.polling import until
from support.raw_connection import GET, Truncated
from support.site import Site
from support.upstream import ScriptedUpstream
from support.workers import at_each, workers

CONNECTIONS = 'tlsproxy_connections_total{outcome="accepted"} '


def accepted(gateway: Gateway) -> float:
    lines = gateway.ask_admin("/metrics")[1].splitlines()
    return next(float(line.removeprefix(CONNECTIONS)) for line in lines if line.startswith(CONNECTIONS))


def replaced(gateway: Gateway, number: int) -> str:
    """How it ended, once there is another in its place."""
    how = gateway.log.wait(lambda line: f"worker {number} has ended" in line)
    gateway.log.wait(lambda line: f"worker {number} (pid" in line and "serves generation" in line)
    return how


def gone(pid: int) -> bool:
    """It has ended, whether or not somebody has asked how."""
    try:
        return ") Z " in Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return True


def test_killed_in_the_middle_of_requests(site: Site, upstream: ScriptedUpstream) -> None:
    with Gateway(site.write_config(upstream.url, workers=2)) as gateway, ExitStack() as stack:
        clients = at_each(gateway, site, stack)
        before = accepted(gateway)
        asked = len(upstream.requests)
        with gated(upstream) as let:
            for _, client in clients.values():
                client.send(GET)
            busy(upstream, asked + 2)
            pid = workers(gateway)[1]["pid"]
            os.kill(pid, signal.SIGKILL)
            with pytest.raises(Truncated):
                clients[1][1].response()
            assert gateway.ask_admin("/readyz")[0] == 200, "the other one serves"
            let.set()
            assert clients[2][1].response().status == 200
        assert "SIGKILL" in replaced(gateway, 1)
        assert workers(gateway)[1]["restarts"] == 1
        assert accepted(gateway) >= before, "no counter goes back"
        with ExitStack() as others:
            numbers = [number for number, _ in at_each(gateway, site, others).values()]
            assert clients[1][0] not in numbers
        clients[2][1].send(GET)
        assert clients[2][1].response().status == 200


def test_killed_under_load(site: Site, upstream: ScriptedUpstream) -> None:
    """What fails is at most what the killed ones had: their connections, one request on each."""
    with Gateway(site.write_config(upstream.url, workers=2)) as gateway:
        load = BackgroundLoad(site, gateway, 12, 4)
        try:
            load.saw(site.serial("server"))
            for number in (1, 2):
                os.kill(workers(gateway)[number]["pid"], signal.SIGKILL)
                replaced(gateway, number)
                for _ in range(10):
                    with Caller(gateway, site.client()) as caller:
                        assert caller.ask().status == 200
            done = load.end()
        finally:
            load.kill()
    assert done["requests"] > len(done["failures"])
    assert len(done["failures"]) <= 2 * 16
    assert not [failure for failure in done["failures"] if "Refused" in failure]


def told_stuck(gateway: Gateway, number: int) -> None:
    """Returns when the operators can see it. The gateway is ready, and does not wait for that worker to say so."""
    until(lambda: f"worker {number} has not answered for" in gateway.ask_admin("/readyz")[1])
    assert gateway.ask_admin("/readyz")[0] == 200
    assert workers(gateway)[number]["silent"] >= 1
    lines = gateway.ask_admin("/metrics")[1].splitlines()
    silent = f'tlsproxy_worker_silent_seconds{{worker="{number}"}} '
    assert next(float(line.removeprefix(silent)) for line in lines if line.startswith(silent)) >= 1
    assert f'tlsproxy_worker_generation{{worker="{number}"}} 1.0' in lines


def test_a_stuck_one_is_replaced(site: Site, upstream: ScriptedUpstream, tmp_path: Path) -> None:
    """The sooner if a signal has stopped it."""
    config = site.write_config(upstream.url, workers=3)
    with Gateway(config, **hung_calls.loops(tmp_path / "hung").environ) as gateway:
        hung, halted = (workers(gateway)[number]["pid"] for number in (2, 3))
        os.kill(hung, signal.SIGUSR2)
        os.kill(halted, signal.SIGSTOP)
        told_stuck(gateway, 2)
        assert "is stopped by a signal" in replaced(gateway, 3)
        assert "has not answered within 10 s" in replaced(gateway, 2)
        assert gone(hung)
        assert gone(halted)
        with Caller(gateway, site.client()) as caller:
            assert caller.ask().status == 200


def test_all_drain_at_the_signal(site: Site, upstream: ScriptedUpstream) -> None:
    with Gateway(site.write_config(upstream.url, workers=2)) as gateway, ExitStack() as stack:
        clients = at_each(gateway, site, stack)
        pids = [worker["pid"] for worker in workers(gateway).values()]
        with gated(upstream) as let:
            asked = len(upstream.requests)
            for _, client in clients.values():
                client.send(GET)
            busy(upstream, asked + 2)
            gateway.process.send_signal(signal.SIGTERM)
            until(lambda: '"listeners": "draining"' in gateway.ask_admin("/readyz")[1])
            with pytest.raises(ConnectionRefusedError):
                gateway.connect(site.client())
            let.set()
            for _, client in clients.values():
                response = client.response()
                assert (response.status, response.fields["connection"]) == (200, "close")
                assert client.ended()
        assert gateway.process.wait(DEADLINE) == 0
        assert all(gone(pid) for pid in pids)


def test_a_second_signal_ends_them_at_once(site: Site, upstream: ScriptedUpstream) -> None:
    with Gateway(site.write_config(upstream.url, workers=2)) as gateway, ExitStack() as stack:
        clients = at_each(gateway, site, stack)
        asked = len(upstream.requests)
        with gated(upstream):
            for _, client in clients.values():
                client.send(GET)
            busy(upstream, asked + 2)
            gateway.process.send_signal(signal.SIGTERM)
            gateway.log.wait(lambda line: "draining" in line)
            gateway.process.send_signal(signal.SIGTERM)
            for _, client in clients.values():
                with pytest.raises(Truncated):
                    client.response()
            assert gateway.process.wait(DEADLINE) == 0
        records = gateway.stop()
        assert [each["reason"] for each in records if each.get("method") == "list_collections"] == ["client_gone"] * 2
        assert records[-1]["event"] == "stop"


def test_without_their_supervisor_they_finish_and_end(site: Site, upstream: ScriptedUpstream) -> None:
    with ExitStack() as stack:
        gateway = stack.enter_context(Gateway(site.write_config(upstream.url, workers=2)))
        clients = at_each(gateway, site, stack)
        pids = [worker["pid"] for worker in workers(gateway).values()]
        with gated(upstream) as let:
            asked = len(upstream.requests)
            for _, client in clients.values():
                client.send(GET)
            busy(upstream, asked + 2)
            gateway.process.kill()
            gateway.process.wait(DEADLINE)
            for _ in pids:
                gateway.log.wait(lambda line: "the supervisor is gone: draining" in line)
            let.set()
            for _, client in clients.values():
                assert client.response().status == 200
                assert client.ended()
        end = time.monotonic() + DEADLINE
        while not all(gone(pid) for pid in pids):
            assert time.monotonic() < end
