"""`status`, `top` and `reload`: requests to a running gateway's admin server.

The terminal is imported when it is needed: `run` does without rich in its memory.
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
from tlsproxy.cli.admin_client import NoAdminServer, admin_of, admin_options
from tlsproxy.cli.common import FAILED, explained
from tlsproxy.service import impact_report

_INPUT_STATES: Final = {"published": "good", "retried": "cannot be read now"}
"""Words for an input state in a dry run, which publishes nothing."""
_REHEARSED: Final = {
    "ok": "would be published",
    "unchanged": "unchanged: the files are those that serve",
    "partial": "would be published in part: ",
    "held": "would be ",
    "failed": "would be refused: ",
}
"""The result of a dry run, or what precedes its faults; the one of `held` is `held back by limits.mass_cut …`."""
_DONE: Final = frozenset({"ok", "unchanged"})


@click.command()
@admin_options
@click.option("--json", "as_json", is_flag=True, help="Print the admin server's JSON.")
def status(config_path: Path, admin: str | None, *, as_json: bool) -> None:
    """Show a running gateway's generation, certificates, connections, and decisions of the last minutes."""
    with explained():
        gateway_status = admin_of(config_path, admin).status()
    if as_json:
        click.echo(json.dumps(gateway_status, indent=2))
        return
    from tlsproxy.cli import terminal  # noqa: PLC0415

    terminal.show(gateway_status, time.time())


@click.command()
@admin_options
@click.option(
    "--interval", type=click.FloatRange(0.2, 3600), default=2.0, show_default=True, help="Seconds between updates."
)
@click.option("--once", is_flag=True, help="Print it once, as if the output were no terminal.")
def top(config_path: Path, admin: str | None, interval: float, *, once: bool) -> None:
    """Show the status, updated until Ctrl-C."""
    with explained():
        server = admin_of(config_path, admin)
        gateway_status = server.status()
    from tlsproxy.cli import terminal  # noqa: PLC0415

    if once or not sys.stdout.isatty():
        terminal.show(gateway_status, time.time())
        return
    with suppress(KeyboardInterrupt):
        terminal.follow(server.status, interval)


@click.command("reload")
@admin_options
@click.option("--dry-run", is_flag=True, help="Show what would change and for whom, and whether it would be held back.")
@click.option("--force", is_flag=True, help="Publish even if that ends more connections than limits.mass_cut allows.")
@click.option("--if-admin", is_flag=True, help="Exit with 0 if the configuration has no admin server to ask.")
def reload_command(config_path: Path, admin: str | None, *, dry_run: bool, force: bool, if_admin: bool) -> None:
    """Reload a running gateway's files, and print the changes.

    Exits with 0 if all files are in force, 1 if some are not (refused, waiting for a date, held back): the output names
    them, and what has changed. With --dry-run nothing changes, and the exit status is that of a reload.
    """
    if dry_run and force:
        raise click.UsageError("--dry-run and --force exclude each other")
    with explained():
        try:
            result = admin_of(config_path, admin).reload("?dry_run=1" if dry_run else "?force=1" if force else "")
        except NoAdminServer as error:
            if not if_admin:
                raise
            click.echo(f"{error}: what became of the files is in the gateway's log alone")
            return
    if result["result"] == "pending":
        click.echo(f"error: {result['error']}", err=True)
        sys.exit(FAILED)
    reload = last_reload(result)
    if dry_run:
        _print_rehearsed(result, reload)
    elif reload.result not in {*_DONE, "partial"}:
        _print_refused(result, reload)
    else:
        _print_done(result, reload)
    sys.exit(0 if reload.result in _DONE else 1)


def _print_done(result: Mapping[str, Any], reload: Reload) -> None:
    _print_faults(f"{reload.result}: ", result)
    if reload.result != "unchanged":
        click.echo(f"published: generation {result['generation']}")
    else:
        click.echo(f"unchanged: the files are those that served already; generation {result['generation']}")
        if reload.changes:
            click.echo(f"what they changed last, at {reload.changed}:")
    _print_changes(result, reload)
    for warning in result.get("warnings", ()):  # not of a gateway older than this program
        click.echo(f"  warning: {shown(warning)}")
    for name in result["restart_needed"]:
        click.echo(f"restart needed: {name} has changed", err=True)


def _print_refused(result: Mapping[str, Any], reload: Reload) -> None:
    _print_faults("" if reload.result == "held" else f"{reload.result}: ", result)
    for row in impact_report.rows(result.get("consequences") or {}):
        click.echo(f"  {row}", err=True)
    number = result["generation"]
    held = f"generation {number} serves without it"
    effect = held if reload.result == "held" else f"nothing has changed: generation {number} goes on serving"
    click.echo(effect, err=True)


def _print_rehearsed(result: Mapping[str, Any], reload: Reload) -> None:
    if reload.result in _DONE:
        click.echo(_REHEARSED[reload.result])
    else:
        _print_faults(_REHEARSED[reload.result], result)
    _print_changes(result, reload)
    for one in result["inputs"]:
        click.echo(f"  {one['input']} {shown(one['name'])}: {_INPUT_STATES.get(one['state'], one['state'])}")
    for name in result["restart_needed"]:
        click.echo(f"  restart needed: {name} has changed")
    for warning in result["warnings"]:
        click.echo(f"  warning: {shown(warning)}")
    click.echo(f"nothing has changed: generation {result['generation']} goes on serving")


def _print_faults(prefix: str, result: Mapping[str, Any]) -> None:
    for fault in result["error"].splitlines():
        click.echo(f"{prefix}{shown(fault)}", err=True)


def _print_changes(result: Mapping[str, Any], reload: Reload) -> None:
    for change in reload.changes:
        click.echo(f"  {change}")
    for row in impact_report.rows(result.get("consequences") or {}):
        click.echo(f"  {row}")
    if reload.result != "unchanged" and "config_sha256" in result:  # not of a gateway older than this program
        click.echo(f"  configuration SHA-256 {result['config_sha256']}")
