"""Consequences of a publication: who is told of, what several workers say together, and what is too much."""

from __future__ import annotations

import asyncio
import itertools
import time
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import orjson
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from snapshot_site import CLIENT, OTHER, ROOT, SnapshotSite, client_context, config_text, handshake, site

from tlsproxy import slices
from tlsproxy.config.limits import MassCut
from tlsproxy.proxy.core import connection_manager, impact_analysis
from tlsproxy.proxy.core.authorization import Standing
from tlsproxy.proxy.core.connection_manager import ConnectionManager
from tlsproxy.proxy.core.impact import NAMED, Affected, Consequences, Group
from tlsproxy.proxy.core.wall_clock import Clock
from tlsproxy.service import impact_report
from tlsproxy.snapshot.generation import Generation
from tlsproxy.tls.peer import Peer, peer_of

STRANGER = ROOT.issue(common_name="nobody", client=True)

# Several processes

AFFECTED = st.builds(
    Affected,
    number=st.integers(1, 1000),
    protocol=st.sampled_from(["rest", "grpc", "tcp"]),
    address=st.just("10.0.0.1"),
    client=st.sampled_from("abcd"),
    identity=st.sampled_from(["", "CN=a"]),
    role=st.sampled_from(["admin", "search"]),
    becomes=st.just(""),
    reason=st.sampled_from(["", "no_role", "certificate_revoked"]),
)
LISTS = st.lists(AFFECTED, max_size=10)


def made(cut: list[Affected], barred: list[Affected], connections: int = 10) -> Consequences:
    barred = list({one.client: one for one in barred}.values())
    affected = {"admin": 1, "key a": 1}
    return Consequences(
        connections, Group.of(cut), Group.of(cut[2:]), tuple(barred), Group.of(cut[:2]), affected=affected
    )


@given(LISTS, LISTS, LISTS, LISTS)
def test_workers_say_together_what_one_would(
    cut: list[Affected], more: list[Affected], barred: list[Affected], others: list[Affected]
) -> None:
    one, two = made(cut, barred), made(more, others)
    merged = Consequences.merged([one, Consequences.decoded(orjson.loads(orjson.dumps(asdict(two))))], 1)
    assert merged.connections == 20
    assert merged.affected == {"admin": 2, "key a": 2}
    assert merged.unheard == 1
    assert merged.cut.reasons == Group.of(cut + more).reasons
    assert merged.cut.count == len(cut) + len(more)
    assert merged.ended.reasons == Group.of(cut[2:] + more[2:]).reasons
    assert sorted(map(str, merged.cut.named)) == sorted(map(str, cut + more))
    assert {one.client for one in merged.barred} == {one.client for one in barred + others} - {
        one.client for one in cut + more
    }
    assert len(merged.barred) == len({each.client for each in merged.barred})


def affected(number: int, reason: str = "no_role", **more: str) -> Affected:
    return Affected(number, "rest", "10.0.0.1", str(number), more.get("identity", "CN=a"), "admin", "", reason)


def test_a_few_are_named_and_all_are_counted() -> None:
    told = made([affected(number) for number in range(3 * NAMED)], []).as_json()
    assert (told["cut"]["count"], len(told["cut"]["named"])) == (3 * NAMED, NAMED)
    assert next(impact_report.sentences(told)) == "300 of 10 live connections cut (no_role 300): CN=a and others"
    first, *rows = impact_report.rows(told)
    assert first == "2 of 10 live connections affected (admin 1, key a 1)"
    assert rows[1] == "  0 rest 10.0.0.1 CN=a, role admin: no_role"
    assert rows[NAMED + 1] == "  and 200 more connections"


def test_names_that_strangers_chose_are_spelled_out() -> None:
    told = made([affected(1, identity="CN=\x1b[2J\u202e")], [affected(2, identity="CN=\x1b[2J")]).as_json()
    assert all(text.isprintable() for text in (*impact_report.sentences(told), *impact_report.rows(told)))


# Too much


@given(st.integers(0, 50), st.integers(0, 50), st.none() | st.integers(0, 50), st.none() | st.floats(0, 1))
def test_a_guard_holds_what_is_more_than_all_its_bounds(
    cut: int, others: int, number: int | None, share: float | None
) -> None:
    told = made([affected(each) for each in range(cut)], [], cut + others).as_json()
    bounds = [bound for bound in (number, share and share * (cut + others)) if bound is not None]
    assert impact_report.exceeds(told, MassCut(share=share, number=number)) == (bounds != [] and cut > max(bounds))


# The walk over the connections


def peer(generation: Generation, directory: Path, issued: Any = CLIENT) -> Peer:
    answerer, _ = handshake(next(iter(generation.contexts.values())), client_context(issued, directory))
    found = peer_of(answerer)
    assert found is not None
    return found


class Bench:
    def __init__(self, made: SnapshotSite) -> None:
        self.made = made
        self.generation = made.build()
        self.manager = ConnectionManager(
            SimpleNamespace(  # type: ignore[arg-type]
                loop=asyncio.get_running_loop(),
                generation=self.generation,
                clock=Clock(),
                outlook=lambda candidate: SimpleNamespace(generation=candidate),
            ),
            itertools.count(1),
        )

    def connect(
        self, who: Peer | None = None, protocol: str = "rest", route: str = "", losses: tuple[str, ...] = ()
    ) -> connection_manager.Entry:
        """``losses``: why each request under way there would end under whatever else is published."""
        entry = self.manager.enter(protocol, "10.0.0.1", Standing(self.generation, who, time.time()), route)
        entry.session = SimpleNamespace(losses=lambda *_: losses)  # type: ignore[assignment]
        return entry

    async def consider(self) -> Consequences:
        try:
            return await self.manager.consider(self.made.build(self.generation))
        finally:
            assert all(entry.standing.generation is self.generation for entry in self.manager)


OPTIONAL = {"verify_https_client_certificate": False, "unmapped_certificate": "deny"}


@pytest.mark.plain  # stand-ins for compiled classes
def test_each_is_asked_what_decides_after_the_publication(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slices, "SLICE", 0.0)
    made = site(tmp_path)
    made.configure(service=OPTIONAL)

    async def run() -> None:
        bench = Bench(made)
        alice, stranger = peer(bench.generation, tmp_path), peer(bench.generation, tmp_path, STRANGER)
        for who in (alice, alice, stranger, None):
            bench.connect(who, losses=("invalid_key", "forbidden"))
        ending = bench.connect(alice, losses=("invalid_key",))
        ending.end_reason = "max_connection_age"
        nothing = await bench.consider()
        assert (nothing.connections, nothing.cut.count, nothing.barred, nothing.moved.count) == (5, 0, (), 0)
        assert nothing.ended.count == 0

        made.configure(service=OPTIONAL, limits={"idle_timeout": 9})
        assert (await bench.consider()).ended.reasons == {"invalid_key": 4, "forbidden": 4}
        made.configure(service=OPTIONAL)

        made.serve(ROOT.issue(dns=["localhost"], server=True))
        monkeypatch.setattr(connection_manager, "affected", None)  # nobody has to be asked
        assert (await bench.consider()).connections == 5
        monkeypatch.undo()

        made.write("ca.pem", OTHER.certificate_pem)
        found = await bench.consider()
        assert found.cut.reasons == {"issuer_not_trusted": 3}
        assert {one.number for one in found.ended.named} == {4}  # those of who is cut end with their connections
        assert {(one.number, one.identity) for one in found.cut.named} == {
            (1, "CN=alice,OU=platform"), (2, "CN=alice,OU=platform"), (3, "CN=nobody"),
        }  # fmt: skip

        made.write("ca.pem", ROOT.certificate_pem)
        made.write("crl.pem", ROOT.crl_pem([CLIENT.serial]))
        made.configure(tls={"crl": ["crl.pem"]})
        assert (await bench.consider()).cut.reasons == {"certificate_revoked": 2, "certificate_required": 1}
        bench.manager.close()

    asyncio.run(run())


@pytest.mark.plain  # stand-ins for compiled classes
def test_whom_a_publication_concerns_is_counted_by_role(tmp_path: Path) -> None:
    made = site(tmp_path)
    service = {**OPTIONAL, "api_key": "a-key"}
    made.configure(service=service)

    async def run() -> None:
        bench = Bench(made)
        alice = peer(bench.generation, tmp_path)
        for who in (alice, alice, None, None):
            bench.connect(who)
        bench.connect(None).count(0, 0, "api_key")

        async def affected(**sections: Any) -> Any:
            made.configure(**{"service": service} | sections)
            return dict((await bench.consider()).affected)

        assert await affected(limits={"idle_timeout": 9}) == {}
        assert await affected(roles={"other": {"access": "r"}}) == {}
        assert await affected(roles={"admin": {"access": "r"}}) == {"admin": 2}
        assert await affected(service=service | {"api_key": "another"}) == {"key api_key": 1}
        config = yaml.safe_load(config_text(service=service))
        made.config.write_text(yaml.safe_dump(config | {"identities": []}))
        assert (await bench.consider()).affected == {"admin": 2}, "cut"
        assert await affected(service=service | {"verify_https_client_certificate": True}) == {"": 2, "key api_key": 1}
        bench.manager.close()

    asyncio.run(run())


@pytest.mark.plain  # stand-ins for compiled classes
def test_those_who_come_and_go_could_not_come_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = site(tmp_path)
    made.configure(service={"unmapped_certificate": "deny"})
    monkeypatch.setattr(impact_analysis, "REMEMBERED", 2)

    async def run() -> None:
        bench = Bench(made)
        alice, stranger = peer(bench.generation, tmp_path), peer(bench.generation, tmp_path, STRANGER)
        for who in (alice, alice, stranger):
            bench.manager.leave(bench.connect(who))
        made.write("ca.pem", OTHER.certificate_pem)
        (barred,) = (await bench.consider()).barred  # once, and none that was never admitted
        assert (barred.number, barred.identity, barred.reason) == (2, "CN=alice,OU=platform", "issuer_not_trusted")
        bench.connect(alice)
        found = await bench.consider()
        assert (found.cut.count, found.barred) == (1, ())  # she is among those who are cut

        for port in range(5):
            bench.manager.leave(bench.connect(alice, "tcp", f"::1:{port}"))
        assert len(bench.manager._visitors._visits) == 2
        later = time.monotonic() + impact_analysis.RECENT + 1
        monkeypatch.setattr(time, "monotonic", lambda: later)
        assert bench.manager._visitors.absent([]) == []
        bench.manager.close()

    asyncio.run(run())


@pytest.mark.plain  # stand-ins for compiled classes
def test_relayed_connections_follow_allow_and_upstream(tmp_path: Path) -> None:
    made = site(tmp_path)

    def relay(upstream: str, allow: str, on_change: str = "drain") -> None:
        sections = yaml.safe_load(config_text(roles={"other": {"access": "r"}}, upstream={"on_change": on_change}))
        sections["listeners"] = [{"port": 4711, "mode": "tcp", "upstream": upstream, "allow": [allow]}]
        made.config.write_text(yaml.safe_dump(sections))

    relay("127.0.0.1:9", "admin")

    async def run() -> None:
        bench = Bench(made)
        (route,) = bench.generation.tunnels
        alice, stranger = peer(bench.generation, tmp_path), peer(bench.generation, tmp_path, STRANGER)
        bench.connect(alice, "tcp", route)
        bench.connect(stranger, "tcp", route)  # refused, and about to end
        bench.manager.leave(bench.connect(alice, "tcp", route))
        relay("127.0.0.1:10", "admin")
        found = await bench.consider()
        assert (found.cut.reasons, found.barred) == ({"upstream_changed": 1}, ())
        relay("127.0.0.1:10", "admin", "keep")
        assert (await bench.consider()).cut.count == 0
        relay("127.0.0.1:9", "other")
        found = await bench.consider()
        assert (found.cut.reasons, found.cut.named[0].protocol) == ({"role_not_allowed": 1}, "tcp")
        tunnel = bench.generation.tunnels[route]
        lost = {route: replace(tunnel, upstream=replace(tunnel.upstream, addresses=()))}  # its name is not resolved
        unresolved = replace(bench.generation, tunnels=lost)
        assert (await bench.manager.consider(unresolved)).cut.reasons == {"upstream_changed": 1}
        bench.manager._gateway.generation = unresolved
        assert (await bench.manager.consider(bench.generation)).cut.count == 0
        bench.manager.close()

    asyncio.run(run())
