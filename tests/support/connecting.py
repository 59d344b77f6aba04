"""`tlsproxy connect` as it really runs, and TLS servers that it connects to."""

from __future__ import annotations

import json
import signal
import socket
import ssl
import subprocess
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import yaml

from support.forked import ForkedProcess
from support.gateway import DEADLINE, Lines
from support.polling import until
from support.sockets import serving

TLS = {"ca_cert": "ca.pem", "cert": "client.pem", "key": "client.key", "poll_interval": 2}
Handle = Callable[[ssl.SSLSocket], None]


def echo(sock: ssl.SSLSocket) -> None:
    """Returns what comes until it ends, and ends too."""
    while data := sock.recv(65536):
        sock.sendall(data)
    sock.unwrap()


def tls_serving(
    context: ssl.SSLContext, handle: Handle = echo, address: tuple[str, int] = ("127.0.0.1", 0)
) -> AbstractContextManager[str]:
    """A TLS server with a thread for each connection: its ``host:port``. An end without close_notify is an error."""

    def serve(sock: socket.socket) -> None:
        sock.settimeout(DEADLINE)
        with context.wrap_socket(sock, server_side=True, suppress_ragged_eofs=False) as tls:
            handle(tls)

    return serving(serve, address)


class Connecting:
    """``health`` is the URL of its health listener. ``inherit``: listening sockets that it is passed as by systemd."""

    def __init__(
        self,
        directory: Path,
        listeners: Sequence[dict[str, Any]],
        tls: dict[str, Any] = TLS,
        environ: Mapping[str, str] = {},
        inherit: Sequence[tuple[str, socket.socket]] = (),
        **sections: Any,
    ) -> None:
        self.config = directory / "client.yaml"
        self._ready = directory / "ready.json"
        self._inherit = inherit
        self.process: Any = None
        self._sections = {"health": {"listen": "127.0.0.1:0"}, **sections}
        self.write(listeners, tls)
        self._environ: dict[str, str] = {"PATH": "/usr/bin:/bin", **environ}

    def write(self, listeners: Sequence[dict[str, Any]], tls: dict[str, Any] = TLS, **sections: Any) -> None:
        """Replaces the configuration."""
        staged = self.config.with_suffix(".new")
        staged.write_text(yaml.dump({"listeners": list(listeners), "tls": tls, **self._sections, **sections}))
        staged.replace(self.config)

    def launch(self) -> None:
        command = ["connect", "--config", str(self.config), "--ready-file", str(self._ready)]
        self.process = ForkedProcess(command, self._environ, inherit=self._inherit)
        self.log, self._out = Lines(self.process.stderr), Lines(self.process.stdout)

    def __enter__(self) -> Self:
        """Waits until it serves; it is launched if it was not before."""
        if self.process is None:
            self.launch()
        try:
            self.log.wait(lambda line: "serving health checks on" in line)
            found = json.loads(self._ready.read_text())
            self.addresses: dict[str, str] = found["listeners"]
            self.health: str = found["health"]
        except BaseException:
            self.process.kill()
            self.process.wait()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(DEADLINE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise
        log = self.log.drain()
        assert not self._out.drain()
        assert not [line for line in log if "CRITICAL" in line or "Traceback" in line], "\n".join(log)

    def connect(self, listen: str) -> socket.socket:
        """A plaintext connection to a listener of the configuration."""
        address = self.addresses[listen]
        if address.startswith("unix:"):
            sock = socket.socket(socket.AF_UNIX)
            sock.settimeout(DEADLINE)
            sock.connect(address.removeprefix("unix:").replace("@", "\0"))
            return sock
        host, _, port = address.rpartition(":")
        return socket.create_connection((host.strip("[]"), int(port)), DEADLINE)

    def metric(self, name: str, **labels: str) -> float:
        """Value of a series, 0 where there is none."""
        shown = ",".join(f'{label}="{labels[label]}"' for label in sorted(labels))
        series = f"tlsproxy_{name}{{{shown}}} " if labels else f"tlsproxy_{name} "
        found = (line for line in self.ask("/metrics")[1].splitlines() if line.startswith(series))
        return float(next(found, f"{series}0").rpartition(" ")[2])

    def hang_up(self) -> None:
        """SIGHUP, until its reload is over."""
        before = self._reloads()
        self.process.send_signal(signal.SIGHUP)
        until(lambda: self._reloads() != before)

    def _reloads(self) -> float:
        lines = self.ask("/metrics")[1].splitlines()
        found = [line for line in lines if line.startswith("tlsproxy_reloads_total") and 'trigger="sighup"' in line]
        return sum(float(line.rpartition(" ")[2]) for line in found)

    def ask(self, path: str) -> tuple[int, str]:
        """Status and body of a request to the health listener."""
        try:
            with urllib.request.urlopen(f"{self.health}{path}", timeout=DEADLINE) as response:  # noqa: S310
                return response.status, response.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()


def said(sock: socket.socket, data: bytes) -> bytes:
    """The whole answer to data that ends."""
    with sock:
        sock.sendall(data)
        sock.shutdown(socket.SHUT_WR)
        answer = b""
        while more := sock.recv(65536):
            answer += more
        return answer
