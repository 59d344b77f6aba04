"""`status`, `top` and `reload`: a running gateway, asked through its admin server.

What draws is imported when it is needed: the commands that serve need no rich in their memory.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import click

from tlsproxy.admin.view import Reload, last_reload, shown
from tlsproxy.cli.admin_client import admin_of, admin_options
from tlsproxy.cli.common import FAILED, explained
from tlsproxy.service import impact_report

_INPUT_STATES: Final = {"published": "good", "retried": "cannot be read now"}
"""Other words than a status has, of what is not published yet."""
_DONE: Final = frozenset({"ok", "unchanged"})


@click.command()
@admin_options
@click.option("--json", "as_json", is_flag=True, help="Print it as the admin server tells it.")
def status(config_path: Path | None, admin: str | None, *, as_json: bool) -> None:
    """Show what a running gateway serves, and what it decided in the last minutes."""
    with explained():
        told = admin_of(config_path, admin).status()
    if as_json:
        click.echo(json.dumps(told, indent=2))
        return
    from tlsproxy.cli import terminal  # noqa: PLC0415

    terminal.show(told, time.time())


@click.command()
@admin_options
@click.option("--interval", type=click.FloatRange(0.2, 3600), default=2.0, show_default=True, help="Seconds between.")
@click.option("--once", is_flag=True, help="Print it once, as where the output is no terminal.")
def top(config_path: Path | None, admin: str | None, interval: float, *, once: bool) -> None:
    """Show what `status` shows, and keep it current until Ctrl-C."""
    with explained():
        server = admin_of(config_path, admin)
        told = server.status()
    from tlsproxy.cli import terminal  # noqa: PLC0415

    if once or not sys.stdout.isatty():
        terminal.show(told, time.time())
        return
    with suppress(KeyboardInterrupt):
        terminal.follow(server.status, interval)


@click.command("reload")
@admin_options
@click.option("--dry-run", is_flag=True, help="Only say what would change and for whom, and whether it would be held.")
@click.option("--force", is_flag=True, help="Publish it, however many connections that ends (limits.mass_cut).")
def reload_command(config_path: Path | None, admin: str | None, *, dry_run: bool, force: bool) -> None:
    """Have a running gateway read its files anew, wait for the verdict, and print what changed.

    Exits with 0 if what the files say serves now, 1 if some of it does not (refused, waiting for a date, held back): it
    is said what, and whether anything has changed. With --dry-run nothing changes in any case, and the exit status is
    the one that a reload would have.
    """
    if dry_run and force:
        raise click.UsageError("--dry-run says what would happen, --force makes it happen: choose one")
    with explained():
        verdict = admin_of(config_path, admin).reload("?dry_run=1" if dry_run else "?force=1" if force else "")
    if verdict["result"] == "pending":
        click.echo(f"error: {verdict['error']}", err=True)
        sys.exit(FAILED)
    reload = last_reload(verdict, time.time())
    if dry_run:
        _tell_rehearsed(verdict, reload)
    elif reload.result not in {*_DONE, "partial"}:
        _tell_refused(verdict, reload)
    else:
        _tell_done(verdict, reload)
    sys.exit(0 if reload.result in _DONE else 1)


def _tell_done(verdict: Mapping[str, Any], reload: Reload) -> None:
    if reload.error:
        click.echo(f"{reload.result}: {reload.error}", err=True)
    if reload.result != "unchanged":
        click.echo(f"published: generation {verdict['generation']}")
    else:
        click.echo(f"unchanged: the files are those that served already; generation {verdict['generation']}")
        if reload.changes:
            click.echo(f"what they changed last, at {reload.changed} UTC:")
    _tell_changes(verdict, reload)
    for name in verdict["restart_needed"]:
        click.echo(f"restart needed: {name} has changed", err=True)


def _tell_refused(verdict: Mapping[str, Any], reload: Reload) -> None:
    click.echo(f"{reload.result}: {reload.error}", err=True)
    for row in impact_report.rows(verdict.get("consequences") or {}):
        click.echo(f"  {row}", err=True)
    number = verdict["generation"]
    held = f"generation {number} serves without it"
    told = held if reload.result == "held" else f"nothing has changed: generation {number} goes on serving"
    click.echo(told, err=True)


def _tell_rehearsed(verdict: Mapping[str, Any], reload: Reload) -> None:
    told = {"ok": "would be published", "unchanged": "unchanged: the files are those that serve"}
    click.echo(told.get(reload.result, f"{reload.result}: {reload.error}"), err=reload.result not in _DONE)
    _tell_changes(verdict, reload)
    for one in verdict["inputs"]:
        click.echo(f"  {one['input']} {shown(one['name'])}: {_INPUT_STATES.get(one['state'], one['state'])}")
    for name in verdict["restart_needed"]:
        click.echo(f"  restart needed: {name} has changed")
    for warning in verdict["warnings"]:
        click.echo(f"  warning: {warning}")
    click.echo(f"nothing has changed: generation {verdict['generation']} goes on serving")


def _tell_changes(verdict: Mapping[str, Any], reload: Reload) -> None:
    for change in reload.changes:
        click.echo(f"  {change}")
    for row in impact_report.rows(verdict.get("consequences") or {}):
        click.echo(f"  {row}")
