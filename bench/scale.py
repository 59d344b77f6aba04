"""What it costs to have much of something: CPU of tlsproxy by size of bodies, policies, CRLs, number of connections.

Each size is a gateway of its own, and the sizes of a row are measured as contenders are: interleaved, in rounds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any

import yaml

from bench.errors import BenchError
from bench.figures import growth
from bench.peers import OURS, PEERS
from bench.peers.peer import Place, Program
from bench.peers.tlsproxy import IDENTITIES, ROLES, configuration
from bench.report import table
from bench.results import Measured, Results
from bench.rounds import Setting
from bench.site import DIMENSIONS, Site, http, search
from bench.workloads import BY_NAME, Workload

Sections = dict[str, Any]
_NEW_HEAD = BY_NAME["get-varying"]
_FIRST_SERIAL = 1 << 70
_BUSY = 10
"""Connections that ask, of those that are open."""


@dataclass(frozen=True, slots=True)
class Dimension:
    """``sections`` of the configuration for a size, ``prepare`` what it needs in the site; ``sized``: the workload."""

    name: str
    title: str
    sizes: tuple[int, ...]
    workload: Workload
    sections: Callable[[int], Sections] = lambda _size: {}
    prepare: Callable[[Site, int], object] = lambda _site, _size: None
    sized: Callable[[Workload, int], Workload] = field(default=lambda workload, _size: workload)


def _roles(size: int) -> Sections:
    """Each with a rule's worth of rights; the caller's is the last."""
    others = {f"role-{n}": {"access": [{"collection": f"docs-{n}", "access": "rw"}]} for n in range(size - 1)}
    return {"roles": others | ROLES}


def _rules(size: int) -> Sections:
    others = [{"name": f"rule-{n}", "match": {"cn": f"service-{n}"}, "role": "reader"} for n in range(size)]
    return {"identities": [*others, *IDENTITIES]}


def _globs(size: int) -> Sections:
    others = [{"name": f"rule-{n}", "match": {"cn": f"service-{n}-*"}, "role": "reader"} for n in range(size)]
    return {"identities": [*others, *IDENTITIES]}


def _collections(size: int) -> Sections:
    """Those of the caller's own role; the one that it asks for is the last."""
    names = [*(f"docs-{n}" for n in range(size - 1)), "items"]
    return {"roles": ROLES | {"limited": {"access": [{"collection": name, "access": "rw"} for name in names]}}}


def _crl_name(size: int) -> str:
    return f"crl-{size}.pem"


def _write_crl(site: Site, size: int) -> None:
    site.path(_crl_name(size)).write_bytes(site.authority.crl_pem(range(_FIRST_SERIAL, _FIRST_SERIAL + size)))


def _body_name(size: int) -> str:
    return f"search-{size}"


def _write_body(site: Site, size: int) -> None:
    body = search(size * DIMENSIONS // 12)
    site.request(_body_name(size)).write_bytes(http("POST", "/collections/items/points/search", body))


DIMENSIONS_OF_SCALE: tuple[Dimension, ...] = (
    Dimension(
        "body",
        "search, body inspected, by KB of body",
        (1, 10, 100, 1000),
        replace(BY_NAME["search-inspected"], connections=16),
        prepare=_write_body,
        sized=lambda workload, size: replace(workload, request=_body_name(size)),
    ),
    Dimension("roles", "GET with a new head, by roles", (1, 10, 100, 1000), _NEW_HEAD, _roles),
    Dimension("rules", "handshake, by rules before the match", (1, 100, 10_000), BY_NAME["handshake"], _rules),
    Dimension("globs", "handshake, by rules with globs before it", (1, 100, 10_000), BY_NAME["handshake"], _globs),
    Dimension(
        "collections",
        "GET with a new head, by collections of the role",
        (1, 10, 100, 1000),
        replace(_NEW_HEAD, client="limited"),
        _collections,
    ),
    Dimension(
        "connections",
        "small GET, by connections that are open",
        (10, 100, 1000, 10_000),
        replace(BY_NAME["get"], connections=_BUSY),
        sized=lambda workload, size: replace(workload, resting=size - _BUSY),
    ),
    Dimension(
        "crl",
        "handshake, by revoked certificates in a CRL",
        (0, 1000, 100_000, 500_000),
        BY_NAME["handshake"],
        lambda size: {"tls": {"crl": [_crl_name(size)]}} if size else {},
        prepare=lambda site, size: _write_crl(site, size) if size else None,
    ),
)


def run_scale(setting: Setting, rounds: int, results: Results, only: Sequence[str] = ()) -> None:
    for dimension in DIMENSIONS_OF_SCALE:
        if only and dimension.name not in only:
            continue
        measured = Measured(dimension.title, dimension.workload.unit)
        results.workloads[dimension.name] = measured
        try:
            _measure(setting, dimension, rounds, measured)
        except BenchError as error:
            setting.say(f"  {dimension.title}: {error}")


def _measure(setting: Setting, dimension: Dimension, rounds: int, measured: Measured) -> None:
    peer, program = PEERS[OURS], PEERS[OURS].locate(setting.directory)
    with ExitStack() as stack:
        gateways = {}
        for size in dimension.sizes:
            setting.say(f"{dimension.title}: {size:,}")
            dimension.prepare(setting.site, size)
            variant = replace(peer, name=f"{dimension.name}-{size}", command=_command(dimension.sections(size)))
            gateways[size] = setting.start(stack, variant, program)
        for number in range(rounds):
            for size, gateway in gateways.items():
                sample = setting.generator.measure(gateway, dimension.sized(dimension.workload, size))
                measured.samples.setdefault(str(size), []).append(sample)
                if not sample.counts:
                    setting.say(f"  {size}: {sample.errors} errors: {sample.error}")
            setting.say(f"  round {number + 1}/{rounds}: " + ", ".join(_last(measured)))


def _last(measured: Measured) -> Iterator[str]:
    for size, samples in measured.samples.items():
        last = samples[-1]
        cost = f"{last.cost(measured.unit):.0f} µs" if last is not None and last.counts else "–"
        yield f"{int(size):,}: {cost}"


def _command(sections: Sections) -> Callable[[Program, Place], list[str]]:
    def command(program: Program, place: Place) -> list[str]:
        config = configuration(place, **sections)
        config["tls"]["crl"] = [str(place.site.path(name)) for name in config["tls"].get("crl", ())]
        path = place.write("tlsproxy.yaml", yaml.safe_dump(config))
        return [program.path, "-m", "tlsproxy", "run", "--config", str(path)]

    return command


def scale_report(results: Results) -> Iterator[str]:
    """For each size its cost; ``growth`` is the exponent of the steepest step between two sizes: 1 would be linear."""
    for measured in results.workloads.values():
        told = {int(size): summary for size in measured.samples if (summary := measured.summary(size)) is not None}
        if not told:
            continue
        first = told[min(told)].cost
        rows = [
            [f"{size:,}", f"{each.cost:.0f} ({each.cost_min:.0f})", f"{each.cost / first:.2f}", f"{each.memory:.0f}"]
            for size, each in told.items()
        ]
        yield from table(measured.title, [f"µs/{measured.unit}", "× first", "MiB"], rows)
        yield f"  growth {growth((size, each.cost) for size, each in told.items() if size):.2f}"
