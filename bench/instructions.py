"""Instructions that the gateway executes for one request, counted by valgrind: free of noise, on a busy machine too.

A gateway serves two runs of the load generator, a short and a long one; what the long one has more is its requests'.
Kernel time is not counted, but system calls are.
"""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from bench.build import build
from bench.callgrind import INSTRUCTIONS, SYSTEM_CALLS, Profile
from bench.errors import AbsentError, BenchError
from bench.figures import Sample
from bench.generator import Generator
from bench.peers import OURS, PEERS
from bench.peers.peer import Place, Program, debian
from bench.process import Running, running, upstream
from bench.site import DOWNLOAD_SIZE, Site
from bench.workloads import Workload

VALGRIND = debian("valgrind", "valgrind", "--version")
_CALLGRIND = (
    *("--tool=callgrind", "--instr-atstart=no", "--collect-systime=usec"),
    *("--dump-line=no", "--compress-strings=no", "--compress-pos=no"),
)
_START = 120.0
"""Seconds until the gateway serves under valgrind."""
_CONNECTIONS = 8
"""Most of a workload's: handshakes are not what is counted, and take long."""
_LONG, _SHORT = 0.9, 0.1
"""Parts of the requests."""
_PROFILE = "callgrind.out"
_RARE = 0.01
"""System calls that a hundredth of the requests make are not told."""


@dataclass(frozen=True, slots=True)
class Count:
    """``each``: the profile of one request, or of one MB; ``form``: of the gateway, in its own words."""

    workload: Workload
    form: str
    each: Profile


def count_instructions(directory: Path, workload: Workload, requests: int, python: Path) -> Count:
    """``python``: of an environment in which tlsproxy is installed, in whichever form. Raises BenchError."""
    peer = replace(
        PEERS[OURS],
        locate=lambda venv: Program(str(python), VALGRIND(venv).version),
        command=lambda program, place: _command(VALGRIND(directory).path, PEERS[OURS].command(program, place), place),
        start_timeout=_START,
    )
    few = replace(workload, connections=min(workload.connections, _CONNECTIONS))
    program = peer.locate(directory)
    form = _form(program)
    programs = build(directory / "build")
    with (
        tempfile.TemporaryDirectory(prefix="tlsproxy-bench-") as place,
        upstream(programs, DOWNLOAD_SIZE) as behind,
    ):
        site = Site.create(Path(place, "site"))
        generator = Generator(programs.load, site)
        with running(peer, program, Path(place, "gateway"), site, behind) as gateway:
            _control(gateway, "--instr=on")
            generator.send(gateway, few, few.connections)  # what is done once
            profiles = [
                _run(generator, gateway, few, number)
                for number in (max(1, round(requests * _SHORT)), max(2, round(requests * _LONG)))
            ]
    (smaller, less), (larger, more) = profiles
    units = more.megabytes - less.megabytes if workload.unit == "MB" else more.requests - less.requests
    return Count(workload, form, larger.each(smaller, units))


def _command(valgrind: str, command: list[str], place: Place) -> list[str]:
    return [valgrind, *_CALLGRIND, f"--callgrind-out-file={place.directory / _PROFILE}", *command]


def _form(program: Program) -> str:
    command = [program.path, "-P", "-m", "tlsproxy", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BenchError(f"{program.path} has no tlsproxy: {done.stderr.strip()[-200:]}")
    return f"{done.stdout.strip()}, {program.path}"


def _run(generator: Generator, gateway: Running, workload: Workload, requests: int) -> tuple[Profile, Sample]:
    _control(gateway, "--zero")
    sample = generator.send(gateway, workload, requests)
    if not sample.counts:
        raise BenchError(f"{sample.errors} errors: {sample.error}")
    written = set(gateway.place.directory.glob(f"{_PROFILE}*"))
    _control(gateway, "--dump")
    (dumped,) = set(gateway.place.directory.glob(f"{_PROFILE}*")) - written
    with dumped.open() as lines:
        return Profile.read(lines), sample


def _control(gateway: Running, order: str) -> None:
    command = ["callgrind_control", order, str(gateway.process.pid)]
    try:
        subprocess.run(command, capture_output=True, text=True, check=True, timeout=_START)
    except (OSError, subprocess.SubprocessError) as error:
        raise AbsentError(f"callgrind_control: {error}") from None


def instruction_report(count: Count, most: int) -> Iterator[str]:
    """``most``: rows of each table."""
    unit, each = count.workload.unit, count.each
    total = each.total(INSTRUCTIONS)
    yield f"{count.workload.title}: {count.form}"
    yield f"{total:,.0f} instructions for a {unit}"
    for title, rows in (("module", each.by_module(INSTRUCTIONS)), ("function", each.by_function(INSTRUCTIONS))):
        yield f"\n{'instructions':>12}  {'part':>6}  {title}"
        yield from (f"{number:>12,.0f}  {number / total:>6.1%}  {name}" for name, number in rows[:most])
    yield f"\n{'calls':>12}  system calls, by function (where there is a vDSO, clocks need none)"
    yield from (f"{number:>12.2f}  {name}" for name, number in each.by_function(SYSTEM_CALLS)[:most] if number > _RARE)
