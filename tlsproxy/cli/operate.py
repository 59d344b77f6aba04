"""`status`, `top` and `reload`: a running gateway, asked through its admin server.

What draws is imported when it is needed: the commands that serve need no rich in their memory.
"""

from __future__ import annotations

import json
import sys
import time
from contextlib import suppress
from pathlib import Path

import click

from tlsproxy.cli.adminclient import admin_of, admin_options
from tlsproxy.cli.common import FAILED, explained
from tlsproxy.service.view import last_reload


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
def reload_command(config_path: Path | None, admin: str | None) -> None:
    """Have a running gateway read its files anew, wait for the verdict, and print what changed.

    Exits with 0 if what the files say serves now, 1 if they were refused: then nothing has changed.
    """
    with explained():
        verdict = admin_of(config_path, admin).reload()
    if verdict["result"] == "pending":
        click.echo(f"error: {verdict['error']}", err=True)
        sys.exit(FAILED)
    reload, number = last_reload(verdict, time.time()), verdict["generation"]
    if reload.result not in {"ok", "unchanged"}:
        click.echo(f"{reload.result}: {reload.error}", err=True)
        click.echo(f"nothing has changed: generation {number} goes on serving", err=True)
        sys.exit(1)
    if reload.result == "ok":
        click.echo(f"published: generation {number}")
    else:
        click.echo(f"unchanged: the files are those that served already; generation {number}")
        if reload.changes:
            click.echo(f"what they changed last, at {reload.changed} UTC:")
    for change in reload.changes:
        click.echo(f"  {change}")
    for name in verdict["restart_needed"]:
        click.echo(f"restart needed: {name} has changed", err=True)
