"""Several gateways as one: a limit is one for all, and each keeps its part of it while the store is away."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from click.testing import CliRunner
from support.gated_answers import GatedAnswer
from support.gateway import DEADLINE, Gateway
from support.grpc_channels import call, channel
from support.grpc_traffic import LIST
from support.grpc_upstream import GrpcUpstream
from support.limit_answers import SLOW, named_key
from support.polling import until
from support.raw_connection import GET, RawClient, connected
from support.redis_server import RedisServer, Way, needs_store
from support.site import Site
from support.upstream import ScriptedUpstream, plain

from tlsproxy.cli import main
from tlsproxy.tls.pki import Authority

pytestmark = needs_store

BURST = 20
LIMITS = {
    "per_identity": {**SLOW, "burst": BURST, "concurrent_requests": 4},
    "per_address": {"failed_authentications": 6},
}
SETTLED = 0.5
"""Seconds in which each gateway has drawn all that there is to be had."""


@dataclass(frozen=True, slots=True)
class Pair:
    """A gateway of one process, and one of two workers. The store wants a client certificate and a password."""

    site: Site
    upstream: ScriptedUpstream
    server: RedisServer
    gateways: tuple[Gateway, Gateway]

    def statuses(self) -> list[dict[str, Any]]:
        return [json.loads(one.ask_admin("/status")[1]) for one in self.gateways]

    def met(self, condition: Callable[[dict[str, Any]], bool]) -> list[dict[str, Any]]:
        """Statuses once this is so at both."""
        end = time.monotonic() + DEADLINE
        while not all(map(condition, found := self.statuses())):
            assert time.monotonic() < end, [one["shared"] for one in found]
            time.sleep(0.1)
        return found

    def until(self, *, reached: bool) -> list[dict[str, Any]]:
        return self.met(lambda one: one["shared"]["reached"] is reached and one["shared"]["gateways"] == 2)

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
        counts, refused = [0, 0], 0
        with self.clients(name) as clients:
            last = time.monotonic()
            while refused < 5 or time.monotonic() - last < SETTLED:
                refused += 1
                for number, client in enumerate(clients):
                    client.send(GET)
                    if client.response().status == 200:
                        counts[number] += 1
                        last, refused = time.monotonic(), 0
                time.sleep(0.01)  # for the gateways, which draw meanwhile
        return counts


def operate(*arguments: str, gateway: Gateway) -> str:
    done = CliRunner().invoke(main, [*arguments, "--config", str(gateway.config), "--admin", gateway.admin])
    assert done.exit_code == 0, done.output
    return done.output


PASSWORD = "correct-horse-battery-staple"


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    site = Site(tmp_path_factory.mktemp("site"))
    site.issue("store", ips=["127.0.0.1"], server=True)
    site.issue("gateway", common_name="gateway", client=True)
    site.write("store-password", PASSWORD.encode())
    files = {f"--tls-{kind}-file": str(site.directory / name)
             for kind, name in (("ca-cert", "ca.pem"), ("cert", "store.pem"), ("key", "store.key"))}  # fmt: skip
    options = [word for pair in files.items() for word in pair]
    with ExitStack() as stack:
        upstream, called = stack.enter_context(ScriptedUpstream()), stack.enter_context(GrpcUpstream())
        store = RedisServer(tmp_path_factory.mktemp("store"), *options, "--requirepass", PASSWORD, tls=True)
        server = stack.enter_context(store)
        way = stack.enter_context(Way(server.port))
        shared = {"url": f"rediss://127.0.0.1:{way.port}", "password_file": "store-password",
                  "ca_cert": "ca.pem", "cert": "gateway.pem", "key": "gateway.key"}  # fmt: skip
        configs: list[Path] = []
        for number in range(2):
            (site.directory / str(number)).mkdir()
            configs.append(
                site.write_config(upstream.url, grpc=called.url, workers=number + 1, limits=LIMITS, shared=shared,
                                  keys=[named_key("S3CRET" * 8)])
            )  # fmt: skip
        gateways = [stack.enter_context(Gateway(path)) for path in configs]
        yield Pair(site, upstream, server, (gateways[0], gateways[1]))


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


def test_a_limit_is_one_for_both_protocols(pair: Pair) -> None:
    name = pair.newcomer()
    rest, other = pair.gateways
    with connected(rest, pair.site.client(name)) as client, channel(other, pair.site, name) as opened:
        admitted, last = 0, time.monotonic()
        while time.monotonic() - last < SETTLED:
            client.send(GET)
            for found in (client.response().status == 200, call(opened, LIST).code is grpc.StatusCode.OK):
                if found:
                    admitted, last = admitted + 1, time.monotonic()
            time.sleep(0.01)
    assert BURST - 2 <= admitted <= BURST + 2


def test_concurrent_requests_are_divided(pair: Pair) -> None:
    pair.until(reached=True)
    context = pair.site.client(pair.newcomer())
    pair.upstream.answer = held = GatedAnswer()
    try:
        with ExitStack() as stack:
            clients = [[stack.enter_context(connected(one, context)) for _ in range(3)] for one in pair.gateways]
            for first, second, third in clients:
                for client in (first, second):
                    client.send(GET)
                held.wait(2)
                third.send(GET)
                assert third.response().status == 429
            held.release.set()
            assert [client.response().status for each in clients for client in each[:2]] == [200] * 4
    finally:
        pair.upstream.answer = plain()


@pytest.mark.parametrize("at", [0, 1])
def test_failed_authentications_at_one_delay_at_the_other(pair: Pair, at: int) -> None:
    pair.until(reached=True)
    wrong = GET.replace(b"host: h", b"host: h\r\napi-key: wrong")
    with pair.clients(pair.newcomer()) as clients:
        failing, other = clients[at], clients[1 - at]
        statuses = []
        while 429 not in statuses:
            failing.send(wrong)
            statuses.append(failing.response().status)
        assert 2 <= len(statuses) <= 8, "one that is told twice, for want of an answer, counts twice"
        status, end = 0, time.monotonic() + DEADLINE
        while status != 429:  # the first delay is a second, and each try there makes it longer
            other.send(wrong)
            status = other.response().status
            assert time.monotonic() < end


def test_a_lock_holds_at_all_gateways_until_any_lifts_it(pair: Pair) -> None:
    pair.until(reached=True)
    here, there = pair.gateways
    name = pair.newcomer()

    def awaited(*held: str) -> None:
        end = time.monotonic() + DEADLINE
        while any([lock["value"] for lock in one["locks"]["entries"]] != list(held) for one in pair.statuses()):
            assert time.monotonic() < end
            time.sleep(0.1)
        for one in pair.gateways:
            with connected(one, pair.site.client(name)) as client:
                client.send(GET)
                assert client.response().status == (403 if held else 200)

    awaited()
    for locking, lifting in ((here, there), (there, here)):
        operate("lock", name, "--reason", "theft", gateway=locking)
        awaited(name)
        assert "theft" in operate("locks", gateway=lifting)
        with pair.server.client(password=PASSWORD) as client:
            client.flushall()
        operate("unlock", name, gateway=lifting)
        awaited()
    operate("lock", name, gateway=here)
    awaited(name)
    operate("unlock", "--all", gateway=there)
    awaited()


@pytest.mark.parametrize("fault", ["paused", "killed"])
def test_while_the_store_is_away_each_keeps_its_part(pair: Pair, fault: str) -> None:
    pair.until(reached=True)
    used = pair.newcomer()
    assert BURST - 2 <= sum(pair.admitted(used)) <= BURST + 2
    if fault == "paused":
        pair.server.pause()
    else:
        pair.server.kill()
    try:
        for one in pair.until(reached=False):
            assert one["readiness"]["ready"] is True
            assert "divided by 2" in one["readiness"]["headline"]
        assert pair.admitted(pair.newcomer()) == [BURST // 2] * 2
        assert sum(pair.admitted(used)) <= 1, "what was used is known"
    finally:
        if fault == "paused":
            pair.server.resume()
        else:
            pair.server.start()
    pair.until(reached=True)
    assert sum(pair.admitted(used)) <= 1, "a store that was restarted is told"


def test_files_for_the_store_are_renewed_live_while_the_old_ones_are_revoked(pair: Pair) -> None:
    before = pair.until(reached=True)
    successor = Authority.create()
    clients = pair.site.write("store-clients.pem", successor.certificate_pem)

    def connections() -> set[str]:
        with pair.server.client(password="renewed") as client:
            return {one["id"] for one in client.client_list() if one["laddr"].endswith(f":{pair.server.port}")}

    with pair.server.client(password=PASSWORD) as client:
        client.config_set("tls-ca-cert-file", str(clients))
        client.config_set("requirepass", "renewed")
    old = connections()
    assert len(old) == 2, "still let in"
    pair.site.issue("gateway", authority=successor, common_name="gateway", client=True)
    pair.site.replace("store-password", b"renewed")
    until(lambda: len(now := connections()) >= 2 and not now & old)
    for was, one in zip(before, pair.until(reached=True), strict=True):
        failed = [{**each["shared"]["round_trips"], "ok": 0} for each in (was, one)]
        assert failed[0] == failed[1], "never away"
        assert {"gateway.pem", "ca.pem"} <= {Path(each["source"]).name for each in one["lifetimes"]}
    assert BURST - 2 <= sum(pair.admitted(pair.newcomer())) <= BURST + 2


def test_the_part_of_one_that_is_killed_is_the_others_which_ends_well_without_the_store(pair: Pair) -> None:
    first, second = pair.gateways
    second.process.send_signal(signal.SIGKILL)
    until(lambda: json.loads(first.ask_admin("/status")[1])["shared"]["gateways"] == 1)
    pair.server.pause()
    first.stop()
    assert first.process.poll() == 0
    assert not [line for line in first.log.seen if "Fatal error" in line or "Traceback" in line or "EBUSY" in line]
