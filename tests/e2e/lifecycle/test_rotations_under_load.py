"""Every input is replaced in every way, a third of the times by something bad, and no innocent client notices.

Two gateways read the same files, one of one worker and one of two. Each has steady load: REST, gRPC calls and streams,
TCP, on kept connections and on new ones of TLS 1.2 and 1.3, by clients of the root and of an intermediate. Now and then
a client loses its right, and is off.
"""

from __future__ import annotations

import itertools
import json
import os
import queue
import random
import ssl
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import grpc
import pytest
from support.background_load import BackgroundLoad
from support.gateway import Gateway
from support.grpc_upstream import GrpcUpstream, echoing
from support.kept_connection import Caller
from support.load_program import LIST
from support.raw_request import Client
from support.rotations import ISSUER, Authorities, Configuration, Input, KeySet, RevocationList, Secret, ServerPair
from support.site import CLIENTS, Site
from support.upstream import ScriptedUpstream

from tlsproxy.tls.pki import Authority

LONG = bool(os.environ.get("TLSPROXY_SOAK"))
ROTATIONS = 10_000 if LONG else 120
MIX = 10_000 if LONG else 1819
"""Seed of the rows. That of the short form has 64 of the 73 ways in few rotations."""
AT_ONCE = (1, 2, 3, 4) if LONG else (4, 5, 6)
IN_A_ROW = (1, 1, 2) if LONG else (1, 2, 3)
TURNS = 120 if LONG else 3
"""After each of them somebody loses their right."""
BAD = 1 / 4
"""Share of the rows that end bad, and of what is bad in between: a third of all."""
KEPT, NEW = 2, 2
PACE = 0.5 if LONG else 1.0
OFF = 2.0
"""Seconds within which somebody who has lost the right is off."""
GROWTH = 24 << 10
"""KiB that a process may grow by after it has seen everything once."""


class Watched:
    """A gateway as :class:`support.rotations.Seen`, with the clients that load it."""

    def __init__(self, site: Site, gateway: Gateway, audit: Path, stack: ExitStack) -> None:
        self.gateway = gateway
        self.requests = 0
        self._audit = audit
        self.status: dict[str, Any] = {}
        self.differing: list[str] = []
        self._context = site.client("probe")
        self._probe = stack.enter_context(Client(gateway, self._context))
        self.load = BackgroundLoad(
            site,
            gateway,
            KEPT,
            NEW,
            clients=("admin", "below"),
            pace=PACE,
            grpc_port=gateway.grpc_port,
            tcp_port=gateway.ports["TCP"][0],
        )
        stack.callback(self.load.kill)

    def role(self) -> str:
        return str(self._probe.ask("GET", "/_tlsproxy/whoami").json["role"])

    def accepts(self, credential: str) -> bool:
        return self._probe.ask("GET", "/collections", [("api-key", credential)]).status == 200

    def shows(self, changed: Iterable[Input]) -> bool:
        told = self.gateway.ask_admin("/status")[1]
        self.status = json.loads(told)
        self.differing = [
            each.path
            for each in changed
            if (each.told and not any(f"/{name}:" in told for name in each.files)) or not each.agrees(self)
        ]
        return not self.differing

    def shown(self) -> set[int]:
        """The server certificates of all ports."""
        found = set()
        for port in (port for ports in self.gateway.ports.values() for port in ports):
            with Caller(self.gateway, self._context, port) as caller:
                found.add(caller.server_serial)
        return found

    def audited(self) -> int:
        """The lines of REST requests that were answered to those who load it."""
        (log,) = self._audit.iterdir()
        with log.open("rb") as lines:
            return sum(
                b'"CN=alice,' in line and b'"status":200' in line and b'"grpc_status"' not in line for line in lines
            )

    def processes(self) -> list[int]:
        pid = self.gateway.process.pid
        return [pid, *map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())]

    def resident(self) -> list[int]:
        """KiB of each process."""
        status = [Path(f"/proc/{pid}/status").read_text() for pid in self.processes()]
        return [int(each.partition("VmRSS:")[2].split()[0]) for each in status]

    def descriptors(self) -> list[int]:
        return [len(list(Path(f"/proc/{pid}/fd").iterdir())) for pid in self.processes()]


class Guilty:
    """Clients of one certificate, at each gateway by REST, TCP and gRPC, that are to be off."""

    def __init__(self, site: Site, every: list[Watched], stack: ExitStack, name: str) -> None:
        # Not of the CA file, which may be anything by now.
        trusted = site.authority.certificate_pem
        context = ssl.create_default_context(cadata=trusted.decode())
        context.load_cert_chain(site.directory / f"{name}.pem", site.directory / f"{name}.key")
        key, certificate = ((site.directory / f"{name}.{kind}").read_bytes() for kind in ("key", "pem"))
        credentials = grpc.ssl_channel_credentials(trusted, key, certificate)
        done = threading.Event()
        stack.callback(done.set)
        self._callers: list[Caller] = []
        self._calls: list[Any] = []

        def messages() -> Iterator[bytes]:
            yield b"echo"
            done.wait()

        for watched in every:
            gateway = watched.gateway
            for port in (gateway.port, gateway.ports["TCP"][0]):
                caller = stack.enter_context(Caller(gateway, context, port))
                assert caller.ask().status == 200
                self._callers.append(caller)
            opened = grpc.secure_channel(f"localhost:{gateway.grpc_port}", credentials)
            call = stack.enter_context(opened).stream_stream(LIST)(messages())
            assert next(call) == b"echo"
            self._calls.append(call)

    def are_off(self) -> None:
        """Within two seconds from now."""
        end = time.monotonic() + OFF
        for caller in self._callers:
            caller.sock.settimeout(max(0.01, end - time.monotonic()))
            assert caller.sock.recv(1) == b""
        for call in self._calls:
            assert call.exception(timeout=max(0.01, end - time.monotonic())) is not None


def ask_operator(gateway: Gateway) -> None:
    gateway.ask_admin("/reload", "POST")


class Driver:
    """Each step changes several inputs at once, each several times in a row, a third of the times to something bad."""

    def __init__(self, site: Site, below: Authority, config: Path) -> None:
        self.site = site
        self.watched: list[Watched] = []
        self.rotations: Counter[str] = Counter()
        self.expelled = 0
        self.trail: list[str] = []
        self.server = ServerPair(site)
        self.authorities, self.crl = Authorities(site, below), RevocationList(site)
        self.configuration = Configuration(site, config)
        self.inputs = (
            self.server, self.authorities, self.crl, self.configuration, Secret(site), KeySet(site)
        )  # fmt: skip
        self._pool = ThreadPoolExecutor(2)
        self._choose = random.Random(MIX)  # noqa: S311 - a fixed mix

    def rotate(self, rotations: int) -> None:
        choose, end = self._choose, self.rotations.total() + rotations
        while self.rotations.total() < end:
            rows = {each: self._row(each) for each in choose.sample(self.inputs, choose.choice(AT_ONCE))}
            for ways in itertools.zip_longest(*rows.values()):
                for each, way in zip(rows, ways, strict=True):
                    if way is not None:
                        self._change(each, way)
            self.settled(rows, choose.choice(("admin", "sighup", "watch")))

    def _row(self, changed: Input) -> list[Callable[..., str | None]]:
        """Nobody waits between two of them, so only the last good one may be of consequence: none is before a bad end.

        It may have been seen, or not.
        """
        choose = self._choose
        ends_bad = choose.random() < BAD
        former = [ends_bad or choose.random() < BAD for _ in range(choose.choice(IN_A_ROW) - 1)]
        return [choose.choice(changed.bad if bad else changed.good) for bad in (*former, ends_bad)]

    def _change(self, changed: Input, way: Callable[..., str | None]) -> None:
        changed.change(way)
        self.trail.append(f"{changed.path} {way.__name__}")
        self.rotations["bad" if changed.told else "good"] += 1

    def settled(self, changed: Iterable[Input], trigger: str) -> None:
        """Until all gateways are as they should be."""
        asked: Callable[[Gateway], object] = {"admin": ask_operator, "sighup": Gateway.hang_up, "watch": id}[trigger]
        list(self._pool.map(asked, [watched.gateway for watched in self.watched]))
        try:
            for watched in self.watched:
                while not watched.shows(changed):
                    watched.gateway.log.wait(lambda line: " reload (" in line)
        except (queue.Empty, EOFError, OSError) as error:
            told = f"{watched.differing} differ after {self.trail[-8:]} by {trigger}"
            error.add_note("\n".join([told, *watched.gateway.log.seen[-20:]]))
            raise

    def expel(self) -> None:
        """By turns: its certificate is revoked, its rule is removed, its CA is removed."""
        configuration, authorities, crl = self.configuration, self.authorities, self.crl
        name, way = f"guest-{self.expelled}", self.expelled % 3
        issuer = None
        if way == 2:
            self._now(authorities, Authorities.bystander_added)
            issuer = authorities.bystanders[-1]
            crl.others = issuer.crl_pem()  # stays when its CA has gone
            self._now(crl, RevocationList.renumbered)
        serial = self.site.issue(name, authority=issuer, client=True, common_name=name)
        configuration.mapped = name
        self._now(configuration, Configuration.renamed)
        with ExitStack() as stack:
            guilty = Guilty(self.site, self.watched, stack, name)
            if way == 0:
                crl.revoked.append(serial)
                self._now(crl, RevocationList.renumbered)
            elif way == 1:
                configuration.mapped = ""
                self._now(configuration, Configuration.renamed)
            else:
                authorities.bystanders.pop()
                self._now(authorities, Authorities.annotated)
            guilty.are_off()
        self.expelled += 1

    def _now(self, changed: Input, way: Callable[..., None]) -> None:
        self._change(changed, way)
        self.settled([changed], "admin")


@pytest.fixture
def driver(own_site: Site, upstream: ScriptedUpstream, grpc_upstream: GrpcUpstream) -> Driver:
    grpc_upstream.answer = echoing
    below = own_site.authority.intermediate("below")
    own_site.issue("below", authority=below, client=True, **CLIENTS["admin"])
    own_site.issue("probe", client=True, common_name="probe")
    own_site.write("below.crl", below.crl_pem())
    config = own_site.write_config(
        upstream.url,
        grpc=grpc_upstream.url,
        tls={"crl": ["ca.crl", "below.crl"], "poll_interval": 1},
        listeners=[{"port": 0, "mode": "tcp", "upstream": upstream.url[7:], "allow": ["admin", "guest"]}],
        roles={"guest": {"access": "r"}},
        keys=[{"name": "spare", "file": "spare.key", "role": "admin"}],
        jwt_issuers=[{**ISSUER, "jwks": "keys.json"}],
    )
    return Driver(own_site, below, config)


@pytest.fixture
def report(capsys: pytest.CaptureFixture[str]) -> Callable[[str], None]:
    """The figures of a long run are worth reading."""

    def tell(line: str) -> None:
        if LONG:
            with capsys.disabled():
                sys.stdout.write(f"\n{line}\n")

    return tell


@pytest.mark.soak
@pytest.mark.timeout(7200 if LONG else 120)
def test_no_innocent_client_notices(own_site: Site, driver: Driver, report: Callable[[str], None]) -> None:
    config = own_site.directory / driver.configuration.path
    serials = {own_site.serial("server")}
    with ExitStack() as stack:
        for workers in (1, 2):
            audit = own_site.directory / f"audit-{workers}"
            environ = {"QDRANT__WORKERS": str(workers), "QDRANT__AUDIT__DIR": str(audit)}
            gateway = stack.enter_context(Gateway(config, **environ))
            driver.watched.append(Watched(own_site, gateway, audit, stack))
        for watched in driver.watched:
            watched.load.saw(*serials)
        for turn in range(TURNS):
            driver.rotate(ROTATIONS // TURNS)
            driver.expel()
            if turn == TURNS // 3 - 1:
                before = [(watched.resident(), watched.descriptors()) for watched in driver.watched]
        for watched in driver.watched:
            assert watched.shown() == {driver.server.serial}
        for watched, (memory, descriptors) in zip(driver.watched, before, strict=True):
            done = watched.load.end()
            assert done["failures"] == []
            report(
                f"{driver.rotations['good']} good, {driver.rotations['bad']} bad, {driver.expelled} expelled, "
                f"{ {**done, 'serials': len(done['serials'])} }, KiB {memory} and then {watched.resident()}, "
                f"descriptors {descriptors} and then {watched.descriptors()}"
            )
            for then, now in zip(memory, watched.resident(), strict=True):
                assert now < then + GROWTH
            for then, now in zip(descriptors, watched.descriptors(), strict=True):
                assert now < then + 40
            assert {kind for kind, count in done.items() if count} >= {"requests", "tunnelled", "calls", "messages"}
            watched.requests = done["requests"]
    for watched in driver.watched:
        assert watched.audited() == watched.requests
