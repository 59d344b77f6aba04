"""Gateways and their store: what each fault of it, or of the way to it, changes in limits."""

from __future__ import annotations

from pathlib import Path

from shared_gateways import certified_store, gateways, run, until
from snapshot_site import OTHER
from support.redis_server import needs_store

from tlsproxy.snapshot.lifetimes import lifetimes_of

pytestmark = needs_store


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
