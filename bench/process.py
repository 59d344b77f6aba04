"""Processes of the bench: pinned to a core, ready when their ports answer, ended by their own id."""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.build import Programs
from bench.ending import starting
from bench.errors import AbsentError
from bench.peers.peer import Peer, Place, Program
from bench.site import Site

STOP_TIMEOUT = 10.0
_LOWEST_PORT = 10_000
_PRIORITY = "-8"
"""Niceness, where it is allowed: others on the machine get less in between."""


@contextlib.contextmanager
def started(cores: Sequence[int], command: Sequence[str], **options: Any) -> Iterator[subprocess.Popen[str]]:
    """On these cores, and ended at the end: by itself where this process is killed. ``options`` are Popen's."""
    nice = ["nice", "-n", _PRIORITY] if os.geteuid() == 0 else []
    told_to_end = ["setpriv", "--pdeathsig", "TERM"]
    pinned = [*told_to_end, *nice, "taskset", "-c", ",".join(map(str, cores)), *command]
    process = None
    try:
        with starting():
            process = subprocess.Popen(pinned, text=True, **options)
        yield process
    finally:
        if process is not None:
            with process:
                _stop(process)


def cores(workers: int) -> tuple[list[int], list[int]]:
    """Those of the proxy, and those of the generator and the upstream; on two cores, two workers have both."""
    usable = sorted(os.sched_getaffinity(0))
    if len(usable) == 1:
        return usable, usable
    return usable[:workers], usable[-1:]


@dataclass(frozen=True, slots=True)
class Running:
    peer: Peer
    process: subprocess.Popen[str]
    place: Place

    def pids(self) -> list[int]:
        """The process and all that descend from it."""
        children: dict[int, list[int]] = {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                with contextlib.suppress(OSError):  # it ended while we looked
                    parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                    children.setdefault(parent, []).append(int(entry.name))
        found = [self.process.pid]
        for pid in found:  # grows while it is walked
            found += children.get(pid, [])
        return found

    def port(self, kind: str) -> int:
        return {"http": self.place.http, "grpc": self.place.grpc, "tcp": self.place.tcp}[kind]


def free_ports(count: int) -> list[int]:
    """Ports that nobody has at this moment, and that the kernel gives to no client until they are bound."""
    clients = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    servers = range(_LOWEST_PORT, max(clients, 2 * _LOWEST_PORT))
    return list(itertools.islice(filter(_is_free, random.sample(servers, len(servers))), count))


def _is_free(port: int) -> bool:
    with socket.socket() as sock, contextlib.suppress(OSError):
        sock.bind(("127.0.0.1", port))
        return True
    return False


@contextlib.contextmanager
def upstream(programs: Programs, download: int) -> Iterator[tuple[int, int]]:
    """Its ports of HTTP/1.1 and of gRPC."""
    command = [str(programs.upstream), str(download)]
    with started(cores(1)[1], command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None  # noqa: S101 - for the type
        http, grpc = process.stdout.readline().split()
        yield int(http), int(grpc)


@contextlib.contextmanager
def running(peer: Peer, program: Program, directory: Path, site: Site, behind: tuple[int, int]) -> Iterator[Running]:
    """A contender that serves. Raises AbsentError, with what it said, where it does not."""
    directory.mkdir(parents=True, exist_ok=True)
    http, grpc, tcp = free_ports(3)
    place = Place(directory, site, http, grpc, tcp, *behind, peer.workers)
    said = directory / "output.log"
    home = {name: str(directory) for name in ("HOME", "XDG_DATA_HOME", "XDG_CONFIG_HOME")}
    with (
        said.open("wb") as output,
        started(
            cores(peer.workers)[peer.behind],
            peer.command(program, place),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=os.environ | home,
        ) as process,
    ):
        contender = Running(peer, process, place)
        try:
            for kind in sorted(peer.serves):
                _wait_for(contender, kind)
        except TimeoutError:
            raise AbsentError(f"it does not start: {said.read_text(errors='replace')[-300:].strip()}") from None
        yield contender


def _wait_for(contender: Running, kind: str) -> None:
    """For a handshake: a socket may be bound before the processes are there that serve it, and that are measured."""
    end = time.monotonic() + contender.peer.start_timeout
    context = contender.place.site.client()
    context.set_alpn_protocols(["h2" if kind == "grpc" else "http/1.1"])
    while contender.process.poll() is None and time.monotonic() < end:
        with (
            contextlib.suppress(OSError),
            socket.create_connection(("127.0.0.1", contender.port(kind)), timeout=1) as sock,
            context.wrap_socket(sock, server_hostname="localhost"),
        ):
            return
        time.sleep(0.02)
    raise TimeoutError


def _stop(process: subprocess.Popen[str]) -> None:
    """Waits for it, and is not to be refused."""
    process.terminate()
    try:
        process.wait(STOP_TIMEOUT)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
