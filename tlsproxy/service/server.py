"""The program: first configuration, log, signals, sockets, reloads and admin server around the data path.

SIGHUP reloads; one during the start is held until there is something to reload. SIGTERM and SIGINT drain: no new
connections, idle ones end after ``limits.drain_grace``, busy ones after their response, all within
``limits.drain_timeout``. A second one ends the process at once, as the first does during the start. Reloads work until
the end of a drain, so that revocations count for draining connections too.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import secrets
import socket
import sys
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack, ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import tlsproxy
from tlsproxy.admin import view
from tlsproxy.admin.health import HealthServer, HealthSettings
from tlsproxy.audit import counters
from tlsproxy.audit.files import ALONE, Turn
from tlsproxy.audit.line import event_line
from tlsproxy.audit.log import AuditLog, NoAudit, audit_log
from tlsproxy.config.endpoints import UnixSocket
from tlsproxy.config.health import health_endpoint
from tlsproxy.config.listeners import HEALTH, listening, shown, titles
from tlsproxy.config.problems import ConfigError
from tlsproxy.config.proxy_protocol import balancers
from tlsproxy.errors import FailureKind, TlsproxyError
from tlsproxy.form import form
from tlsproxy.proxy.core.gateway import Event
from tlsproxy.proxy.decision.affinity import KEY_SIZE
from tlsproxy.proxy.frontend.listener import Bound, address_of, bind
from tlsproxy.proxy.limits.table import LimitTable
from tlsproxy.service import logs
from tlsproxy.service.abort import write_out_and_end
from tlsproxy.service.clock_jumps import ClockJumps
from tlsproxy.service.lifecycle import HEALTH_MODE, Signals, exit_status, write_ready_file
from tlsproxy.service.lock_publisher import LockPublisher
from tlsproxy.service.lock_trail import LockTrail
from tlsproxy.service.node_trail import NodeTrail
from tlsproxy.service.readiness_monitor import ReadinessMonitor
from tlsproxy.service.reloader import Reloader
from tlsproxy.service.runtime import loop_factory, tune_collector, tune_threads
from tlsproxy.service.serving import Served, Serving
from tlsproxy.service.slow_callbacks import measured
from tlsproxy.service.state import ServiceState, described
from tlsproxy.service.systemd.notify import Notifier
from tlsproxy.service.systemd.sockets import Inherited, inherited_sockets, open_sockets
from tlsproxy.service.systemd.watchdog import HandshakeQuestion, Watchdog
from tlsproxy.service.workers.supervisor import Supervisor
from tlsproxy.snapshot.bundles import Bundles
from tlsproxy.snapshot.jwks import KeySets
from tlsproxy.snapshot.lock_file import LockFileWatch
from tlsproxy.snapshot.name_resolution import NameResolver
from tlsproxy.snapshot.name_watch import NameWatch
from tlsproxy.snapshot.startup import FirstGeneration, awaited_generation
from tlsproxy.snapshot.watch import Watcher

if TYPE_CHECKING:
    from tlsproxy.service.shared.coordinator import Coordinator

_log = logging.getLogger(__name__)


def run(config_path: Path, ready_file: Path | None) -> int:
    """Serve until stopped.

    Returns the exit status: 0 after a stop, 1 after a failure, 2 for a refused configuration, file or inherited socket.

    With 1 a retry may succeed (a taken address may be free in a moment); 2 needs a person. Raises ConfigError for a
    wrong `TLSPROXY_SLOW_CALLBACK`.
    """
    tune_threads()
    tune_collector()
    with asyncio.Runner(loop_factory=measured(loop_factory, os.environ)) as runner:
        try:
            notifier = Notifier.of(os.environ, os.getpid())
            inherited = inherited_sockets(os.environ, os.getpid())
            key_sets, bundles = KeySets(), Bundles(config_path, os.environ)
            if warning := runner.run(bundles.first()):
                print(f"warning: {warning}", file=sys.stderr, flush=True)  # noqa: T201 - before there is a log
            first = awaited_generation(
                config_path,
                os.environ,
                lambda config: runner.run(key_sets.of(config)),
                lambda text: print(text, file=sys.stderr, flush=True),  # noqa: T201 - before there is a log
            )
        except ConfigError as error:
            for problem in error.problems:
                print(problem, file=sys.stderr)  # noqa: T201 - before there is a log
            return 2
        except TlsproxyError as error:
            print(error, file=sys.stderr)  # noqa: T201
            return 1 if error.kind is FailureKind.ENVIRONMENT else 2
        config = first.generation.config
        logs.configure(config.logger, config.log_level, os.environ)
        if config.admin.listen is not None:  # before the first client is accepted, which would wait for it
            import tlsproxy.admin.server  # noqa: F401, PLC0415
        program = _Program(config_path, first, key_sets, bundles, ready_file, notifier, inherited)
        return exit_status(runner, program.serve(), _log)


class _Program:
    """Signals, sockets, reloads and admin server around the data path."""

    def __init__(
        self,
        config_path: Path,
        first: FirstGeneration,
        key_sets: KeySets,
        bundles: Bundles,
        ready_file: Path | None,
        notifier: Notifier,
        inherited: Sequence[Inherited],
    ) -> None:
        self._config_path = config_path
        self._first = first
        self._key_sets = key_sets
        self._bundles = bundles
        self._names = NameWatch(NameResolver())
        self._generation = first.generation
        self._ready_file = ready_file
        self._notifier = notifier
        self._inherited = inherited
        self._signals = Signals(_log)
        self._reload = asyncio.Event()
        self._impaired = asyncio.Event()

    async def serve(self) -> None:
        """Serve until SIGTERM or SIGINT, which cancel it during the start."""
        config = self._generation.config
        async with AsyncExitStack() as stack:
            turn, counts = ALONE, counters.private()
            if config.workers > 1:
                turn = Turn(os.memfd_create("tlsproxy-audit"))
                counts = counters.shared(turn.descriptor, 0)
            audit = audit_log(config.audit, turn, counts)
            audit.start()
            write_out_and_end(audit)
            stack.callback(audit.close)
            bound = open_sockets([*listening(config)], self._inherited, stack.enter_context(ExitStack()))
            for_health = self._bind_health(stack)
            self._signals.handle(self._reload.set)
            served = await self._start_serving(stack, bound, audit, turn)
            watch = LockFileWatch(self._config_path, self._generation.states.locks)
            shared = self._sharing(served)
            trail = LockTrail(audit, served.counted, watch.path)
            locks = LockPublisher(served, watch, trail, NodeTrail(audit), *([shared.locked] if shared else []))
            await locks.begin()
            reloader = Reloader(
                target=served,
                audit=audit,
                metrics=served.counted,
                config_path=self._config_path,
                environ=os.environ,
                watcher=Watcher(self._config_path, os.environ, self._first.inputs),
                key_sets=self._key_sets,
                bundles=self._bundles,
                observer=self._notifier,
                faults=self._first.faults,
                locks=locks,
            )
            watchdog = Watchdog(
                self._notifier,
                [one.sock for one in bound],
                HandshakeQuestion(lambda: served.generation.config.service.verify_https_client_certificate).ask,
                served.expect_probe,
            )
            jumps = ClockJumps(served.clock, served.counted)
            state = ServiceState(
                served,
                bound,
                reloader,
                key_sets=self._key_sets,
                bundles=self._bundles,
                jumps=jumps,
                locks=locks,
                shared=shared,
            )
            monitor = ReadinessMonitor(state.ready, served.counted, self._notifier, self._impaired)
            admin = await self._start_admin(stack, state)
            health = self._start_health(stack, for_health, state, served)
            self._announce(bound, admin, health, reloader)
            _event(audit, "start", self._generation.config_sha256)
            self._signals.started()
            async with asyncio.TaskGroup() as tasks:
                watched = tasks.create_task(watchdog.run())
                owned = [
                    tasks.create_task(monitor.run()),
                    tasks.create_task(reloader.run()),
                    tasks.create_task(reloader.retry()),
                    tasks.create_task(locks.run(reloader.reload)),
                    tasks.create_task(self._reload_on_signal(reloader)),
                    tasks.create_task(jumps.run(reloader.reload)),
                    tasks.create_task(self._key_sets.run(lambda: served.generation.config, reloader.reload)),
                    tasks.create_task(self._bundles.run(lambda: served.generation, reloader.reload)),
                    tasks.create_task(self._names.run(lambda: served.generation, reloader.reload)),
                ]
                if shared is not None:
                    owned.append(tasks.create_task(shared.run()))
                await self._signals.stopping.wait()
                watched.cancel()
                self._notifier.stopping()
                await served.drain(self._signals.ended)
                for task in owned:
                    task.cancel()
            if shared is not None:
                await shared.leave()
            _event(audit, "stop", served.generation.config_sha256)

    async def _start_serving(
        self, stack: AsyncExitStack, bound: Sequence[Bound], audit: AuditLog | NoAudit, turn: Turn
    ) -> Served:
        """Start the data path in this process, or in worker processes."""
        generation = self._generation
        if generation.config.workers == 1:
            table = LimitTable.private(leased=generation.config.shared.used)
            serving = Serving(
                generation,
                bound,
                audit,
                table,
                self._notice,
                itertools.count(1),
                affinity_key=secrets.token_bytes(KEY_SIZE),
                alone=True,
            )
            stack.callback(serving.close)
            return serving
        supervisor = Supervisor(self._config_path, generation, bound, audit, turn, self._notice)
        await stack.enter_async_context(supervisor.running())
        return supervisor

    def _sharing(self, served: Served) -> Coordinator | None:
        """The part that shares limits with other gateways, if they are to be shared."""
        if not self._generation.config.shared.used or served.limits is None:
            return None
        from tlsproxy.service.shared.coordinator import Coordinator  # noqa: PLC0415 - nothing else needs its library

        return Coordinator(served.limits, served.counted, lambda: served.generation, self._impaired.set)

    def _notice(self, event: Event) -> None:
        """Act on what the data path has met."""
        if event == "key_missing":
            self._key_sets.key_missing()
        elif event == "connect_failed":
            self._names.connect_failed()
        else:
            self._impaired.set()

    async def _start_admin(self, stack: AsyncExitStack, state: ServiceState) -> str | None:
        listen = self._generation.config.admin.listen
        if listen is None:
            return None
        from tlsproxy.admin.server import AdminServer  # noqa: PLC0415 - nothing else needs aiohttp and jinja2

        server = AdminServer(listen, state)
        bound = await server.start()
        stack.push_async_callback(server.stop)
        return bound

    def _bind_health(self, stack: AsyncExitStack) -> socket.socket | None:
        """Bound with the listeners, so that a taken address is told before anybody is served."""
        endpoint = health_endpoint(self._generation.config)
        if endpoint is None:
            return None
        bound = bind(endpoint, HEALTH_MODE)
        stack.callback(bound.close)
        return bound.sock

    def _start_health(
        self, stack: AsyncExitStack, sock: socket.socket | None, state: ServiceState, served: Served
    ) -> str | None:
        """Serve health checks; the URL of their listener, if there is one."""
        if sock is None:
            return None

        def settings() -> HealthSettings:
            generation = served.generation
            health = generation.config.health
            return HealthSettings(health.metrics, balancers(health.proxy_protocol), generation.contexts.get(HEALTH))

        server = HealthServer(sock, state, settings, served.counted.accept_error)
        stack.callback(server.close)
        address = address_of(sock)
        if isinstance(address, UnixSocket):
            return str(address)
        return f"{'https' if self._generation.config.health.tls else 'http'}://{address}"

    def _announce(self, bound: Sequence[Bound], admin: str | None, health: str | None, reloader: Reloader) -> None:
        serving = ", ".join(
            f"{titles(one.where.protocols)} on {shown(one.where.protocols, one.address)}" for one in bound
        )
        _log.info("tlsproxy %s (%s): serving %s", tlsproxy.__version__, form(), serving)
        if bundle := view.bundle(self._bundles.status()):
            _log.info("%s", bundle)
        if admin is not None:
            _log.info("serving the operators on %s", admin)
        if health is not None:
            _log.info("serving health checks on %s", health)
        for problem in reloader.last.error.splitlines():
            _log.error("not in force yet: %s", problem)
        for warning in reloader.notices():
            _log.warning("%s", warning)
        addresses = {"listeners": described(bound), "admin": admin} | ({"health": health} if health else {})
        write_ready_file(self._ready_file, addresses)
        self._notifier.serving(serving, reloader.last)

    async def _reload_on_signal(self, reloader: Reloader) -> None:
        while True:
            await self._reload.wait()
            self._reload.clear()
            await reloader.reload("sighup")


def _event(audit: AuditLog | NoAudit, event: Literal["start", "stop"], config_sha256: str) -> None:
    detail = {"version": tlsproxy.__version__, "config_sha256": config_sha256}
    audit.write(event_line(when=time.time(), event=event, remote=None, result="ok", reason=event, detail=detail))
