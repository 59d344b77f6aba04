"""A real HAProxy in the foreground, on sockets that it inherits."""

from __future__ import annotations

import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from support.gateway import DEADLINE

_DEFAULTS = (
    "global\n  maxconn 64\ndefaults\n  mode tcp\n  timeout connect 5s\n  timeout client 20s\n  timeout server 20s\n"
)


@contextmanager
def haproxy(directory: Path, *proxies: tuple[str, str]) -> Iterator[list[int]]:
    """Ports of HAProxy's listeners: one for each (options of `bind`, of `server`)."""
    program = shutil.which("haproxy")
    if program is None:
        pytest.skip("haproxy is not installed")
    with ExitStack() as stack:
        held = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in proxies]
        path = directory / "haproxy.cfg"
        path.write_text(
            _DEFAULTS
            + "".join(
                f"listen l{number}\n  bind fd@{sock.fileno()} {bind}\n  server s {server}\n"
                for number, (sock, (bind, server)) in enumerate(zip(held, proxies, strict=True))
            )
        )
        process = subprocess.Popen([program, "-db", "-q", "-f", str(path)], pass_fds=[sock.fileno() for sock in held])
        try:
            yield [sock.getsockname()[1] for sock in held]
        finally:
            process.terminate()
            process.wait(DEADLINE)
