"""The data path of client mode: accepts clients of this machine, and connects each with a target of its listener."""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections.abc import Collection, Iterator, Sequence
from functools import partial
from typing import Final, Literal

from tlsproxy.admin import readiness
from tlsproxy.admin.readiness import OK, Part, Readiness, degraded, not_ready
from tlsproxy.connector.check import Check
from tlsproxy.connector.connection import Connection
from tlsproxy.connector.counted import Counted
from tlsproxy.connector.dialling import NO_DESCRIPTORS, Candidate, failure_reason, failure_text
from tlsproxy.connector.material import Material
from tlsproxy.connector.model import ConnectLimits
from tlsproxy.connector.names import TargetNames
from tlsproxy.connector.targets import Targets
from tlsproxy.metrics.prometheus import exposed
from tlsproxy.proxy.frontend.listener import BATCH, Acceptor, Address, Bound
from tlsproxy.proxy.transport.deadlines import Deadlines
from tlsproxy.proxy.transport.dial import DialHandler, DialledStream, dial, is_trusted
from tlsproxy.proxy.transport.stream import Stream, StreamHandler
from tlsproxy.snapshot.lifetimes import Lifetime, tls_lifetimes
from tlsproxy.tls.negotiated import Negotiated

TARGETS: Final = "targets"
CERTIFICATE: Final = "client_certificate"
STARVED: Final = 5.0
"""Seconds without readiness after a want of descriptors."""

_log = logging.getLogger(__name__)


class Serving:
    """Accepts from :meth:`start` until :meth:`drain` or :meth:`close`."""

    def __init__(self, material: Material, impaired: asyncio.Event) -> None:
        """``impaired`` is set where readiness may have changed."""
        self.material = material
        self._impaired = impaired
        self._loop = asyncio.get_running_loop()
        self.deadlines = Deadlines(self._loop)
        self.deadlines.each.append(self._sweep)
        self.targets = {listen: Targets(each.targets) for listen, each in material.listeners.items()}
        self.names = TargetNames(self._all_targets, lambda: self.material.config.resolve_interval, self._moved)
        self.counted = Counted(self._target_states, self.lifetimes)
        self._connections: set[Connection] = set()
        self._leaving: set[Connection] = set()
        self._checks: set[Check] = set()
        self._acceptors: list[Acceptor] = []
        self._probe: Address | None = None
        self._ended: asyncio.Event | None = None
        self._full = False
        self._starved = float("-inf")

    def start(self, bound: Sequence[Bound]) -> None:
        """Accept on the sockets of all listeners."""
        for one in bound:
            accepted, failed = partial(self._accepted, one.where.name), self.counted.accept_error
            self._acceptors.append(Acceptor(self._loop, one.sock, BATCH, accepted, failed, self._impaired.set))

    async def expect_probe(self, address: Address | None) -> None:
        """Note the address from which our watchdog is about to connect; None after its probe."""
        self._probe = address

    def adopt(self, material: Material) -> None:
        """New connections are made by this from now on; those that it would not make as they are leave."""
        self.material = material
        for listen, listener in material.listeners.items():
            self.targets[listen].adopt(listener.targets)
            self.targets[listen].retry(listener.targets)
        self.names.ask()
        self.deadlines.rearm()
        for connection in self._connections - self._leaving:
            server, candidate = connection.server, connection.candidate
            if server is not None and candidate is not None and not self.is_current(candidate, server):
                self._leave(connection)
        self._impaired.set()

    def _moved(self, moved: Collection[str]) -> None:
        for targets in self.targets.values():
            targets.retry(moved)

    def _leave(self, connection: Connection) -> None:
        connection.leave_by = time.monotonic() + self.limits.drain_timeout
        self._leaving.add(connection)

    async def drain(self, ended: asyncio.Event) -> None:
        """Stop accepting, and let connections end, until ``ended`` or `limits.drain_timeout`."""
        self._ended = ended
        self._stop()
        for connection in self._connections - self._leaving:
            self._leave(connection)
        timeout = self.limits.drain_timeout
        try:
            async with asyncio.timeout(timeout):
                if self._connections:
                    await ended.wait()
        except TimeoutError:
            _log.warning("%d connections are cut after %g s of draining", len(self._connections), timeout)
        for connection in list(self._connections):
            connection.cut("drained")
        await asyncio.sleep(0)  # each cuts its server's side from the loop

    def close(self) -> None:
        self._stop()
        for check in list(self._checks):
            check.cancel()
        self.deadlines.close()

    def _stop(self) -> None:
        for acceptor in self._acceptors:
            acceptor.stop()

    def _accepted(self, listen: str, sock: socket.socket, address: Address) -> None:
        if address == self._probe:
            self._probe = None
            sock.close()
            return
        if len(self._connections) >= self.limits.max_connections:
            self._turn_away(listen)
            sock.close()
            return
        sock.setblocking(False)
        if sock.family != socket.AF_UNIX:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection = Connection(self, listen, sock)
        self._connections.add(connection)
        self.counted.open[listen] += 1
        connection.begin()

    def _turn_away(self, listen: str) -> None:
        self.counted.connections[listen, "full"] += 1
        if not self._full:
            self._full = True
            _log.warning("limits.max_connections (%d) is reached: more are closed", self.limits.max_connections)

    # For connections

    @property
    def limits(self) -> ConnectLimits:
        return self.material.config.limits

    def stream(self, sock: socket.socket, handler: StreamHandler) -> Stream:
        return Stream(self._loop, sock, handler, self.deadlines, self._lowest)

    def _lowest(self) -> tuple[float, float]:
        """A side that takes no byte for the idle time is cut."""
        window = self.limits.idle_timeout
        return window, 1 / window

    def candidates(self, listen: str) -> list[Candidate]:
        return [candidate for target in self.targets[listen].order() for candidate in self._of(listen, target)]

    def _of(self, listen: str, target: str) -> Iterator[Candidate]:
        """Addresses of one target, the last that stood first."""
        state, addresses = self.targets[listen].states[target], self.names.addresses(target)
        if not addresses:
            yield Candidate(listen, target, None, last=True)
        ordered = sorted(addresses, key=lambda address: address != state.address)
        for place, address in enumerate(ordered):
            yield Candidate(listen, target, address, last=place == len(ordered) - 1)

    def dial(self, candidate: Candidate, handler: DialHandler) -> DialledStream:
        way = self.material.ways.get((candidate.listen, candidate.target))
        if way is None:
            raise ConnectionAbortedError("it is a target no more")
        if candidate.address is None:
            raise socket.gaierror(self.names.error(candidate.target))
        try:
            return dial(self._loop, [candidate.address], handler, self.deadlines, self._lowest, way)
        except OSError as error:
            if error.errno in NO_DESCRIPTORS:
                self._starved = time.monotonic()
                self._impaired.set()
            raise

    def is_current(self, candidate: Candidate, stream: DialledStream) -> bool:
        return is_trusted(stream, self.material.ways.get((candidate.listen, candidate.target)))

    def agreed(self, negotiated: Negotiated | None) -> None:
        if negotiated is not None:
            self.counted.negotiated["target", negotiated.version, negotiated.cipher, negotiated.group] += 1

    def failed(self, candidate: Candidate, error: Exception) -> None:
        self.counted.failures[candidate.listen, candidate.target, failure_reason(error)] += 1
        self.names.ask()
        text = failure_text(error)
        if candidate.last and self.targets[candidate.listen].failed(candidate.target, text, time.monotonic()):
            _log.warning("%s: %s is down: %s", candidate.listen, candidate.target, text)
            self._impaired.set()

    def stood(self, candidate: Candidate) -> None:
        if self.targets[candidate.listen].stood(candidate.target, candidate.address, time.monotonic()):
            _log.info("%s: %s is up", candidate.listen, candidate.target)
            self._impaired.set()

    def relayed(self, listen: str, direction: Literal["in", "out"], size: int) -> None:
        self.counted.bytes[listen, direction] += size

    def ended(self, connection: Connection) -> None:
        self._connections.discard(connection)
        if len(self._connections) <= self.limits.max_connections / 2:  # a line for each crowd, not for each client
            self._full = False
        self._leaving.discard(connection)
        self.counted.open[connection.listen] -= 1
        self.counted.connections[connection.listen, connection.result] += 1
        if self._ended is not None and not self._connections:
            self._ended.set()

    def _sweep(self) -> None:
        now = time.monotonic()
        for connection in list(self._leaving):
            connection.review(now)
        for listen, targets in self.targets.items():
            for target in targets.due(now):
                check = Check(self, self.targets[listen].states[target])
                self._checks.add(check)
                check.begin(list(self._of(listen, target)))

    def checked(self, check: Check) -> None:
        self._checks.discard(check)

    # For operators

    def _all_targets(self) -> list[str]:
        listeners = self.material.listeners.values()
        return list(dict.fromkeys(target for listener in listeners for target in listener.targets))

    def _target_states(self) -> Iterator[tuple[tuple[str, str], bool | None]]:
        for listen, targets in self.targets.items():
            for target, state in targets.states.items():
                yield (listen, target), state.up

    def lifetimes(self) -> list[Lifetime]:
        return list(tls_lifetimes(self.material.states))

    async def ready(self) -> Readiness:
        """The verdict at this moment."""
        return Readiness(
            {
                readiness.LISTENERS: OK if self._ended is None else not_ready(readiness.DRAINING),
                readiness.DESCRIPTORS: self._descriptors_part(),
                TARGETS: self._targets_part(),
                CERTIFICATE: self._certificate_part(time.time()),
                readiness.RELOAD: readiness.reload_part(self.material.problems(time.time())),
            }
        )

    async def metrics(self) -> tuple[bytes, str]:
        return await exposed(self.counted.series())

    def _descriptors_part(self) -> Part:
        trouble = next((one.trouble for one in self._acceptors if one.trouble), "")
        if not trouble and time.monotonic() - self._starved < STARVED:
            trouble = "none is left for connections to targets: raise the limit (LimitNOFILE), or lower max_connections"
        return not_ready(trouble) if trouble else OK

    def _targets_part(self) -> Part:
        """Ready while each listener has a target that is not down; those that are down are named."""
        down: list[str] = []
        for listen, targets in self.targets.items():
            found = [f"{name} is down: {state.reason}" for name, state in targets.states.items() if state.up is False]
            if len(found) == len(targets.states):
                return not_ready(f"{listen}: {'; '.join(found)}")
            down += found
        return degraded("; ".join(dict.fromkeys(down))) if down else OK

    def _certificate_part(self, now: float) -> Part:
        certificate = self.material.certificate
        ended = certificate is not None and certificate.chain[0].not_valid_after_utc.timestamp() <= now
        return not_ready("the client certificate has expired") if ended else OK
