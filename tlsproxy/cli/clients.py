"""`connections`, `who` and `cut`: the clients of a running gateway.

The terminal is imported when it is needed, as by :mod:`tlsproxy.cli.operate`.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import click

from tlsproxy.admin import view
from tlsproxy.cli.admin_client import admin_of, admin_options
from tlsproxy.cli.common import explained

_json = click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")
_LISTED: Final = 10
"""Refusals of a client that are listed."""


@click.command()
@admin_options
@_json
def connections(config_path: Path, admin: str | None, *, as_json: bool) -> None:
    """List the live connections, newest first, with the numbers that `tlsproxy cut` takes."""
    with explained():
        status = admin_of(config_path, admin).status()
    if as_json:
        click.echo(json.dumps(status["connections"], indent=2))
        return
    from tlsproxy.cli import terminal  # noqa: PLC0415

    terminal.show_connections(status)


@click.command()
@admin_options
@click.argument("numbers", nargs=-1, required=True, metavar="NUMBER...", type=click.IntRange(min=0))
def cut(config_path: Path, admin: str | None, numbers: tuple[int, ...]) -> None:
    """End live connections at once, by their numbers in `tlsproxy connections`.

    Exits with 1 if one of them is not live. Clients may connect again: `tlsproxy lock` keeps one out.
    """
    missing = False
    with explained():
        server = admin_of(config_path, admin)
        for number in numbers:
            if server.cut(number):
                click.echo(f"connection {number} is cut")
            else:
                click.echo(f"there is no connection {number}", err=True)
                missing = True
    sys.exit(1 if missing else 0)


@click.command()
@admin_options
@_json
@click.argument("subject")
def who(config_path: Path, admin: str | None, subject: str, *, as_json: bool) -> None:
    """Show a client: its rule, role and rights, live connections, and last refusals.

    SUBJECT is a certificate's subject or the name of a key, or a part of one, in upper or lower case; locks of this
    name are listed too. Exits with 1 if there is nobody of this name.
    """
    with explained():
        status = admin_of(config_path, admin).status(subject)
    live = [one for one in status["connections"]["live"] if _named(subject, one["identity"], one["key"])]
    refusals = [one for one in status["refusals"] if _named(subject, one["identity"], one["key"], one["presented"])]
    keys = [name for name in status.get("keys", ()) if _named(subject, name)]
    locks = [each for each in status.get("locks", {}).get("entries", ()) if _named(subject, each["lock"])]
    if as_json:
        held = {name: status["keys"][name] for name in keys}
        found = {"connections": live, "refusals": refusals, "keys": held, "locks": locks}
        click.echo(json.dumps(found, indent=2))
    else:
        for line in _told(status, live, refusals, keys):
            click.echo(line)
        for row in view.locks({"locks": {"entries": locks}}, time.time()):
            click.echo(f"lock {row.name}: {row.left}, {row.origin}")
    if not (live or refusals or keys or locks):
        text = f"no live connection, recent refusal or key is of {view.shown(subject)}"
        click.echo(f"nobody: {text}; `tlsproxy explain` has what a certificate may do", err=True)
        sys.exit(1)


def _named(subject: str, *names: str | None) -> bool:
    return any(subject.casefold() in name.casefold() for name in names if name)


def _told(
    status: Mapping[str, Any], live: list[dict[str, Any]], refusals: list[dict[str, Any]], keys: Iterable[str]
) -> Iterator[str]:
    """Each client in turn: those that are connected, those that were only refused, then keys."""
    for client in dict.fromkeys(map(_client, [*live, *refusals])):
        own = [one for one in live if _client(one) == client]
        refused = [one for one in refusals if _client(one) == client]
        latest = own[-1] if own else refused[0]
        yield " and ".join(view.presented(latest)) or "no certificate"
        yield from _roles(status, own or refused)
        yield from _block("connection", map(_connection, view.connections({"live": own}, with_ca=True)))
        yield from _block("refused", map(_refusal, view.refusals(refused[:_LISTED])))
    for name in keys:
        entry = status["keys"][name]
        yield f"key {view.shown(name)}"
        role = f"{view.shown(entry['role'])}: " if entry["role"] else ""
        yield f"  {'role' if role else 'rights':<11} {role}{view.shown(entry['rights'])}"


def _client(entry: Mapping[str, Any]) -> tuple[str | None, ...]:
    return entry["identity"], entry["key"], entry.get("presented")


def _roles(status: Mapping[str, Any], entries: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    """The rules and roles of a client; of several certificates of one subject by different CAs there may be several."""
    for rule, role in dict.fromkeys((one["rule"], one["role"]) for one in entries):
        if rule:
            yield f"  {'rule':<11} {view.shown(rule)}"
        rights = status.get("roles", {}).get(role)
        yield f"  {'role':<11} {view.shown(role) or view.NO_ROLE}{f': {view.shown(rights)}' if rights else ''}"


def _block(label: str, rows: Iterable[str]) -> Iterator[str]:
    for place, row in enumerate(rows):
        yield f"  {label if place == 0 else '':<11} {row}"


def _connection(row: view.Connection) -> str:
    ca = f", certificate of {row.ca}" if row.ca else ""
    tls = f", {' '.join(filter(None, (row.tls, row.cipher, row.group)))}" if row.tls else ""
    ending = f", ends: {row.ending}" if row.ending else ""
    return (
        f"no. {row.number}: {row.protocol} from {row.address} for {row.age}, {row.requests} requests, "
        f"{row.transferred}{tls}{ca}{ending}"
    )


def _refusal(row: view.Refused) -> str:
    collection = f" {row.collection}" if row.collection else ""
    return f"{row.when}  {row.reason}  {row.operation}{collection}  from {row.remote}"
