"""A gateway as it really runs: a process of its own, its log and its audit lines read as they come."""

from __future__ import annotations

import json
import queue
import re
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import yaml

from support.documented import undescribed
from support.forked import ForkedProcess

DEADLINE = 20.0


class Lines:
    """The lines of a pipe, waited for one by one. ``seen`` keeps them all."""

    def __init__(self, pipe: Any) -> None:
        self.seen: list[str] = []
        self._queue: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._read, args=(pipe,), daemon=True)
        self._thread.start()

    def _read(self, pipe: Any) -> None:
        with pipe:
            for line in pipe:
                self._queue.put(line.rstrip("\n"))
        self._queue.put(None)

    def wait(self, matches: Callable[[str], bool], deadline: float = DEADLINE) -> str:
        """The next line that matches; those before it are taken too."""
        end = time.monotonic() + deadline
        while True:
            line = self._queue.get(timeout=max(0.01, end - time.monotonic()))
            if line is None:
                raise AssertionError("the gateway ended:\n" + "\n".join(self.seen))
            self.seen.append(line)
            if matches(line):
                return line

    def drain(self) -> list[str]:
        """All that came until the pipe's end."""
        self._thread.join(DEADLINE)
        while not self._queue.empty() and (line := self._queue.get()) is not None:
            self.seen.append(line)
        return self.seen


def _started(command: list[str], environ: dict[str, str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "tlsproxy", *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={"PYTHONWARNINGS": "error", **environ},
    )


_SERVED = re.compile(r"(REST and gRPC|REST|gRPC|TCP) on \w+://\S+:(\d+)")


class Gateway:
    """``ports`` has those of ``REST``, ``gRPC``, ``REST and gRPC`` and ``TCP``, in the order of the configuration.

    ``port`` is the first that serves REST, ``grpc_port`` the first that serves gRPC, ``admin`` the admin server's
    ``host:port``, ``health`` the URL of the health listener.
    """

    def __init__(
        self,
        config: Path,
        *options: str,
        inherit: Sequence[tuple[str, socket.socket]] = (),
        fresh: bool = False,
        **environ: str,
    ) -> None:
        """``inherit``: listening sockets that it is passed as by systemd, each with its name.

        It is forked from a process that has imported everything, unless it is to be ``fresh``.
        """
        self.config = config
        command, environ = ["run", "--config", str(config), *options], {"PATH": "/usr/bin:/bin", **environ}
        self.process: subprocess.Popen[str] | ForkedProcess = (
            _started(command, environ) if fresh else ForkedProcess(command, environ, inherit=inherit)
        )
        self.log = Lines(self.process.stderr)
        self._audit = Lines(self.process.stdout)

    def __enter__(self) -> Self:
        try:
            line = self.log.wait(lambda line: ": serving " in line)
            self.ports: dict[str, list[int]] = {}
            for titles, port in _SERVED.findall(line):
                self.ports.setdefault(titles, []).append(int(port))
            configured = yaml.load(self.config.read_text(), yaml.CSafeLoader)
            if "admin" in configured:
                line = self.log.wait(lambda line: "serving the operators on" in line)
                self.admin = line.partition("serving the operators on ")[2].partition('"')[0]
            if (configured.get("health") or {}).get("listen"):
                line = self.log.wait(lambda line: "serving health checks on" in line)
                self.health = line.partition("serving health checks on ")[2].partition('"')[0]
        except BaseException:
            self.process.kill()
            self.process.wait()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(DEADLINE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise
        log = self.log.drain()
        unknown = undescribed(self._audit.drain())
        assert not unknown, f"docs/observability.md does not describe {unknown}"
        assert not [line for line in log if "CRITICAL" in line or "Traceback" in line], "\n".join(log)

    @property
    def port(self) -> int:
        return self._first("REST")

    @property
    def grpc_port(self) -> int:
        return self._first("gRPC")

    def _first(self, protocol: str) -> int:
        return next(ports[0] for titles, ports in self.ports.items() if protocol in titles)

    def url(self, path: str) -> str:
        return f"https://localhost:{self.port}{path}"

    def stop(self) -> list[dict[str, Any]]:
        """Ends it well; every audit record of its life."""
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(DEADLINE)
        self.log.drain()
        return [json.loads(line) for line in self._audit.drain()]

    def audited(self, deadline: float = DEADLINE, **fields: Any) -> dict[str, Any]:
        """The next audit record that has these values."""

        def matches(line: str) -> bool:
            record = json.loads(line)
            return all(record.get(name) == value for name, value in fields.items())

        return dict(json.loads(self._audit.wait(matches, deadline)))

    def reloaded(self, result: str = "ok", **fields: Any) -> dict[str, Any]:
        """The next audit record of a reload with this result."""
        return self.audited(event="reload", result=result, **fields)

    def hang_up(self) -> None:
        self.process.send_signal(signal.SIGHUP)

    def ask_admin(self, path: str, method: str = "GET") -> tuple[int, str]:
        request = urllib.request.Request(f"http://{self.admin}{path}", method=method)
        try:
            with urllib.request.urlopen(request, timeout=DEADLINE) as response:  # noqa: S310
                return response.status, response.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()

    def inspection_memory(self) -> float:
        """Bytes in use, in all workers."""
        exposition = self.ask_admin("/metrics")[1]
        return float(exposition.split("\ntlsproxy_inspection_memory_bytes ")[1].split()[0])

    def connect(
        self, context: ssl.SSLContext, session: ssl.SSLSession | None = None, port: int | None = None
    ) -> ssl.SSLSocket:
        """A raw TLS connection, to the REST listener unless told. ``session``: one that is offered for resumption."""
        sock = socket.create_connection(("127.0.0.1", port or self.port), timeout=DEADLINE)
        # As clients do: a request behind the handshake's last message would wait for its acknowledgement (40 ms).
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            return context.wrap_socket(sock, server_hostname="localhost", session=session)
        except BaseException:
            sock.close()
            raise
