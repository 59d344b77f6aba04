"""A real store, `redis-server`, as a process of the test's own, and a way to it that can be cut."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from support.gateway import DEADLINE

needs_store = pytest.mark.skipif(
    shutil.which("redis-server") is None and not os.environ.get("CI"), reason="redis-server is not installed"
)


class RedisServer:
    """Listens on a port of 127.0.0.1, which stays its own over :meth:`kill` and :meth:`start`."""

    def __init__(self, directory: Path, *options: str, tls: bool = False) -> None:
        self.directory, self._options, self._tls = directory, options, tls
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    @property
    def url(self) -> str:
        return f"redis{'s' if self._tls else ''}://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Returns when it answers."""
        ports = ["--port", "0", "--tls-port", str(self.port)] if self._tls else ["--port", str(self.port)]
        self._process = subprocess.Popen(
            ["redis-server", *ports, "--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--unixsocket",
             str(self.socket), "--dir", str(self.directory), *self._options],
            stdout=subprocess.DEVNULL, cwd=self.directory,
        )  # fmt: skip
        end = time.monotonic() + DEADLINE
        while True:
            with suppress(redis.exceptions.ConnectionError), self.client() as client:
                with suppress(redis.exceptions.AuthenticationError, redis.exceptions.NoPermissionError):
                    client.ping()
                return
            assert self._process.poll() is None, "redis-server has ended"
            assert time.monotonic() < end, "redis-server does not answer"
            time.sleep(0.01)

    @property
    def socket(self) -> Path:
        return self.directory / "redis.sock"

    def client(self, **options: Any) -> redis.Redis:
        """A client beside the gateways', over a unix socket."""
        once = Retry(NoBackoff(), 0)
        return redis.Redis(
            unix_socket_path=str(self.socket), socket_timeout=DEADLINE, protocol=2, retry=once, **options
        )

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def pause(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)


class Way:
    """A TCP relay to a port. While it is ``cut`` it swallows all bytes, and connections stay open."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.whole = threading.Event()
        self.whole.set()
        self.delay = 0.0
        self._open: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()
        for sock in self._open:
            sock.close()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                try:
                    server = socket.create_connection(("127.0.0.1", self._target), DEADLINE)
                except OSError:
                    client.close()
                    continue
                self._open += [client, server]
                for one, other in ((client, server), (server, client)):
                    threading.Thread(target=self._relay, args=(one, other), daemon=True).start()

    def _relay(self, one: socket.socket, other: socket.socket) -> None:
        with suppress(OSError):
            one.settimeout(None)
            while data := one.recv(65536):
                if self.whole.is_set():
                    if self.delay:
                        time.sleep(self.delay)
                    other.sendall(data)
            other.shutdown(socket.SHUT_WR)
