"""The report in the terminal: costs, ratios to each peer, targets. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from bench.peers import OURS, WORKERS
from bench.results import Results
from bench.standing import standings
from bench.targets import BESIDE, IDLE, TARGETS


def report(results: Results) -> Iterator[str]:
    yield from _header(results)
    peers = [name for name in results.contenders if name != OURS and name not in results.absent]
    if results.workloads:
        yield from _costs(results, [OURS, *peers])
        yield from _ratios(results, peers)
        yield from _besides(results)
        yield from _speeds(results, [OURS, *peers])
        yield from _workers(results)
    if results.idle:
        yield from _idle(results, [OURS, *peers])
    if results.rotation:
        yield from _rotation(results)
    aims = [each for row in standings(results) for each in row.of.values() if each.target is not None]
    if aims:
        yield f"\n{sum(each.is_reached for each in aims)} of {len(aims)} targets are reached"


def _header(results: Results) -> Iterator[str]:
    about, machine = results.about, results.about["machine"]
    yield f"{about['date']}  {about['command']}  (commit {about['commit'] or 'unknown'})"
    yield (
        f"{machine['processor']}, {machine['cores']} cores, {machine['memory_gib']} GiB, Linux {machine['kernel']}, "
        f"{machine['system']}; Python {about['python']}, {about['openssl']}; load average before: "
        f"{about['load_average_before']:.2f}"
    )
    if not results.is_whole:
        yield "INTERRUPTED: this is what was measured until then"
    yield "  ".join(f"{name} {version}" for name, version in results.contenders.items())
    yield from (f"{name}: {note}" for name, note in results.notes.items())
    yield from (f"ABSENT {name}: {reason}" for name, reason in results.absent.items())
    for workload, reasons in results.unable.items():
        yield from (f"UNABLE {name}: {workload}: {reason}" for name, reason in reasons.items())


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    """The first column to the left, the others to the right."""
    lines = [[title, *columns], *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(columns) + 1)]
    yield ""
    for line in lines:
        first, *others = (
            cell.ljust(width) if not at else cell.rjust(width)
            for at, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        yield "  ".join([first, *others]).rstrip()


def _costs(results: Results, names: Sequence[str]) -> Iterator[str]:
    rows = []
    for measured in results.workloads.values():
        cells = []
        for name in names:
            told = measured.summary(name)
            cells.append("–" if told is None else f"{told.cost:.0f} ({told.cost_min:.0f})")
        rows.append([f"{measured.title} /{measured.unit}", *cells])
    yield from table("CPU in µs: median (minimum)", names, rows)


def _ratios(results: Results, peers: Sequence[str]) -> Iterator[str]:
    rows = []
    for name, measured in results.workloads.items():
        cells = []
        for peer in peers:
            told, target = measured.ratio(peer), TARGETS.get(name, {}).get(peer)
            cells.append(_against(told.median, target) + f" ({told.min:.2f})" if told else "–")
        rows.append([measured.title, *cells])
    yield from table("CPU of tlsproxy / peer: median (minimum) of paired rounds", peers, rows)
    yield "  + reaches the target, ! misses it"


def _besides(results: Results) -> Iterator[str]:
    """Workloads of ours beside those that they are paired with."""
    rows = []
    for name, (other, target) in BESIDE.items():
        told = results.beside(name, other)
        if told is not None:
            titles = (results.workloads[each].title for each in (name, other))
            rows.append([" / ".join(titles), _against(told.median, target) + f" ({told.min:.2f})"])
    if rows:
        yield from table("CPU of tlsproxy beside another workload: median (minimum) of paired rounds", ["ratio"], rows)


def _against(value: float, target: float | None) -> str:
    return f"{value:.2f}" + ("" if target is None else "+" if value <= target else f"! {target:.2f}")


def _speeds(results: Results, names: Sequence[str]) -> Iterator[str]:
    rows = []
    for measured in results.workloads.values():
        for name in names:
            told = measured.summary(name)
            if told is not None:
                trouble = f"{told.errors}: {told.error}" if told.errors else ""
                figures = (told.rate, told.p50, told.p99, told.throughput, told.memory)
                rows.append([f"{measured.title}  {name}", *(f"{figure:,.2f}" for figure in figures), trouble])
            elif name in measured.samples:
                last = measured.samples[name][-1]
                rows.append([f"{measured.title}  {name}", *["–"] * 5, "failed" if last is None else last.error])
    yield from table("", ["requests/s", "p50 ms", "p99 ms", "MB/s", "MiB", "errors"], rows)


def _workers(results: Results) -> Iterator[str]:
    """One worker and two, side by side, of what both did."""
    rows = []
    for measured in results.workloads.values():
        for one, two in WORKERS.items():
            told = measured.summary(one), measured.summary(two)
            if told[0] is not None and told[1] is not None:
                rates, costs = [each.rate for each in told if each], [each.cost for each in told if each]
                figures = (*rates, rates[1] / rates[0], *costs, costs[1] / costs[0])
                forms = ("{:,.0f}", "{:,.0f}", "{:.2f}") * 2
                cells = [form.format(figure) for form, figure in zip(forms, figures, strict=True)]
                rows.append([f"{measured.title}  {one}", *cells])
    if rows:
        columns = ["requests/s of 1", "of 2", "×", "CPU µs of 1", "of 2", "×"]
        yield from table("One worker and two", columns, rows)


def _idle(results: Results, names: Sequence[str]) -> Iterator[str]:
    rows = []
    for count, told in results.idle.items():
        cells, ratios = [], []
        for name in names:
            idle = told.get(name)
            cells.append("–" if idle is None else f"{idle.bytes_each / 1024:.1f}" + ("!" if idle.errors else ""))
            ratio = None if name == OURS else results.idle_ratio(count, name)
            ratios.append("" if ratio is None else _against(ratio, IDLE.get(name)))
        rows += [[f"{count} connections", *cells], ["  tlsproxy / peer", *ratios]]
    yield from table("Memory of an idle connection in KiB", names, rows)


def _rotation(results: Results) -> Iterator[str]:
    columns = ["taken up", "requests", "handshakes", "failed", "p99 ms", "without", "p99 ms of handshakes", ""]
    rows = []
    for name, told in results.rotation.items():
        counts = [
            f"{told.taken} of {told.rotations}",
            *(f"{n:,}" for n in (told.requests, told.handshakes, told.failed)),
        ]
        times = [f"{ms:.2f}" for ms in (told.p99, told.p99_still, told.p99_handshake)]
        rows.append([name, *counts, *times, told.error])
    yield from table("A new server certificate each second", columns, rows)
