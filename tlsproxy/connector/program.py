"""The program of client mode: first configuration, log, signals, sockets, renewal and health around the data path.

SIGHUP reloads. SIGTERM and SIGINT drain: no new connections, those there are go on for up to `limits.drain_timeout`. A
second one ends the process at once, as the first does during the start.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

import tlsproxy
from tlsproxy.admin.health import HealthServer, HealthSettings
from tlsproxy.config.endpoints import UnixSocket, listen_endpoint
from tlsproxy.config.problems import ConfigError
from tlsproxy.connector.material import Material, Source
from tlsproxy.connector.serving import Serving
from tlsproxy.errors import FailureKind, TlsproxyError
from tlsproxy.form import form
from tlsproxy.proxy.frontend.listener import Bound, address_of, bind
from tlsproxy.service import logs
from tlsproxy.service.expiry_log import ExpiryLog
from tlsproxy.service.lifecycle import HEALTH_MODE, Signals, exit_status, write_ready_file
from tlsproxy.service.readiness_monitor import ReadinessMonitor
from tlsproxy.service.reload_result import ReloadResult, outcome
from tlsproxy.service.runtime import loop_factory
from tlsproxy.service.slow_callbacks import measured
from tlsproxy.service.systemd.notify import Notifier
from tlsproxy.service.systemd.sockets import inherited_sockets, open_sockets
from tlsproxy.service.systemd.watchdog import Watchdog
from tlsproxy.snapshot.name_resolution import START_DEADLINE
from tlsproxy.snapshot.notify import FileNotifications
from tlsproxy.snapshot.watch_paths import places_of
from tlsproxy.threads import in_thread

_log = logging.getLogger(__name__)


def run(config_path: Path, ready_file: Path | None) -> int:
    """Serve until stopped.

    Returns the exit status: 0 after a stop, 1 after a failure, where a retry may succeed, 2 for a refused configuration
    or file, which needs a person. Raises ConfigError for a wrong `TLSPROXY_SLOW_CALLBACK`.
    """
    new_loop = measured(loop_factory, os.environ)
    notifier = Notifier.of(os.environ, os.getpid())
    source = Source(config_path, os.environ)
    try:
        material = source.first(lambda text: print(text, file=sys.stderr, flush=True))  # noqa: T201 - before there is a log
    except ConfigError as error:
        print(error, file=sys.stderr)  # noqa: T201
        return 2
    except TlsproxyError as error:
        print(error, file=sys.stderr)  # noqa: T201
        return 1 if error.kind is FailureKind.ENVIRONMENT else 2
    logs.configure(material.config.logger, material.config.log_level, os.environ)
    with asyncio.Runner(loop_factory=new_loop) as runner:
        return exit_status(runner, _Program(source, material, ready_file, notifier).serve(), _log)


class _Program:
    def __init__(
        self,
        source: Source,
        material: Material,
        ready_file: Path | None,
        notifier: Notifier,
    ) -> None:
        self._source = source
        self._started = material.config
        self._first = material
        self._ready_file = ready_file
        self._notifier = notifier
        self._signals = Signals(_log)
        self._due = asyncio.Event()
        self._hung_up = False
        self._publications = 1
        self._told = material.problems(time.time())

    async def serve(self) -> None:
        """Serve until SIGTERM or SIGINT, which cancel it during the start."""
        impaired = asyncio.Event()
        with ExitStack() as stack:
            where = [listener.listening for listener in self._started.listeners]
            inherited = inherited_sockets(os.environ, os.getpid())
            bound = open_sockets(where, inherited, stack.enter_context(ExitStack()))
            health = self._bind_health(stack)
            self._signals.handle(self._on_hang_up)
            serving = Serving(self._first, impaired)
            stack.callback(serving.close)
            await serving.names.resolve(START_DEADLINE)
            serving.start(bound)
            if health is not None:
                settings = HealthSettings(metrics=True)
                server = HealthServer(health, serving, lambda: settings, serving.counted.accept_error)
                stack.callback(server.close)
            self._announce(bound, health)
            monitor = ReadinessMonitor(serving.ready, serving.counted, self._notifier, impaired)
            watchdog = Watchdog(self._notifier, [one.sock for one in bound], is_closed, serving.expect_probe)
            self._signals.started()
            async with asyncio.TaskGroup() as tasks:
                watched = tasks.create_task(watchdog.run())
                owned = [
                    tasks.create_task(monitor.run()),
                    tasks.create_task(serving.names.run()),
                    tasks.create_task(self._renew(serving)),
                ]
                await self._signals.stopping.wait()
                watched.cancel()
                self._notifier.stopping()
                await serving.drain(self._signals.ended)
                for task in owned:
                    task.cancel()

    def _bind_health(self, stack: ExitStack) -> socket.socket | None:
        if self._started.health.listen is None:
            return None
        bound = bind(listen_endpoint(self._started.health.listen), HEALTH_MODE)
        stack.callback(bound.close)
        return bound.sock

    def _announce(self, bound: Sequence[Bound], health: socket.socket | None) -> None:
        addresses = {one.where.name: one.address for one in bound}
        listeners = ((addresses[each.listen], each.targets) for each in self._started.listeners)
        serving = "; ".join(f"{address} to {' or '.join(targets)}" for address, targets in listeners)
        url = "" if health is None else str(address_of(health))
        if health is not None and not isinstance(address_of(health), UnixSocket):
            url = f"http://{url}"
        write_ready_file(self._ready_file, {"listeners": addresses, "health": url or None})
        _log.info("tlsproxy %s (%s): serving %s", tlsproxy.__version__, form(), serving)
        if url:
            _log.info("serving health checks on %s", url)
        for warning in self._first.warnings:
            _log.warning("%s", warning)
        self._notifier.serving(serving, ReloadResult("ok", "start", time.time(), self._publications))

    def _on_hang_up(self) -> None:
        self._hung_up = True
        self._due.set()

    async def _renew(self, serving: Serving) -> None:
        """Read the files by interval, when they may have changed, and at SIGHUP, until cancelled."""
        hint = FileNotifications()
        hint.stirred = self._due
        expiry = ExpiryLog()
        try:
            while True:
                timeout = serving.material.config.tls.read_timeout
                await hint.watch(await in_thread(places_of, self._source.paths, timeout))
                await self._read(serving)
                expiry.report(serving.lifetimes(), time.time())
                with suppress(TimeoutError):
                    async with asyncio.timeout(self._pause(serving.material)):
                        await self._due.wait()
                self._due.clear()
        finally:
            await hint.close()

    @staticmethod
    def _pause(material: Material) -> float:
        """Seconds to the next reading: less while a pair is settling."""
        now = time.time()
        moments = [fault.due for fault in material.faults.values() if fault.settling(now)]
        return max(min([material.config.tls.poll_interval, *(moment - now for moment in moments)]), 0.1)

    async def _read(self, serving: Serving) -> None:
        """Read the files, and publish what is new."""
        hung_up, self._hung_up = self._hung_up, False
        trigger, former = "sighup" if hung_up else "files", serving.material
        if hung_up:
            self._notifier.reloading()
        try:
            material = await in_thread(self._source.next, former, self._started)
        except (OSError, RuntimeError, MemoryError) as error:  # no thread, no descriptor
            _log.error("the files cannot be read now: %s", error)
            material = former
        if material is not former or hung_up or material.problems(time.time()) != self._told:
            self._publish(serving, material, trigger)

    def _publish(self, serving: Serving, material: Material, trigger: str) -> None:
        changed, told = material.states != serving.material.states, self._told
        self._told = material.problems(time.time())
        error = "\n".join(self._told)
        result = outcome(error, changed=changed)
        if changed:
            self._publications += 1
            logs.set_level(material.config.log_level)
            _log.info("new connections use other files (%s): %s", trigger, "; ".join(material.news(serving.material)))
        elif trigger == "sighup":
            _log.info("SIGHUP: the files in force are as they were")
        for problem in self._told if self._told != told else ():
            _log.error("not in force: %s", problem)
        serving.adopt(material)
        serving.counted.reloads[result, trigger] += 1
        self._notifier.reloaded(ReloadResult(result, trigger, time.time(), self._publications, error))


async def is_closed(sock: socket.socket) -> str:
    """The data path's answer to a watchdog's probe is the end of its connection."""
    return "does not end a probe" if await asyncio.get_running_loop().sock_recv(sock, 1) else ""
