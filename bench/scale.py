"""What it costs to have much of something: CPU of tlsproxy by size of bodies, policies, CRLs, number of connections.

Each size is a gateway of its own, and the sizes of a row are measured as contenders are: interleaved, in rounds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace

import yaml

from bench.dimensions import SCALE, Dimension, Sections
from bench.errors import BenchError
from bench.figures import Summary, growth
from bench.generator import Generator
from bench.peers import OURS, PEERS
from bench.peers.peer import Place, Program
from bench.peers.tlsproxy import configuration
from bench.process import upstream
from bench.report import table
from bench.results import Measured, Results
from bench.rounds import Setting

_START = 1.5
"""Seconds that a gateway needs, and what is prepared for it."""


def run_scale(
    setting: Setting, program: Program, rounds: int, results: Results, dimensions: Sequence[Dimension] = SCALE
) -> None:
    setting.journal.begin(sum(_planned(setting.generator, dimension, rounds) for dimension in dimensions))
    for dimension in dimensions:
        results.workloads[dimension.name] = Measured(dimension.title, dimension.workload.unit)
        try:
            _measure(setting, program, dimension, rounds, results)
        except BenchError as error:
            setting.journal.say(f"  {dimension.title}: {error}")


def _planned(generator: Generator, dimension: Dimension, rounds: int) -> float:
    starts = (_START + generator.planned_rest(dimension.resting(size)) for size in dimension.sizes)
    return sum(starts) + rounds * len(dimension.sizes) * generator.planned(dimension.workload)


def _measure(setting: Setting, program: Program, dimension: Dimension, rounds: int, results: Results) -> None:
    peer, generator, journal, measured = (
        PEERS[OURS],
        setting.generator,
        setting.journal,
        results.workloads[dimension.name],
    )
    with ExitStack() as stack:
        gateways = {}
        for size in dimension.sizes:
            dimension.prepare(setting.site, size)
            behind = _upstream(setting, stack, program, dimension, size)
            command = _command(dimension.sections(size), behind)
            variant = replace(peer, name=f"{dimension.name}-{size}", command=command)
            gateways[size] = setting.start(stack, variant, program)
            resting = dimension.resting(size)
            if resting:
                idle = stack.enter_context(generator.resting(gateways[size], dimension.workload, resting))
                if idle.connections < resting:
                    journal.say(f"  only {idle.connections:,} connections rest: {idle.error}")
            journal.step(results, _START + generator.planned_rest(resting), f"{dimension.title}: {size:,}")
        for number in range(rounds):
            for size, gateway in gateways.items():
                sample = generator.measure(gateway, dimension.sized(dimension.workload, size))
                measured.samples.setdefault(str(size), []).append(sample)
                if not sample.counts:
                    journal.say(f"  {size}: {sample.errors} errors: {sample.error}")
            planned = len(gateways) * generator.planned(dimension.workload)
            journal.step(results, planned, f"  round {number + 1}/{rounds}: " + ", ".join(_last(measured)))


def _last(measured: Measured) -> Iterator[str]:
    for size, samples in measured.samples.items():
        last = samples[-1]
        cost = f"{last.cost(measured.unit):.0f} µs" if last is not None and last.counts else "–"
        yield f"{int(size):,}: {cost}"


def _upstream(setting: Setting, stack: ExitStack, program: Program, dimension: Dimension, size: int) -> Sections | None:
    """The section of that name where it is not the usual one, with the processes started that it speaks of."""
    if dimension.tls(size):
        # Another gateway ends the TLS, on the core of the upstream.
        inner = replace(PEERS[OURS], name=f"{dimension.name}-inner", behind=True)
        ended = setting.start(stack, inner, program).place
        names = {"ca_cert": "ca.pem", "cert": "client.pem", "key": "client.key"}
        tls = {name: str(setting.site.path(file)) for name, file in names.items()}
        return {"rest": f"https://localhost:{ended.http}", "grpc": f"https://localhost:{ended.grpc}", "tls": tls}
    nodes = []
    for number in range(dimension.nodes(size)):
        http, grpc = stack.enter_context(upstream(setting.programs, setting.download))
        local = "http://127.0.0.1"
        nodes.append({"name": f"node-{number}", "rest": f"{local}:{http}", "grpc": f"{local}:{grpc}"})
    return {"nodes": nodes} if nodes else None


def _command(sections: Sections, behind: Sections | None) -> Callable[[Program, Place], list[str]]:
    def command(program: Program, place: Place) -> list[str]:
        config = configuration(place, **sections)
        config["tls"]["crl"] = [str(place.site.path(name)) for name in config["tls"].get("crl", ())]
        config["upstream"] = behind or config["upstream"]
        path = place.write("tlsproxy.yaml", yaml.safe_dump(config))
        return [program.path, "-P", "-m", "tlsproxy", "run", "--config", str(path)]

    return command


def scale_report(results: Results) -> Iterator[str]:
    """The costs of each size, and then in one table how they grow."""
    grows = []
    for measured in results.workloads.values():
        told = {int(size): summary for size in measured.samples if (summary := measured.summary(size)) is not None}
        if not told:
            continue
        rows = [
            [f"{size:,}", f"{each.cost:.0f} ({each.cost_min:.0f})", f"{each.rate:,.0f}", f"{each.memory:.0f}"]
            for size, each in told.items()
        ]
        yield from table(measured.title, [f"µs/{measured.unit}", f"{measured.unit}s/s", "MiB"], rows)
        grows.append([measured.title, *_growth(told)])
    yield from table("How the cost of one grows", ["from", "to", "× size", "× cost", "growth"], grows)
    yield "  growth: the exponent of the steepest step between two sizes; 1 would be linear"


def _growth(told: dict[int, Summary]) -> Iterable[str]:
    """Of the largest size to the smallest, and between."""
    smallest, largest = min(told), max(told)
    more = f"{largest / smallest:,.0f}" if smallest else "–"
    exponent = growth((size, each.cost) for size, each in told.items() if size)
    return (
        f"{smallest:,}", f"{largest:,}", more, f"{told[largest].cost / told[smallest].cost:.2f}", f"{exponent:.2f}"
    )  # fmt: skip
