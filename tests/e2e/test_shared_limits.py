"""Several gateways as one: a limit is one for all, and each keeps its part of it while the store is away."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from support.gateway import DEADLINE, Gateway
from support.limit_answers import SLOW, named_key
from support.raw_connection import GET, RawClient, connected
from support.redis_server import RedisServer, Way, needs_store
from support.site import Site
from support.upstream import ScriptedUpstream

from tlsproxy.cli import main

pytestmark = needs_store

BURST = 20
LIMITS = {
    "per_identity": {**SLOW, "burst": BURST},
    "per_key": {"concurrent_requests": 2},
    "per_address": {"failed_authentications": 6},
}
SETTLED = 0.5
"""Seconds in which each gateway has drawn all that there is to be had."""


@dataclass(frozen=True, slots=True)
class Pair:
    """A gateway of one process, and one of two workers."""

    site: Site
    server: RedisServer
    way: Way
    gateways: tuple[Gateway, Gateway]

    def statuses(self) -> list[dict[str, Any]]:
        return [json.loads(one.ask_admin("/status")[1]) for one in self.gateways]

    def until(self, *, reached: bool) -> list[dict[str, Any]]:
        """Statuses once both say so."""
        end = time.monotonic() + DEADLINE
        while time.monotonic() < end:
            found = self.statuses()
            shared = [one["shared"] for one in found]
            if all(one["reached"] is reached and one["gateways"] == 2 for one in shared):
                return found
            time.sleep(0.05)
        raise AssertionError(f"the store is not {'reached' if reached else 'away'}: {shared}")

    @contextmanager
    def clients(self, name: str) -> Iterator[list[RawClient]]:
        with ExitStack() as stack:
            yield [stack.enter_context(connected(one, self.site.client(name))) for one in self.gateways]

    def newcomer(self) -> str:
        """The name of a client that nobody has seen."""
        name = f"client-{time.monotonic_ns()}"
        self.site.issue(name, client=True, common_name=name, organizational_unit="platform")
        return name

    def admitted(self, name: str) -> list[int]:
        """Requests that each gateway admits, asked in turn until nothing more comes for a while."""
        counts = [0, 0]
        with self.clients(name) as clients:
            last = time.monotonic()
            while time.monotonic() - last < SETTLED:
                for number, client in enumerate(clients):
                    client.send(GET)
                    if client.response().status == 200:
                        counts[number] += 1
                        last = time.monotonic()
                time.sleep(0.01)  # for the gateways, which draw meanwhile
        return counts


def operate(*arguments: str, gateway: Gateway) -> str:
    done = CliRunner().invoke(main, [*arguments, "--config", str(gateway.config), "--admin", gateway.admin])
    assert done.exit_code == 0, done.output
    return done.output


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    site = Site(tmp_path_factory.mktemp("site"))
    with ExitStack() as stack:
        upstream = stack.enter_context(ScriptedUpstream())
        server = stack.enter_context(RedisServer(tmp_path_factory.mktemp("store")))
        way = stack.enter_context(Way(server.port))
        configs: list[Path] = []
        for number in range(2):
            (site.directory / str(number)).mkdir()
            path = site.write_config(
                upstream.url, workers=number + 1, limits=LIMITS, shared={"url": way.url}, keys=[named_key("S3CRET" * 8)]
            )
            configs.append(path)
        gateways = [stack.enter_context(Gateway(path)) for path in configs]
        yield Pair(site, server, way, (gateways[0], gateways[1]))


def test_a_limit_is_one_for_all(pair: Pair) -> None:
    found = pair.until(reached=True)
    assert [one["readiness"]["state"] for one in found] == ["serving"] * 2
    assert sorted(found[0]["shared"]["names"]) == sorted(found[1]["shared"]["names"])
    counts = pair.admitted(pair.newcomer())
    assert BURST - 2 <= sum(counts) <= BURST + 2
    with pair.clients("admin") as (client, _):
        sent = 0
        status = 200
        while status == 200:
            client.send(GET)
            status = client.response().status
            sent += 1
            time.sleep(0.05)
    assert BURST - 2 <= sent - 1 <= BURST + 2, "one gateway alone may use all of it"


def test_failed_authentications_count_for_all(pair: Pair) -> None:
    pair.until(reached=True)
    wrong = GET.replace(b"host: h", b"host: h\r\napi-key: wrong")
    with pair.clients(pair.newcomer()) as clients:
        statuses = []
        for number in range(8):
            clients[number % 2].send(wrong)
            statuses.append(clients[number % 2].response().status)
        assert statuses[:6] == [401] * 6 or 429 in statuses
        end = time.monotonic() + DEADLINE
        for client in clients:
            status = 0
            while status != 429:
                client.send(wrong)
                status = client.response().status
                assert time.monotonic() < end


def test_a_lock_holds_at_all_gateways_until_any_lifts_it(pair: Pair) -> None:
    pair.until(reached=True)
    here, there = pair.gateways
    name = pair.newcomer()

    def awaited(*held: str) -> None:
        end = time.monotonic() + DEADLINE
        while any([lock["value"] for lock in one["locks"]["entries"]] != list(held) for one in pair.statuses()):
            assert time.monotonic() < end
            time.sleep(0.05)
        for one in pair.gateways:
            with connected(one, pair.site.client(name)) as client:
                client.send(GET)
                assert client.response().status == (403 if held else 200)

    awaited()
    for locking, lifting in ((here, there), (there, here)):
        operate("lock", name, "--reason", "theft", gateway=locking)
        awaited(name)
        assert "theft" in operate("locks", gateway=lifting)
        with pair.server.client() as client:
            client.flushall()
        operate("unlock", name, gateway=lifting)
        awaited()
    operate("lock", name, gateway=here)
    awaited(name)
    operate("unlock", "--all", gateway=there)
    awaited()


@pytest.mark.parametrize("fault", ["cut", "paused", "killed", "password"])
def test_while_the_store_is_away_each_keeps_its_part(pair: Pair, fault: str) -> None:
    pair.until(reached=True)
    used = pair.newcomer()
    assert BURST - 2 <= sum(pair.admitted(used)) <= BURST + 2
    with pair.server.client() as client:
        if fault == "cut":
            pair.way.whole.clear()
        elif fault == "paused":
            pair.server.pause()
        elif fault == "password":
            client.config_set("requirepass", "other")
            client.client_kill_filter(_type="normal", skipme=True)
        else:
            pair.server.kill()
    try:
        found = pair.until(reached=False)
        for one in found:
            assert one["readiness"]["ready"] is True
            assert "divided by 2" in one["readiness"]["headline"]
        assert pair.admitted(pair.newcomer()) == [BURST // 2] * 2
        assert sum(pair.admitted(used)) <= 1, "what was used is known"
    finally:
        pair.way.whole.set()
        if fault == "paused":
            pair.server.resume()
        elif fault == "killed":
            pair.server.start()
        elif fault == "password":
            with pair.server.client(password="other") as client:
                client.config_set("requirepass", "")
    pair.until(reached=True)
    assert sum(pair.admitted(used)) <= 1, "a store that was restarted is told"


def test_a_start_without_the_store(pair: Pair) -> None:
    shared = {"url": "redis://127.0.0.1:1", "gateways": 4}
    with (
        ScriptedUpstream() as upstream,
        Gateway(pair.site.write_config(upstream.url, limits=LIMITS, shared=shared)) as gateway,
    ):
        gateway.log.wait(lambda line: "degraded: shared: redis://127.0.0.1:1" in line)
        assert not [line for line in gateway.log.seen if "not been asked" in line]
        with connected(gateway, pair.site.client(pair.newcomer())) as client:
            statuses = []
            for _ in range(BURST):
                client.send(GET)
                statuses.append(client.response().status)
        assert statuses == [200] * (BURST // 4) + [429] * (BURST - BURST // 4)


def test_a_store_that_forgets_all_is_told_again(pair: Pair) -> None:
    pair.until(reached=True)
    used = pair.newcomer()
    assert BURST - 2 <= sum(pair.admitted(used)) <= BURST + 2
    with pair.server.client() as client:
        client.flushall()
    assert sum(pair.admitted(used)) <= 1
    assert pair.until(reached=True)[0]["shared"]["round_trips"]["ok"] > 10
