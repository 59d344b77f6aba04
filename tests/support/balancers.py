"""The balancers of docs/load-balancers.md as they stand there, but for addresses and ports, before two gateways."""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from support.gateway import DEADLINE
from support.sessions import sections

PAGE = "docs/load-balancers.md"
HOSTS = {"one": "10.0.0.11", "two": "10.0.0.12"}
"""The page's gateways; each has REST at 6333, gRPC at 6334 and its health listener at 9334."""
HOST = "127.0.0.1"


def free_ports(count: int) -> list[int]:
    """Ports for what must come back at the port that it had."""
    held = [socket.create_server((HOST, 0)) for _ in range(count)]
    ports = [sock.getsockname()[1] for sock in held]
    for sock in held:
        sock.close()
    return ports


def _configured(title: str, gateways: Sequence[Sequence[int]], rest: int, grpc: int) -> str:
    (block,) = (one for one in sections(PAGE)[title] if one.language == title.lower())
    text = block.text
    for host, ports in zip(HOSTS.values(), gateways, strict=True):
        of = dict(zip((6333, 6334, 9334), ports, strict=True))
        text = re.sub(rf"{host}:(\d+)", lambda found, of=of: f"{HOST}:{of[int(found[1])]}", text)  # type: ignore[misc]
        text = re.sub(rf"({HOST}:{ports[0]} .*check port )9334", rf"\g<1>{ports[2]}", text)
    listens = {6333: f"{HOST}:{rest}", 6334: f"{HOST}:{grpc}"}
    return re.sub(r"(bind :|listen )(\d+)", lambda found: found[1].rstrip(":") + listens[int(found[2])], text)


@contextmanager
def balancer(title: str, directory: Path, gateways: Sequence[Sequence[int]]) -> Iterator[tuple[int, int]]:
    """Its ports of REST and gRPC. ``gateways`` are their ports of REST, gRPC and health."""
    program = shutil.which(title.lower())
    if program is None:
        pytest.skip(f"{title} is not installed")
    rest, grpc = free_ports(2)
    text = _configured(title, gateways, rest, grpc)
    path = directory / f"{title}.cfg"
    if title == "nginx":
        module = "load_module modules/ngx_stream_module.so;\n"
        text = f"{module}daemon off;\nerror_log stderr;\npid {directory}/nginx.pid;\nevents {{}}\n{text}"
        command = [program, "-p", "/usr/share/nginx", "-c", str(path)]
    else:
        text = f"global\n    maxconn 100\n{text}"
        command = [program, "-db", "-q", "-f", str(path)]
    path.write_text(text)
    with (directory / f"{title}.log").open("wb") as log:
        process = subprocess.Popen(command, stderr=log)
    try:
        for port in (rest, grpc):
            _listens(port, process)
        yield rest, grpc
    finally:
        process.terminate()
        process.wait(DEADLINE)


def _listens(port: int, process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + DEADLINE
    while True:
        with suppress(ConnectionRefusedError), socket.create_connection((HOST, port), DEADLINE):
            return
        assert process.poll() is None, "the balancer has ended"
        assert time.monotonic() < end, "the balancer does not listen"
        time.sleep(0.01)
