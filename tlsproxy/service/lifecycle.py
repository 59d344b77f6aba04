"""Life of a program that serves, the gateway or client mode: stop signals, ready file, exit status."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path
from typing import Any, Final

from tlsproxy.errors import TlsproxyError
from tlsproxy.service.systemd.sockets import InheritedSocketError

HEALTH_MODE: Final = 0o666
"""Mode of a unix socket for health checks: answers are for whoever can connect, as on a network."""


class Signals:
    """SIGTERM and SIGINT cancel the start, then set ``stopping``, and the second one ``ended``, at once. ``log`` is the
    program's.
    """

    def __init__(self, log: logging.Logger) -> None:
        self._log = log
        self.stopping = asyncio.Event()
        self.ended = asyncio.Event()
        self._starting: asyncio.Task[Any] | None = None

    def handle(self, hang_up: Callable[[], object]) -> None:
        """From now on, in the task of the start. SIGHUP calls ``hang_up``."""
        self._starting = asyncio.current_task()
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGHUP, hang_up)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGHUP})  # blocked since the command's start
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_stop, signal.Signals(number).name)

    def started(self) -> None:
        """Stop signals drain from now on."""
        self._starting = None

    def _on_stop(self, name: str) -> None:
        if self._starting is not None:
            self._starting.cancel()
        elif self.stopping.is_set():
            self._log.warning("%s again: ending at once", name)
            self.ended.set()
        else:
            self._log.info("%s: draining", name)
            self.stopping.set()


def exit_status(runner: asyncio.Runner, serving: Coroutine[Any, Any, None], log: logging.Logger) -> int:
    """Run to the end: 0 after a stop, 1 after a failure, where a retry may succeed, 2 for an inherited socket that fits
    no listener.
    """
    try:
        runner.run(serving)
    except asyncio.CancelledError:
        log.info("ended before it served")
    except InheritedSocketError as error:
        log.critical("cannot serve: %s", error)
        return 2
    except (TlsproxyError, OSError) as error:
        log.critical("cannot serve: %s", error)
        return 1
    return 0


def write_ready_file(path: Path | None, addresses: Mapping[str, object]) -> None:
    """Addresses in force, as JSON, for whoever waits for the file. Raises OSError."""
    if path is not None:
        staged = path.with_name(f"{path.name}.{os.getpid()}")
        staged.write_text(json.dumps(addresses), encoding="utf-8")
        staged.replace(path)
