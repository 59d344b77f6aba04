"""The store: scripts on a real server do what their twins do, and every bad answer has a word of its own."""

from __future__ import annotations

import asyncio
import re
import socket
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from shared_gateways import CertifiedStore, certified_store, run
from snapshot_site import OTHER
from support.redis_server import RedisServer, needs_store

from tlsproxy.config.shared import store_address
from tlsproxy.proxy.limits.addresses import TURN
from tlsproxy.proxy.limits.draws import Draw, granted
from tlsproxy.proxy.limits.gcra import Penalty
from tlsproxy.proxy.limits.leases import Failures
from tlsproxy.service.shared.coordinator import FORGOTTEN, draw_values, failure_values, grants_in, largest
from tlsproxy.service.shared.store import Script, Store, StoreAccess, StoreError

SCRIPTS = ("draw", "fail", "lock", "meet")
DOCS = Path(__file__).parents[2] / "docs" / "shared-limits.md"
TIMED = "redis.call('TIME')"
BEGIN = 1_700_000_000_000_000
"""Microseconds: the store's clock in these tests."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with RedisServer(tmp_path_factory.mktemp("store")) as running:
        yield running


def at(script: str, now: int) -> str:
    """The script with this time instead of the store's."""
    text = Script.named(script).text
    assert TIMED in text
    return text.replace(TIMED, f"{{{now // 1_000_000}, {now % 1_000_000}}}")


DRAWS = st.builds(
    Draw,
    st.sampled_from([b"a", b"b"]),
    st.sampled_from([1.0, 3.7, 1000.0, 100_000.0, 1e9]),
    st.sampled_from([1.0, 50_000.0, 2e6, 1e10]),
    st.integers(-50, 50),
    st.integers(0, 1000),
    st.floats(0, 2e6, allow_nan=False),
    st.sampled_from([1, 2, 8]),
)


@needs_store
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rounds=st.lists(st.tuples(st.integers(0, 3_000_000), st.lists(DRAWS, min_size=1, max_size=4)), max_size=6))
def test_the_script_draws_as_its_twin_does(server: RedisServer, rounds: list[tuple[int, list[Draw]]]) -> None:
    arrivals: dict[bytes, int] = {}
    now = BEGIN
    with server.client() as client:
        client.flushall()
        for pause, draws in rounds:
            now += pause
            expected = []
            for draw in draws:
                stored = arrivals.get(draw.account)
                found = granted(None if stored is None else stored - now, draw)
                expected.append(found)
                if found.ahead:
                    arrivals[draw.account] = now + found.ahead
                else:
                    arrivals.pop(draw.account, None)
            answer = client.eval(at("draw", now), len(draws), *(one.account for one in draws), draw_values(draws))
            assert grants_in(answer) == expected


@needs_store
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    steps=st.lists(st.tuples(st.integers(0, 90_000_000), st.integers(1, 6), st.booleans()), max_size=12),
    per_minute=st.integers(1, 30),
    longest=st.sampled_from([1.0, 2.0, 60.0, 64.5, 3600.0]),
)
def test_the_script_counts_failed_authentications_as_its_twin_does(
    server: RedisServer, steps: list[tuple[int, int, bool]], per_minute: int, longest: float
) -> None:
    penalty = Penalty.of(per_minute, longest)
    now, owed, until = BEGIN, {True: 0, False: 0}, {True: 0, False: 0}
    with server.client() as client:
        client.flushall()
        for pause, count, identified in steps:
            now += pause
            heard = 0 if identified else TURN
            name = b"\x01identity" if identified else b"address"
            for _ in range(count):
                owed[identified] = penalty.after(owed[identified], now * 1000)
                later = penalty.until(owed[identified], now * 1000, heard)
                if until[identified] <= now * 1000 and later:
                    until[identified] = later
            values = failure_values([Failures(name, count, identified)], penalty)
            found = client.eval(at("fail", now), 2, "failures", "failed", *values)
            assert found[0] == name
            assert found[1] * 1000 == pytest.approx(max(0, owed[identified] - now * 1000), abs=20_000)
            assert found[2] * 1000 == pytest.approx(max(0, until[identified] - now * 1000), abs=20_000)


@needs_store
def test_the_oldest_of_too_many_failing_accounts_are_forgotten(server: RedisServer) -> None:
    with server.client() as client:
        client.flushall()
        for number in range(5):
            client.eval(
                at("fail", BEGIN + number), 2, "failures", "failed", 6e6, 6e7, 6e7, 3, 1000, f"account {number}", 1, 0
            )
        assert client.zrange("failed", 0, -1) == [b"account 2", b"account 3", b"account 4"]
        assert sorted(client.hkeys("failures")) == [b"account 2", b"account 3", b"account 4"]


PENALTY = Penalty.of(6, 60.0)
MEET = ("gateways", "failures", "failed", "locks", "locked", "ends")


def met(client: Any, now: int, name: str = "a", *, heard: Any = "0", read: Any = "0", presence: float = 3.0) -> Any:
    return client.eval(at("meet", now), 6, *MEET, name, presence, heard, read, 100, FORGOTTEN, 0, *largest(PENALTY))


def told(client: Any, now: int, *names: str) -> None:
    values = failure_values([Failures(name.encode(), 9, identified=False) for name in names], PENALTY)
    client.eval(at("fail", now), 2, "failures", "failed", *values)


def locked(client: Any, now: int, name: str, seconds: int = -1) -> None:
    client.eval(at("lock", now), 3, "locks", "locked", "ends", 10, name, "L", "text", seconds)


HOUR = 3_600_000_000


@needs_store
@pytest.mark.parametrize("jump", [-HOUR, HOUR])
def test_a_clock_that_jumps_loses_no_lock_no_gateway_and_no_failure(server: RedisServer, jump: int) -> None:
    with server.client() as client:
        client.flushall()
        told(client, BEGIN, "before")
        locked(client, BEGIN, "before")
        met(client, BEGIN, "dead")
        _, _, heard, _, read, *_ = met(client, BEGIN)
        now = BEGIN + jump
        told(client, now, "after")
        locked(client, now, "after")
        gateways, accounts, _, locks, _, _, joined = met(client, now, heard=heard, read=read)
        assert (gateways, joined) == ([b"a"], 1), "the dead one counts no more"
        assert b"after" in accounts
        assert b"after" in locks
        _, accounts, *_ = met(client, now)
        assert all(delay <= (60 + 2) * 1e6 for delay in accounts[2::3])
        delays = dict(zip(accounts[::3], accounts[2::3], strict=True))
        assert delays[b"after"] > 0
        _, accounts, *_ = met(client, now + 62_000_001)
        assert not any(accounts[2::3]), "and nobody is delayed for an hour"


@needs_store
def test_more_failures_at_once_than_one_answer_holds_are_all_read(server: RedisServer) -> None:
    names = [f"account {number}" for number in range(250)]
    with server.client() as client:
        client.flushall()
        told(client, BEGIN, *names)
        heard, found = "0", set()
        for _ in range(4):
            _, accounts, heard, *_ = met(client, BEGIN, heard=heard)
            found |= {name.decode() for name in accounts[::3]}
        assert found == {*names}


@needs_store
def test_all_keys_but_those_of_locks_expire(server: RedisServer) -> None:
    with server.client() as client:
        client.flushall()
        client.eval(Script.named("draw").text, 1, "r", draw_values([Draw(b"", 1e5, 2e6, 0, 9, 0.0)]))
        told(client, BEGIN, "a")
        locked(client, BEGIN, "a")
        met(client, BEGIN)
        lasting = {key for key in client.scan_iter() if client.pttl(key) < 0}
        assert lasting == {b"locks", b"locked", b"ends"}


@needs_store
@pytest.mark.parametrize("evicted", MEET[1:])
def test_a_store_that_evicts_one_key_has_lost_those_that_belong_to_it(server: RedisServer, evicted: str) -> None:
    """So that gateways see it, and tell all of it again."""
    with server.client() as client:
        client.flushall()
        told(client, BEGIN, "a")
        locked(client, BEGIN, "a")
        locked(client, BEGIN, "b", seconds=60)
        _, accounts, _, locks, *_ = met(client, BEGIN)
        assert (accounts[::3], locks[::2]) == ([b"a"], [b"a", b"b"])
        client.delete(evicted)
        _, accounts, _, locks, _, number, _ = met(client, BEGIN)
        failing = evicted in {"failures", "failed"}
        assert (accounts[::3], locks[::2], number) == (([], [b"a", b"b"], 2) if failing else ([b"a"], [], 0))
        assert not client.exists(*(MEET[1:3] if failing else MEET[3:]))


@needs_store
def test_a_store_that_is_full_takes_no_presence(server: RedisServer) -> None:
    """Else it would be there at one meeting, and away at the next draw."""
    with server.client() as client:
        client.flushall()
        client.config_set("maxmemory", 1)
        try:
            for now in (BEGIN, BEGIN + HOUR):
                with pytest.raises(redis.exceptions.OutOfMemoryError):
                    met(client, now)
                client.config_set("maxmemory", 0)
                met(client, now)
                client.config_set("maxmemory", 1)
        finally:
            client.config_set("maxmemory", 0)


@needs_store
def test_the_documented_rights_are_enough_and_needed(server: RedisServer) -> None:
    (line,) = re.findall("^ACL SETUSER .*", DOCS.read_text(), re.MULTILINE)
    words = line.replace(">PASSWORD", ">S3CRET").split()
    with server.client() as client, server.client(username="tlsproxy", password="S3CRET") as user:
        client.flushall()
        client.execute_command(*words)
        user.eval(Script.named("draw").text, 1, "tlsproxy:r:1", draw_values([Draw(b"", 1e5, 2e6, 0, 9, 0.0)]))
        with pytest.raises(redis.exceptions.ResponseError, match="no permissions"):
            user.eval(Script.named("draw").text, 1, "other:r:1", draw_values([Draw(b"", 1e5, 2e6, 0, 9, 0.0)]))
        used = {command for name in SCRIPTS for command in re.findall(r"redis\.call\('(\w+)'", Script.named(name).text)}
        granted_ones = {word[1:] for word in words if word.startswith("+")}
        assert granted_ones == {command.lower() for command in used} | {"eval", "evalsha", "select"}


# Bad answers


@contextmanager
def answering(answer: bytes) -> Iterator[str]:
    """A server that gives each command of its one client this answer."""

    def serve() -> None:
        client, _ = listener.accept()
        with client, suppress(OSError):
            while client.recv(65536):
                client.sendall(answer)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        serving = threading.Thread(target=serve)
        serving.start()
        yield f"redis://127.0.0.1:{listener.getsockname()[1]}"
        serving.join()


def failure(made: Callable[[], Coroutine[Any, Any, None]]) -> StoreError:
    with pytest.raises(StoreError) as caught:
        run(made())
    return caught.value


SEVEN = Script("return 7", "0" * 40)


def store_at(url: str, access: StoreAccess = StoreAccess(), timeout: float = 5.0) -> Store:  # noqa: B008 - frozen
    return Store(store_address(url), timeout, access)


async def asked(url: str, access: StoreAccess = StoreAccess(), timeout: float = 5.0) -> Any:  # noqa: ASYNC109, B008
    store = store_at(url, access, timeout)
    try:
        return await store.run(SEVEN, [], [])
    finally:
        await store.close()


@pytest.mark.parametrize(("answer", "outcome", "text"), [
    (b"-LOADING Redis is loading the dataset in memory\r\n", "loading", "loading the dataset"),
    (b"-MOVED 3999 127.0.0.1:6381\r\n", "cluster", "name a server of its own"),
    (b"-CLUSTERDOWN Hash slot not served\r\n", "cluster", "name a server of its own"),
    (b"-READONLY You can't write against a read only replica.\r\n", "read_only", "name the primary"),
    (b"-OOM command not allowed when used memory > 'maxmemory'.\r\n", "full", "maxmemory"),
    (b"-NOAUTH Authentication required.\r\n", "credentials", "shared.password_file"),
    (b"-ERR Protocol error: unauthenticated multibulk length\r\n", "credentials", "shared.password_file"),
    (b"-NOPERM this user has no permissions\r\n", "credentials", "shared.user"),
    (b"-MASTERDOWN Link with MASTER is down\r\n", "read_only", "MASTER is down"),
    (b"-ERR \x1b[31munknown command\r\n", "error", "unknown command"),
    (b"HTTP/1.1 400 Bad Request\r\n\r\n", "error", ""),
    (b"$2000000\r\nno more\r\n", "timeout", "no answer within 0.2 s"),
])  # fmt: skip
def test_a_bad_answer_has_its_word(answer: bytes, outcome: str, text: str) -> None:
    with answering(answer) as url:
        error = failure(lambda: asked(url, timeout=0.2))
    assert error.outcome == outcome, str(error)
    assert text in str(error)
    assert "\x1b" not in str(error)


def test_nobody_listens() -> None:
    assert failure(lambda: asked("redis://127.0.0.1:1")).outcome == "unreachable"


@pytest.fixture
def store(tmp_path: Path) -> Iterator[CertifiedStore]:
    with certified_store(tmp_path) as running:
        yield running


@needs_store
def test_passwords_and_certificates(store: CertifiedStore, monkeypatch: pytest.MonkeyPatch) -> None:
    url, good = store.server.url, store.access
    assert run(asked(url, good)) == 7
    assert failure(lambda: asked(url, replace(good, password="S3CRET"))).outcome == "credentials"
    assert failure(lambda: asked(url, replace(good, password=None))).outcome == "credentials"
    assert failure(lambda: asked(url, replace(good, certificate=None))).outcome in {"tls", "unreachable"}
    elsewhere = failure(lambda: asked(f"rediss://localhost:{store.server.port}", good))
    assert elsewhere.outcome == "tls"
    assert "not for the name" in str(elsewhere)
    monkeypatch.setenv("SSL_CERT_FILE", str(store.site.directory / "store-ca.pem"))
    store.site.write("store-ca.pem", OTHER.certificate_pem)
    stranger = failure(lambda: asked(url, store.access))
    assert stranger.outcome == "tls", "the system's roots are not trusted"
    assert failure(lambda: asked(f"redis://127.0.0.1:{store.server.port}")).outcome == "unreachable", "without TLS"


@needs_store
def test_renewed_proofs_are_connected_with_and_the_old_ones_serve_until_then(store: CertifiedStore) -> None:
    former = store.access

    async def renewals() -> None:
        one = store_at(store.server.url, former)
        assert await one.run(SEVEN, [], []) == 7
        store.renew(OTHER, "new")
        with pytest.raises(StoreError) as early:
            await one.renew(store.access)
        assert early.value.outcome in {"tls", "unreachable"}
        assert one.connected
        assert await one.run(SEVEN, [], []) == 7
        store.admit(OTHER, "new")
        await one.renew(store.access)
        assert await one.run(SEVEN, [], []) == 7
        store.site.write("store-ca.pem", OTHER.certificate_pem)
        with pytest.raises(StoreError) as distrusted:
            await one.renew(store.access)
        assert distrusted.value.outcome == "tls"
        assert not one.connected, "let in by a CA that is none any more"

    run(renewals())
    assert failure(lambda: asked(store.server.url, former)).outcome in {"tls", "unreachable"}, "revoked"


@needs_store
def test_an_end_is_orderly_in_any_state_of_the_store(store: CertifiedStore, caplog: pytest.LogCaptureFixture) -> None:
    """Every connection is closed before the loop is, or pytest and the loop's handler tell."""

    async def ends(state: str, turns: int) -> None:
        one = store_at(store.server.url, store.access, 0.05)
        if state != "connecting":
            await one.run(SEVEN, [], [])
        if state in {"asking", "timeout"}:
            store.server.pause()
        asking = asyncio.create_task(one.run(SEVEN, [], []))
        for _ in range(turns):
            await asyncio.sleep(0.0005)
        if state in {"asking", "connecting"}:
            asking.cancel()
        await asyncio.wait([asking])
        assert asking.cancelled() or (state == "timeout") is (asking.exception() is not None)
        await one.close()

    for state, turns in (("idle", 0), ("asking", 1), ("timeout", 0), *(("connecting", number) for number in range(12))):
        run(ends(state, turns))
        store.server.resume()
    assert not caplog.records


@needs_store
def test_a_unix_socket_and_a_server_that_has_no_scripts_any_more(server: RedisServer) -> None:
    async def twice() -> list[Any]:
        store = store_at(f"unix:{server.socket}")
        script = Script.named("lock")
        answers = [await store.run(script, ["locks", "locked", "ends"], [10])]
        with server.client() as client:
            client.script_flush()
        answers.append(await store.run(script, ["locks", "locked", "ends"], [10]))
        await store.close()
        return answers

    assert run(twice()) == [0, 0]
