"""A status on a terminal: the rows of :mod:`tlsproxy.admin.view`, drawn with rich.

Texts are passed to rich as text, never as its markup, since strangers chose some of them.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from tlsproxy.admin import view
from tlsproxy.admin.view import OUTCOMES, Traffic
from tlsproxy.cli.admin_client import AdminError
from tlsproxy.cli.matrix import WORDS, Matrix, Row
from tlsproxy.text import utc_time

WIDTH: Final = 160
"""Columns where the output has no width: a pipe or a file."""
_BAR: Final = 16
_STYLES: Final = {"ok": "green", "unchanged": "green", "soon": "yellow", "over": "bold red", "failed": "bold red"}
_CELLS: Final = {"allowed": "blue", "denied": "red", "failed": "magenta"}
MATRIX_WIDTH: Final = 100
"""Columns of the table of what a role may do."""
_WIDEST: Final = 24
"""Of a pattern in it."""
_GAP: Final = 2
SHORT: Final = 3
"""Changes of a reload on a small screen."""
STEP: Final = 2
"""Slots in one column of a plot."""
LONG_STEP: Final = 5
"""Slots in one column of a plot on a small screen."""


@dataclass(frozen=True, slots=True)
class Glyphs:
    """``heights`` of a plot's columns from empty to full; the two parts of a bar."""

    heights: str
    full: str
    empty: str


BLOCKS: Final = Glyphs(" ▁▂▃▄▅▆▇█", "█", "░")
PLAIN: Final = Glyphs(" .:-=+*#@", "#", ".")


def show(status: Mapping[str, Any], now: float) -> None:
    console = _console()
    # A sentence stays on one line for grep, where no terminal's edge cuts it.
    console.print(_overview(status, now, _glyphs_for(console)), soft_wrap=not console.is_terminal)


def follow(fetch: Callable[[], Mapping[str, Any]], interval: float) -> None:
    """Redraw until KeyboardInterrupt. A gateway that does not answer is asked again: it may be restarting."""
    console = _console()
    with Live(console=console, screen=True, auto_refresh=False) as live:
        while True:
            try:
                view_now = _overview(fetch(), time.time(), _glyphs_for(console), rows=console.height)
            except AdminError as error:
                view_now = Text(str(error), "bold red")
            live.update(view_now, refresh=True)
            time.sleep(interval)


def show_connections(status: Mapping[str, Any]) -> None:
    rows = view.connections(status["connections"], with_ca=len(status["authorities"]) > 1)
    _console().print(_connections(rows, status["connections"]["open"] - len(rows), short=False))


def show_matrix(matrix: Matrix) -> None:
    """As many columns beside each other as fit; their tables are printed one after the other."""
    console = _console()
    console.print(Text(f"role {matrix.role}: {matrix.rights}"), soft_wrap=True)
    labels = max(len(label) for heading, rows in matrix.groups for label in (heading, *map(_label, rows)))
    widths = [min(max(map(len, (name, *cells))), _WIDEST) for name, cells in matrix.by_column()]
    first = 0
    while first < len(widths):
        last, left = first + 1, MATRIX_WIDTH - labels - widths[first] - _GAP
        while last < len(widths) and left >= widths[last] + _GAP:
            left -= widths[last] + _GAP
            last += 1
        console.print(Text(""), _matrix(matrix, slice(first, last), labels))
        first = last
    if not widths:
        console.print(Text("It may do nothing but what is open to every caller."))
    for word in matrix.words():
        console.print(Text(f"{word:<14}{WORDS[word]}"))


def _matrix(matrix: Matrix, columns: slice, labels: int) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, _GAP, 0, 0), header_style="bold")
    table.add_column("", width=labels, no_wrap=True)
    for name in matrix.columns[columns]:
        table.add_column(Text(name), max_width=_WIDEST, no_wrap=True)
    for heading, rows in matrix.groups:
        table.add_row(Text(heading, "bold"))
        for row in rows:
            table.add_row(Text(_label(row)), *(Text(cell, _cell_style(cell)) for cell in row.cells[columns]))
        table.add_row("")
    return table


def _label(row: Row) -> str:
    return f"    {row.routes[0].replace('/collections/{c}', '…')}" if row.exception else f"  {row.operation}"


def _cell_style(cell: str) -> str:
    if cell == "yes":
        return "green"
    return "dim" if cell.startswith("no") else "yellow"


def _console() -> Console:
    """The standard output; without colours and cursor movements where it is no terminal or NO_COLOR is set."""
    reconfigure = getattr(sys.stdout, "reconfigure", None)
    if reconfigure is not None:
        reconfigure(errors="replace")  # for characters that its encoding lacks
    console = Console(markup=False, emoji=False, highlight=False)
    if not console.is_terminal:
        console.width = WIDTH
    return console


def _glyphs_for(console: Console) -> Glyphs:
    return BLOCKS if console.encoding.lower().startswith("utf") else PLAIN


def _overview(status: Mapping[str, Any], now: float, glyphs: Glyphs, rows: int | None = None) -> RenderableType:
    """``rows`` is the height of the screen; None for no limit.

    With a limit every row takes one line, and the lists of connections and refusals share the remaining height.
    """
    short = rows is not None
    above: list[Text | Table] = [
        *(_line(text, short=short) for text in _head(status, most=SHORT if short else None)),
        *(_line(text, short=short) for text in _locks(status, now, most=SHORT if short else None)),
        _lifetimes(status, now, glyphs, short=short),
        Text(""),
        _decisions(status, now, glyphs, short=short),
    ]
    connections = view.connections(status["connections"], with_ca=len(status["authorities"]) > 1)
    refused = view.refusals(status["refusals"])
    if rows is not None:
        fixed = sum(each.row_count + 1 if isinstance(each, Table) else 1 for each in above) + 2 * 2 + 1
        left = max(rows - fixed, 4)
        kept_refusals = min(len(refused), max(left // 2, left - len(connections)))
        connections, refused = connections[: max(left - kept_refusals, 1)], refused[:kept_refusals]
    further = status["connections"]["open"] - len(connections)
    below = (_connections(connections, further, short=short), Text(""), _refusals(refused, short=short))
    return Group(*above, Text(""), *below)


def _locks(status: Mapping[str, Any], now: float, most: int | None) -> Iterator[Text]:
    rows = view.locks(status, now)
    yield from (Text(f"lock {row.name}: {row.left}, {row.origin}", "yellow") for row in rows[:most])
    if further := len(rows[most:]) if most is not None else 0:
        yield Text(f"{further} more locks", "yellow")


def _head(status: Mapping[str, Any], most: int | None) -> Iterator[Text]:
    generation, connections = status["generation"], status["connections"]
    headline, colour = view.headline(status)
    reload = view.last_reload(status["last_reload"])
    yield Text.assemble((f"tlsproxy {status['version']} ", "bold"), (headline, _STYLES[colour]))
    yield Text(", ".join(f"{' and '.join(one['protocols'])} on {one['address']}" for one in status["listeners"]))
    yield Text.assemble(
        f"generation {generation['number']} since {utc_time(generation['built_at'])}, last reload ",
        (reload.result, _STYLES.get(reload.result, "bold red")),
        f" at {reload.when} ({reload.trigger})",
        (f": {reload.error}" if reload.error and reload.error not in headline else "", "red"),
    )
    if reload.changes:
        yield Text(f"last configuration change, at {reload.changed}:")
    yield from (Text(f"  {change}") for change in reload.changes[:most])
    yield from (Text(f"restart needed: {name} has changed", "yellow") for name in generation["restart_needed"])
    warnings = (view.shown(warning) for warning in generation["warnings"])
    yield from (Text(f"warning: {warning}", "yellow") for warning in warnings if warning not in headline)
    audit, upstream = status["audit"], status["upstream"]
    versions = f", {tls}" if (tls := view.tls_versions(status)) else ""
    dropped = f", {audit['dropped']} dropped" if audit["dropped"] else ""
    yield Text(
        f"{connections['open']} connections{versions}, to Qdrant {upstream['busy']} busy and {upstream['idle']} idle, "
        f"audit lines {audit['written']} written and {audit['queued']} waiting{dropped}"
    )
    for node in view.nodes(status):
        yield Text(f"node {node.name}: {node.state}, {node.detail}", "" if node.state == "up" else "yellow")
    if bundle := view.bundle(status.get("bundle")):
        yield Text(bundle, "yellow" if status["bundle"]["error"] else "")
    if sharing := view.sharing(status):
        yield Text(sharing, "" if status["shared"]["reached"] else "yellow")
    for worker in status.get("workers", ()):
        silent = f", silent for {worker['silent']:.0f} s" if worker["silent"] else ""
        yield Text(
            f"worker {worker['number']}: process {worker['pid'] or 'starting'}, {worker['restarts']} restarts, "
            f"generation {worker['generation']}{silent}"
        )
    yield Text("")


def _lifetimes(status: Mapping[str, Any], now: float, glyphs: Glyphs, *, short: bool) -> _Rows:
    table = _table("certificates", "name", "time left", *([] if short else ["good until"]), short=short)
    for row in view.lifetimes(status, now):
        full = round(row.share * _BAR)
        bar = (glyphs.full * full + glyphs.empty * (_BAR - full), _STYLES[row.state])
        left = Text.assemble(bar, " ", (row.left, "" if row.state == "ok" else _STYLES[row.state]))
        if short:
            table.add(row.kind, row.name, left)
        else:
            table.add(row.kind, Text.assemble(row.name, (f"  {row.detail}", "dim")), left, row.until)
    return table


def _decisions(status: Mapping[str, Any], now: float, glyphs: Glyphs, *, short: bool) -> _Rows:
    section = status["decisions"]
    seconds, minutes = section["seconds"], section["seconds"] * section["kept"] // 60
    numbers = (*OUTCOMES, "per s")
    table = _table(f"{minutes} minutes", "", *numbers, numbers=numbers, short=short)
    for row in view.traffic(section, now):
        last = sum(row.slots[-2]) / seconds  # the last complete one
        table.add(row.role, _plot(row, glyphs, LONG_STEP if short else STEP), *map(str, row.totals), f"{last:.1f}")
    return table


def _plot(row: Traffic, glyphs: Glyphs, step: int) -> Text:
    """Columns over time, each in the colour of its worst outcome."""
    sums = [
        [sum(cells) for cells in zip(*row.slots[start : start + step], strict=True)]
        for start in range(0, len(row.slots), step)
    ]
    peak, steps = max(map(sum, sums)) or 1, len(glyphs.heights) - 1
    plot = Text()
    for cells in sums:
        worst = next((outcome for outcome in reversed(OUTCOMES) if cells[OUTCOMES.index(outcome)]), "")
        plot.append(glyphs.heights[-(-sum(cells) * steps // peak)], _CELLS.get(worst, ""))
    return plot


def _connections(rows: Sequence[view.Connection], further: int, *, short: bool) -> _Rows:
    numbers = ("no.", "age", "requests")
    table = _table("no.", "connected", "role", "from", "age", "requests", "transferred", numbers=numbers, short=short)
    for row in rows:
        beside = "".join(f"  {each}" for each in (row.ca, f"key {row.key}" if row.key else "") if each)
        client = Text.assemble(row.client, (beside, "dim"), (f"  {row.ending}", "yellow"))
        role = Text.assemble(row.role, (f"  {row.rule}", "dim"))
        table.add(
            str(row.number),
            client,
            role,
            " ".join(filter(None, (row.address, row.protocol, row.older_tls))),
            row.age,
            str(row.requests),
            row.transferred,
        )
    if further > 0:
        table.add("", Text(f"{further} more", "dim"))
    return table


def _refusals(rows: Sequence[view.Refused], *, short: bool) -> _Rows:
    table = _table("refused", "reason", "operation", "client", "role", "from", numbers=("refused",), short=short)
    for row in rows:
        what = Text.assemble(row.operation, (f"  {row.collection}", "dim"))
        role = Text.assemble(row.role, (f"  {row.rule}", "dim"))
        table.add(row.when, Text(row.reason, "red"), what, row.client, role, row.remote)
    return table


class _Rows(Table):
    """``short``: cells are cut to one line; otherwise they are folded."""

    def __init__(self, *, short: bool) -> None:
        super().__init__(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
        self._short = short

    def add(self, *cells: str | Text) -> None:
        self.add_row(*(_line(Text(cell) if isinstance(cell, str) else cell, short=self._short) for cell in cells))


def _line(text: Text, *, short: bool) -> Text:
    if short:
        text.no_wrap, text.overflow = True, "ellipsis"
    return text


def _table(*columns: str, numbers: Sequence[str] = (), short: bool) -> _Rows:
    table = _Rows(short=short)
    for name in columns:
        # A column that may not wrap keeps its width while others can give way.
        table.add_column(name, justify="right" if name in numbers else "left", no_wrap=name in numbers, overflow="fold")
    return table
