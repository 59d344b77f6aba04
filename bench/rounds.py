"""Interleaved rounds: in each, every contender does the same work for a moment, one right after the other.

A machine's speed drifts, with its frequency, its caches and its neighbours. What a round meets, all contenders of that
round meet; so a round's ratio says more than any average of its parts.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from bench.build import Programs
from bench.errors import AbsentError, BenchError
from bench.figures import Sample
from bench.generator import Generator
from bench.journal import Journal
from bench.peers.peer import Peer, Program
from bench.process import Running, running
from bench.results import Measured, Results
from bench.site import Site
from bench.workloads import CLASSIC, Workload

_START = 0.4
"""Seconds until a contender serves."""


@dataclass(frozen=True, slots=True)
class Setting:
    """Place, certificates and upstream of the contenders. ``download``: its size in bytes."""

    directory: Path
    site: Site
    behind: tuple[int, int]
    generator: Generator
    journal: Journal
    programs: Programs
    download: int

    def start(self, stack: ExitStack, peer: Peer, program: Program) -> Running:
        return stack.enter_context(running(peer, program, self.directory / peer.name, self.site, self.behind))


def locate(peers: Iterable[Peer], venv: Path, failed: Mapping[str, str], results: Results) -> dict[Peer, Program]:
    """The programs that are there; ``results`` is told of those and of the others. ``failed`` are pip's reasons."""
    found: dict[Peer, Program] = {}
    for peer in peers:
        try:
            found[peer] = program = peer.locate(venv)
        except (AbsentError, OSError) as error:
            reason = next((why for package, why in failed.items() if package in str(error)), "")
            results.absent[peer.name] = reason or str(error)
        else:
            results.contenders[peer.name] = program.version
            if peer.note:
                results.notes[peer.name] = peer.note
    return found


def run_rounds(
    setting: Setting, programs: Mapping[Peer, Program], workloads: Iterable[Workload], rounds: int, results: Results
) -> None:
    """``results`` grows with each workload of each round, and so does what the journal keeps."""
    chosen = list(workloads)
    with ExitStack() as stack:
        contenders: dict[str, Running] = {}
        for peer, program in programs.items():
            if not any(takes(peer, workload) for workload in chosen):
                continue
            try:
                contenders[peer.name] = setting.start(stack, peer, program)
            except AbsentError as error:
                results.absent[peer.name] = str(error)
        setting.journal.step(results, _START * len(programs), f"started {', '.join(contenders)}")
        able = {workload: dict(_able(setting, contenders, workload, results)) for workload in chosen}
        for number in range(rounds):
            for workload in filter(able.get, chosen):
                measured = results.workloads.setdefault(workload.name, Measured(workload.title, workload.unit))
                for name, sample in _round(setting, able[workload], workload, number):
                    measured.samples.setdefault(name, [None] * number).append(sample)
                planned = setting.generator.planned(workload) * len(measured.samples)
                setting.journal.step(results, planned, _line(number, rounds, workload, measured))


def planned_rounds(generator: Generator, peers: Iterable[Peer], workloads: Iterable[Workload], rounds: int) -> float:
    """Seconds."""
    chosen, contenders = list(workloads), list(peers)
    work = sum(generator.planned(each) for peer in contenders for each in chosen if takes(peer, each))
    return _START * len(contenders) + rounds * work


def takes(peer: Peer, workload: Workload) -> bool:
    return workload.kind in peer.serves and (not peer.only or workload.name in peer.only)


def _able(
    setting: Setting, contenders: Mapping[str, Running], workload: Workload, results: Results
) -> Iterator[tuple[str, Running]]:
    """Those that can do it: where not everybody has its key exchange, by a handshake. ``results`` has the others."""
    for name, contender in contenders.items():
        if not takes(contender.peer, workload):
            continue
        reason = "" if workload.group == CLASSIC else _refusal(setting.generator, contender, workload)
        if reason:
            results.unable.setdefault(workload.name, {})[name] = reason
        else:
            yield name, contender


def _refusal(generator: Generator, contender: Running, workload: Workload) -> str:
    try:
        return generator.send(contender, replace(workload, connections=1), requests=1).error
    except BenchError as error:
        return str(error)


def _round(
    setting: Setting, contenders: Mapping[str, Running], workload: Workload, number: int
) -> Iterator[tuple[str, Sample | None]]:
    """In another order each time, so that no contender always follows the same one."""
    names = list(contenders)
    shift = number % len(names) if names else 0
    for name in names[shift:] + names[:shift]:
        sample: Sample | None = None
        try:
            sample = setting.generator.measure(contenders[name], workload)
        except BenchError as error:
            setting.journal.say(f"  {workload.name} on {name}: {error}")
        else:
            if not sample.counts:
                setting.journal.say(f"  {workload.name} on {name}: {sample.errors} errors: {sample.error}")
        yield name, sample


def _line(number: int, rounds: int, workload: Workload, measured: Measured) -> str:
    costs = []
    for name, samples in measured.samples.items():
        last = samples[-1]
        cost = f"{last.cost(workload.unit):.0f}" if last is not None and last.counts else "–"
        costs.append(f"{name} {cost}")
    return f"round {number + 1}/{rounds}  {workload.title:<32} µs/{workload.unit}: {', '.join(costs)}"
