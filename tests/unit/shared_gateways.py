"""Gateways that share limits, without their processes: coordinators and tables on one event loop, over a real store."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from snapshot_site import ROOT, SnapshotSite, site
from support.gateway import DEADLINE
from support.redis_server import RedisServer

from tlsproxy.proxy.limits.gcra import Charge, Rate
from tlsproxy.proxy.limits.table import LimitTable
from tlsproxy.service.runtime import loop_factory
from tlsproxy.service.shared.coordinator import Coordinator
from tlsproxy.service.shared.store import StoreAccess
from tlsproxy.snapshot.generation import Generation
from tlsproxy.tls.pki import Authority

TWENTY = Rate.of(0.01, 20)
"""A burst, and nothing more for a test's time."""


def run(one: Coroutine[Any, Any, Any]) -> Any:
    """On the loop that gateways have."""
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        return runner.run(one)


class Metrics:
    def __init__(self) -> None:
        self.outcomes: list[str] = []
        self.up: bool | None = None
        self.gateways = 0

    def shared(self, outcome: str) -> None:
        self.outcomes.append(outcome)

    def sharing(self, *, up: bool, gateways: int) -> None:
        self.up, self.gateways = up, gateways


class Member:
    """One gateway. ``changes`` counts calls of ``changed``."""

    def __init__(self, generation: Generation) -> None:
        self.generation = generation
        self.table = LimitTable.private(leased=True)
        self.metrics = Metrics()
        self.changes = 0
        self.coordinator = Coordinator(self.table, self.metrics, lambda: self.generation, self._changed)
        self.task: asyncio.Task[None] | None = None

    def _changed(self) -> None:
        self.changes += 1

    @property
    def status(self) -> Any:
        return self.coordinator.status()

    def charge(self, name: str, rate: Rate | None = TWENTY, concurrent: int = 0) -> Charge:
        key, account = self.table.account("identity", name)
        return Charge(key, name, rate, concurrent, account)

    def takes(self, *charges: Charge) -> bool:
        return isinstance(self.table.take(charges), tuple)

    def start(self) -> None:
        self.task = asyncio.create_task(self.coordinator.run())

    async def kill(self) -> None:
        """End it as a process that is killed ends: without a word to the store."""
        if self.task is not None:
            self.task.cancel()
            await asyncio.wait([self.task])
            self.task = None
        await self.coordinator._store.close()

    async def stop(self) -> None:
        await self.kill()
        await self.coordinator.leave()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(DEADLINE):
        while not condition():  # noqa: ASYNC110 - a state of coordinators, which tell nobody
            await asyncio.sleep(0.005)


async def admitted(name: str, *members: Member, rate: Rate = TWENTY, calm: float = 0.3) -> list[int]:
    """Requests that each admits, asked in turn until nothing more comes for a while."""
    charges = [one.charge(name, rate) for one in members]
    counts, loop = [0] * len(members), asyncio.get_running_loop()
    last, refused = loop.time(), 0
    while refused < 3 or loop.time() - last < calm:
        refused += 1
        for number, (one, charge) in enumerate(zip(members, charges, strict=True)):
            if one.takes(charge):
                counts[number] += 1
                last, refused = loop.time(), 0
        await asyncio.sleep(0.005)
    return counts


def configured(directory: Path, url: str, **shared: Any) -> SnapshotSite:
    directory.mkdir(exist_ok=True)
    limits = {"per_address": {"failed_authentications": 6}}
    return site(directory, shared={"url": url, **shared}, limits=limits)


@dataclass
class CertifiedStore:
    """A store that wants a client certificate and a password, and the files that a gateway is let in by."""

    server: RedisServer
    site: SnapshotSite
    password: str = "correct-horse-battery-staple"
    generation: Generation | None = None

    @property
    def access(self) -> StoreAccess:
        return StoreAccess.of(self.reload())

    def reload(self) -> Generation:
        self.generation = self.site.build(self.generation)
        return self.generation

    def renew(self, authority: Authority, password: str) -> None:
        """Give the gateway other files."""
        issued = authority.issue(common_name="gateway", client=True)
        for name, data in (("gateway.pem", issued.chain_pem), ("gateway.key", issued.key_pem)):
            self.site.write(name, data)
        self.site.write("store-password", password.encode())

    def admit(self, authority: Authority, password: str) -> None:
        """Have the store take other clients alone."""
        file = self.site.write("clients.pem", authority.certificate_pem)
        with self.server.client(password=self.password) as client:
            client.config_set("tls-ca-cert-file", str(file))
            client.config_set("requirepass", password)
        self.password = password


@contextmanager
def certified_store(directory: Path) -> Iterator[CertifiedStore]:
    issued = ROOT.issue(common_name="store", ips=["127.0.0.1"], server=True)
    for name, data in (("ca", ROOT.certificate_pem), ("cert", issued.chain_pem), ("key", issued.key_pem)):
        (directory / name).write_bytes(data)
    password = CertifiedStore.password
    options = "--tls-ca-cert-file", "ca", "--tls-cert-file", "cert", "--tls-key-file", "key", "--requirepass", password
    with RedisServer(directory, *options, tls=True) as server:
        files = {"ca_cert": "store-ca.pem", "cert": "gateway.pem", "key": "gateway.key"}
        made = configured(directory / "site", server.url, password_file="store-password", **files)
        store = CertifiedStore(server, made)
        made.write("store-ca.pem", ROOT.certificate_pem)
        store.renew(ROOT, password)
        yield store


@asynccontextmanager
async def gateways(generation: Generation, number: int, *, sees: int | None = None) -> AsyncIterator[list[Member]]:
    """Gateways that have met. ``sees`` is the number of all, if there are more."""
    every = number if sees is None else sees
    async with AsyncExitStack() as stack:
        members = [Member(generation) for _ in range(number)]
        for one in members:
            one.start()
            stack.push_async_callback(one.stop)
        await until(lambda: all(one.status["reached"] and one.status["gateways"] == every for one in members))
        yield members
