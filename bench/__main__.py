"""The command line: `python -m bench compile|run|quick|scale|instructions|leases|show|table|plot|compare`."""

from __future__ import annotations

import contextlib
import resource
import sys
from collections.abc import Iterator
from pathlib import Path

import click

from bench.compare import TOLERANCE, comparison
from bench.compiled import compile_form
from bench.dimensions import SCALE
from bench.ending import exit_when_told
from bench.errors import AbsentError, BenchError
from bench.instructions import count_instructions, instruction_report
from bench.leases import lease_report, scenarios, simulated
from bench.peers import PLAIN
from bench.report import report
from bench.results import Results
from bench.scale import scale_report
from bench.session import Plan, plot, run_scale_session, run_session
from bench.standing import markdown
from bench.targets import AIMED_AT
from bench.workloads import BY_NAME, IDLE_CONNECTIONS, QUICK


def _names(_context: click.Context, _parameter: click.Parameter, value: str | None) -> tuple[str, ...]:
    return tuple(value.split(",")) if value else ()


_data = click.option(
    "--dir", "directory", default="bench-data", show_default=True, type=click.Path(file_okay=False, path_type=Path)
)
_only = click.option("--only", callback=_names, metavar="PEER,…", help="These contenders beside tlsproxy.")
_workloads = click.option("--workloads", callback=_names, metavar="NAME,…", help=f"Of {', '.join(BY_NAME)}.")
_FILES = 65_536
_file = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.group()
def main() -> None:
    """Measure tlsproxy beside nginx, HAProxy, nghttpx, Envoy, Caddy, hitch and stunnel."""
    exit_when_told()


@main.command()
@_data
@_only
@_workloads
@click.option("--rounds", default=11, show_default=True, type=click.IntRange(1))
@click.option("--seconds", default=0.3, show_default=True, help="Of a workload on a contender in a round.")
@click.option("--idle/--no-idle", default=True, help="Whether to measure idle connections.")
@click.option("--rotation/--no-rotation", default=True, help="Whether to measure while certificates change.")
def run(
    directory: Path,
    only: tuple[str, ...],
    workloads: tuple[str, ...],
    rounds: int,
    seconds: float,
    *,
    idle: bool,
    rotation: bool,
) -> None:
    """All of it: less than 25 minutes."""
    connections = IDLE_CONNECTIONS if idle else ()
    _run(directory, Plan(only, workloads or tuple(BY_NAME), rounds, seconds, connections, rotation=rotation))


@main.command(name="compile")
@_data
def compile_ours(directory: Path) -> None:
    """Tlsproxy as it ships, for the other commands: minutes, once for each state of the sources.

    Where it cannot be compiled it says why, and they measure the plain form alone.
    """
    try:
        compile_form(directory, _say)
    except AbsentError as error:
        _say(f"tlsproxy: {error}")


@main.command()
@_data
@_only
def quick(directory: Path, only: tuple[str, ...]) -> None:
    """The main workloads in three minutes, beside the peers that have targets, unless --only names others."""
    _run(directory, Plan(only or (PLAIN, *AIMED_AT), QUICK, rounds=5, seconds=0.1, connections=(), rotation=False))


@main.command()
@click.argument("workload", default="get", type=click.Choice(list(BY_NAME)))
@_data
@click.option("--requests", default=3000, show_default=True, type=click.IntRange(2))
@click.option("--python", default=sys.executable, type=_file, help="Of an environment that has tlsproxy, in any form.")
@click.option("--top", default=20, show_default=True, help="Rows of each table.")
def instructions(workload: str, directory: Path, requests: int, python: Path, top: int) -> None:
    """Cost of a request of a workload, counted by valgrind: the same on a busy machine."""
    with _told():
        counted = count_instructions(directory, BY_NAME[workload], requests, python)
    click.echo("\n".join(instruction_report(counted, top)))


@main.command()
@click.option("--gateways", default="2,10,100,1000", show_default=True, callback=_names, metavar="N,…")
@click.option("--limit", default=1000.0, show_default=True, help="Requests per second.")
@click.option("--seconds", default=20.0, show_default=True, help="Simulated time.")
@click.option("--round-trip", default=0.002, show_default=True, help="Seconds to the store and back.")
def leases(gateways: tuple[str, ...], limit: float, seconds: float, round_trip: float) -> None:
    """Simulate gateways that share a limit: error of the whole, and load on the store."""
    cases = [one for number in map(int, gateways) for one in scenarios(number, limit, seconds)]
    found = {one: simulated(one, round_trip=round_trip) for one in cases}
    click.echo("\n".join(lease_report(found)))


def _run(directory: Path, plan: Plan) -> None:
    _raise_file_limit()
    with _told():
        results = run_session(directory, plan, _command_line(), _say)
    click.echo("\n".join(report(results)))
    click.echo(f"\n{directory}/results.json, and plots beside it")


@contextlib.contextmanager
def _told() -> Iterator[None]:
    """What can go wrong, in a line."""
    try:
        yield
    except BenchError as error:
        raise click.ClickException(str(error)) from None


def _command_line() -> str:
    return "python -m bench " + " ".join(sys.argv[1:])


def _say(line: str) -> None:
    """Progress, beside the report."""
    click.echo(line, err=True)


def _raise_file_limit() -> None:
    """Contenders inherit it; 10,000 connections take 20,000 files, and HAProxy wants room beside them."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    with contextlib.suppress(ValueError):  # not everybody may
        resource.setrlimit(resource.RLIMIT_NOFILE, (_FILES, max(hard, _FILES)))


@main.command()
@_data
@click.option("--rounds", default=7, show_default=True, type=click.IntRange(1))
@click.option("--seconds", default=0.4, show_default=True, help="Of a size in a round.")
@click.option("--only", callback=_names, metavar="NAME,…", help="These rows of the cost table.")
def scale(directory: Path, only: tuple[str, ...], rounds: int, seconds: float) -> None:
    """The cost table: how CPU grows with bodies, roles, rules, collections, connections, CRLs."""
    _raise_file_limit()
    with _told():
        results = run_scale_session(directory, rounds, seconds, only, _command_line(), _say)
    click.echo("\n".join(scale_report(results)))


@main.command()
@click.argument("results", type=_file)
def show(results: Path) -> None:
    """The report of an earlier run."""
    with _told():
        told = Results.read(results)
    is_scale = set(told.workloads) <= {dimension.name for dimension in SCALE}
    click.echo("\n".join(scale_report(told) if is_scale else report(told)))


@main.command(name="table")
@click.argument("results", type=_file)
def table_of(results: Path) -> None:
    """The table of docs/benchmark.md: the ratios beside their targets."""
    with _told():
        click.echo("\n".join(markdown(Results.read(results))))


@main.command(name="plot")
@click.argument("results", type=_file)
def plot_again(results: Path) -> None:
    """The plots of an earlier run, or of one that was ended, beside it."""
    plot(results, _say)


@main.command()
@click.argument("old", type=_file)
@click.argument("new", type=_file)
@click.option("--tolerance", default=TOLERANCE, show_default=True, help="What is noise: a part of 1.")
def compare(old: Path, new: Path, tolerance: float) -> None:
    """What became slower, as seen against the peers: exit status 1 if anything did."""
    with _told():
        lines, worse = comparison(Results.read(old), Results.read(new), tolerance)
    click.echo("\n".join(lines))
    raise SystemExit(worse)


if __name__ == "__main__":
    main()
