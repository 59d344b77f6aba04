"""Gateways and their store: what each fault of it, or of the way to it, changes in limits."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import redis
from shared_gateways import Member, admitted, certified_store, configured, gateways, run, until
from snapshot_site import OTHER
from support.redis_server import RedisServer, Way, needs_store

from tlsproxy.proxy.limits.gcra import Rate
from tlsproxy.service.shared.coordinator import MEETING, PRESENCE, tried
from tlsproxy.service.shared.lock_exchange import LockExchange
from tlsproxy.service.shared.store import StoreError
from tlsproxy.snapshot.generation import Generation
from tlsproxy.snapshot.lifetimes import lifetimes_of

pytestmark = needs_store


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with RedisServer(tmp_path_factory.mktemp("store")) as running:
        yield running


@pytest.fixture(autouse=True)
def _empty(server: RedisServer) -> None:
    with server.client() as client:
        client.flushall()


@pytest.fixture(scope="module")
def way(server: RedisServer) -> Iterator[Way]:
    with Way(server.port) as running:
        yield running


@pytest.fixture(scope="module")
def generation(way: Way, tmp_path_factory: pytest.TempPathFactory) -> Generation:
    return configured(tmp_path_factory.mktemp("site"), way.url).build()


def stored(server: RedisServer, one: Member, name: str) -> float:
    """Seconds that an account owes in the store."""
    with server.client() as client:
        found = client.get(f"tlsproxy:r:{one.charge(name).account.hex()}")
        seconds, microseconds = client.time()
    return 0.0 if found is None else int(found) / 1e6 - seconds - microseconds / 1e6


# Members


def test_one_that_is_killed_and_one_that_joins_change_the_parts(generation: Generation) -> None:
    async def changes() -> None:
        async with gateways(generation, 2) as members:
            first, second = members
            third = Member(generation)
            third.start()
            await until(lambda: all(one.status["gateways"] == 3 for one in (*members, third)))
            await third.stop()
            await until(lambda: all(one.status["gateways"] == 2 for one in members))
            begin = time.monotonic()
            await second.kill()
            await until(lambda: first.status["gateways"] == 1)
            assert time.monotonic() - begin <= PRESENCE + 2 * MEETING + 1
            held = first.charge("c", None, 7)
            assert sum(first.takes(held) for _ in range(9)) == 7, "all of it is its own"
            assert await admitted("killed", first) == [20]

    run(changes())


def test_a_store_that_forgets_all_makes_nobody_think_that_it_is_alone(
    generation: Generation, server: RedisServer
) -> None:
    async def forgotten() -> None:
        async with gateways(generation, 3) as members:
            assert sum(await admitted("before", *members)) == pytest.approx(20, abs=2)
            with server.client() as client:
                client.flushall()
            seen = set[int]()
            here = [len(one.metrics.outcomes) for one in members]
            held = [one.charge("c", None, 6) for one in members]

            def again() -> bool:
                seen.update(one.status["gateways"] for one in members)
                return all(
                    one.metrics.outcomes[since:].count("ok") > 3 for one, since in zip(members, here, strict=True)
                )

            await until(again)
            assert seen == {3}
            assert sum(await admitted("before", *members, calm=0.1)) <= 1, "what was used is told again"
            assert [sum(one.takes(charge) for _ in range(9)) for one, charge in zip(members, held, strict=True)] == [
                2, 2, 2,
            ]  # fmt: skip

    run(forgotten())


def test_a_gateway_that_starts_without_the_store_keeps_its_part(tmp_path: Path) -> None:
    async def alone() -> None:
        one = Member(configured(tmp_path, "redis://127.0.0.1:1", gateways=4).build())
        assert not one.coordinator.part.text, "nothing is known yet"
        one.start()
        await until(lambda: "redis://127.0.0.1:1: " in one.coordinator.part.text)
        assert await admitted("a", one, calm=0.05) == [5]
        await one.stop()

    run(alone())


def test_one_that_is_cut_off_has_its_part_beside_the_other_and_pays_for_it(server: RedisServer, tmp_path: Path) -> None:
    direct = configured(tmp_path, server.url).build()

    async def cut() -> None:
        with Way(server.port) as cable:
            async with (
                gateways(direct, 1) as (near,),
                gateways(configured(tmp_path / "far", cable.url).build(), 1, sees=2) as (far,),
            ):
                await until(lambda: near.status["gateways"] == 2)
                cable.whole.clear()
                await until(lambda: not far.status["reached"])
                assert await admitted("cut", far, calm=0.05) == [10]
                assert sum(await admitted("cut", near)) == pytest.approx(20, abs=1)
                cable.whole.set()
                await until(lambda: far.status["reached"])
                await until(lambda: stored(server, near, "cut") >= 25 * 100)

    run(cut())


def test_ten_thousand_callers_leave_nothing_behind(generation: Generation, server: RedisServer) -> None:
    async def many() -> None:
        with server.client() as client:
            async with gateways(generation, 2) as members:
                for number in range(10_000):
                    one = members[number % 2]
                    assert one.takes(one.charge(f"caller {number}", Rate.of(100, 10)))
                    if number % 100 == 0:
                        await asyncio.sleep(0.001)
                most = 0

                def passed() -> bool:
                    nonlocal most
                    most = max(most, keys := client.dbsize())
                    return most >= 1000 and keys <= 6

                await until(passed)
                assert most <= 10_006
                assert {outcome for one in members for outcome in one.metrics.outcomes} == {"ok"}
                assert not any(one.table.overflows for one in members)

    run(many())


# Faults


def _full(client: redis.Redis) -> None:
    client.config_set("maxmemory", 1)


def _replica(client: redis.Redis) -> None:
    client.replicaof("127.0.0.1", "1")


def _without_a_command(client: redis.Redis) -> None:
    client.execute_command("ACL", "SETUSER", "default", "-get")


def _of_another(client: redis.Redis) -> None:
    client.delete("tlsproxy:gateways")
    client.set("tlsproxy:gateways", "another program's")


def _busy(client: redis.Redis) -> None:
    client.config_set("busy-reply-threshold", 1)

    def spin() -> None:
        with suppress(redis.exceptions.RedisError):
            client.eval("while true do end", 0)

    threading.Thread(target=spin, daemon=True).start()


def _mended(client: redis.Redis) -> None:
    answered = False
    while not answered:
        with suppress(redis.exceptions.ResponseError):
            answered = client.ping()
        with suppress(redis.exceptions.ResponseError):
            client.execute_command("SCRIPT", "KILL")
    client.config_set("maxmemory", 0)
    client.replicaof("NO", "ONE")
    client.execute_command("ACL", "SETUSER", "default", "+get")
    if client.type("tlsproxy:gateways") == b"string":
        client.delete("tlsproxy:gateways")


@pytest.mark.parametrize(
    ("fault", "outcome"),
    [
        (_full, "full"),
        (_replica, "read_only"),
        (_without_a_command, "credentials"),
        (_of_another, "error"),
        (_busy, "busy"),
    ],
)
def test_a_fault_of_the_store_divides_the_limits_until_it_is_over(
    generation: Generation, server: RedisServer, fault: Callable[[redis.Redis], None], outcome: str
) -> None:
    async def faulty() -> None:
        with server.client() as broken, server.client() as client:
            async with gateways(generation, 2) as members:
                used = await admitted(f"before {outcome}", *members)
                assert sum(used) == pytest.approx(20, abs=2)
                told = [one.changes for one in members]
                try:
                    fault(broken)
                    name = f"during {outcome}"
                    for one in members:
                        assert one.takes(one.charge(name)), "something is to be drawn"
                    await until(lambda: all(outcome in one.metrics.outcomes for one in members))
                    await until(lambda: not any(one.status["reached"] for one in members))
                    assert sum(await admitted(name, *members, calm=0.2)) <= 20
                    assert await admitted(f"after {outcome}", *members, calm=0.2) == [10, 10]
                    assert sum(await admitted(f"before {outcome}", *members, calm=0.1)) <= 1, "what was used is known"
                    assert [one.changes - before for one, before in zip(members, told, strict=True)] == [1, 1]
                    assert all("divided by 2" in one.coordinator.part.text for one in members)
                    with pytest.raises(StoreError) as caught:
                        await tried(generation)
                    assert caught.value.outcome == outcome
                finally:
                    _mended(client)
                await until(lambda: all(one.status["reached"] for one in members))
                await tried(generation)
                assert {one.status["gateways"] for one in members} == {2}
                assert sum(await admitted(f"after {outcome}", *members, calm=0.1)) <= 10, "paid, if not by both yet"
                assert sum(await admitted(f"after {outcome}", *members, calm=0.1)) == 0

    run(faulty())


def test_a_store_that_is_slow_is_one_and_one_that_is_slower_is_away(generation: Generation, way: Way) -> None:
    async def slow() -> None:
        async with gateways(generation, 2) as members:
            way.delay = 0.03
            try:
                assert sum(await admitted("slow", *members, calm=0.5)) == pytest.approx(20, abs=4)
                way.delay = 0.45
                await until(lambda: not any(one.status["reached"] for one in members))
                assert await admitted("slower", *members, calm=0.1) == [10, 10]
            finally:
                way.delay = 0.0
            await until(lambda: all(one.status["reached"] for one in members))

    run(slow())


# Renewals


def test_renewed_files_are_taken_live_and_their_ends_are_known(tmp_path: Path) -> None:
    with certified_store(tmp_path) as store:
        found = {one.source: one.kind for one in lifetimes_of(store.reload())}
        assert found[str(store.site.directory / "gateway.pem")] == "client"
        assert found[str(store.site.directory / "store-ca.pem")] == "server_ca"

        def clients() -> set[str]:
            with store.server.client(password=store.password) as client:
                return {one["id"] for one in client.client_list() if one["laddr"].endswith(f":{store.server.port}")}

        async def renewals() -> None:
            async with gateways(store.reload(), 2) as members:
                before = clients()
                assert len(before) == 2
                store.admit(OTHER, "new")
                store.renew(OTHER, "new")
                for one in members:
                    one.generation = store.reload()
                await until(lambda: len(clients()) == 2 and not clients() & before)
                assert all({*one.metrics.outcomes} == {"ok"} for one in members), "never away"
                store.renew(OTHER, "wrong")
                for one in members:
                    one.generation = store.reload()
                await until(
                    lambda: all("an older connection serves on" in str(one.coordinator.part) for one in members)
                )
                assert all(one.status["reached"] for one in members)
                store.renew(OTHER, "new")
                for one in members:
                    one.generation = store.reload()
                await until(lambda: not any(one.coordinator.part.text for one in members))

        run(renewals())


def test_locks_are_read_and_joined_beside_the_loop(generation: Generation, monkeypatch: pytest.MonkeyPatch) -> None:
    workers: dict[str, set[int]] = {}

    def noted(name: str) -> None:
        work = getattr(LockExchange, name)

        def noting(*args: object, **options: object) -> object:
            workers.setdefault(name, set()).add(threading.get_ident())
            return work(*args, **options)

        monkeypatch.setattr(LockExchange, name, noting)

    for name in ("look", "merged", "hear", "forget"):
        noted(name)

    async def joined() -> None:
        async with gateways(generation, 1) as (member,):
            first = await member.coordinator.locked(generation.states.locks)
            assert first.value == generation.states.locks.value
            await until(lambda: len(workers) == 4)
            assert await member.coordinator.locked(generation.states.locks) is first, "nothing has changed"

    run(joined())
    assert threading.get_ident() not in set.union(*workers.values())
