"""`node` and `nodes`: nodes of the upstream, drained and taken back by the file that also has the locks."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from tlsproxy.admin import view
from tlsproxy.cli import lock_store
from tlsproxy.cli.admin_client import admin_options
from tlsproxy.cli.common import explained
from tlsproxy.cli.locks import asked, awaited, operator, tell_unasked
from tlsproxy.config.locks import MAX_TEXT, DrainEntry, LockFile, moment
from tlsproxy.config.problems import did_you_mean
from tlsproxy.config.upstream import NodeConfig
from tlsproxy.snapshot.files import read_configuration
from tlsproxy.text import printable


@click.command()
@admin_options
@click.argument("name")
@click.argument("action", type=click.Choice(["drain", "up"]))
@click.option("--reason", default="", metavar="TEXT", help="For the audit log.")
def node(config_path: Path, admin: str | None, name: str, action: str, reason: str) -> None:
    """Take a node of `upstream.nodes` out, or back: NAME drain, NAME up.

    A drained node gets no new requests and calls; those under way end there. The last node cannot be drained. Exits
    with 1 if the gateway has not taken the change up.
    """
    if len(reason) > MAX_TEXT:
        raise click.UsageError(f"--reason has at most {MAX_TEXT} characters")
    drain = action == "drain"
    with explained():
        nodes = read_configuration(config_path, os.environ).config.upstream.nodes
        chosen = next((one for one in nodes if one.name == name), None)
        removed = chosen is None and not drain and name in _drained(config_path)
        if chosen is None and not removed:
            names = [one.name for one in nodes]
            raise click.UsageError(f"no node of this name in upstream.nodes{did_you_mean(name, names)}")
        if chosen is not None and chosen.drain and not drain:
            raise click.UsageError("`drain: true` in the configuration holds it: set it to false there")
        server, before = asked(config_path, admin)
        entry = DrainEntry(node=name, by=operator(), at=moment(time.time()), reason=reason)
        lock_store.change(config_path, lambda file: _changed(file, nodes, entry, drain=drain))
        if removed:
            click.echo(f"{printable(name)}: up, once upstream.nodes has it again")
            return
        click.echo(f"{printable(name)}: {'drained' if drain else 'up'}")
        others = [row for row in (before or {}).get("nodes", ()) if row["name"] != name]
        if drain and others and not any(row["state"] == "up" for row in others):
            states = ", ".join(f"{printable(row['name'])} is {row['state']}" for row in others)
            click.echo(f"warning: no other node serves: {states}", err=True)
    done = awaited(config_path, server, lambda status: _taken_up(status, name, drain=drain) or None)
    if done is None:
        sys.exit(1 if server is not None else 0)
    click.echo("in force")


@click.command()
@admin_options
@click.option("--json", "as_json", is_flag=True, help="Print them as JSON.")
def nodes(config_path: Path, admin: str | None, *, as_json: bool) -> None:
    """List the nodes: their state, and what is under way there."""
    with explained():
        server, status = asked(config_path, admin)
        if status is None:
            config = read_configuration(config_path, os.environ).config
            drained = _drained(config_path)
            rows = [_configured(one, drained) for one in config.upstream.nodes]
        else:
            rows = list(status.get("nodes", ()))
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    for row in view.nodes({"nodes": rows}):
        click.echo(f"{row.name}: {row.state}, {row.detail}" if row.detail else f"{row.name}: {row.state}")
    if not rows:
        click.echo("one upstream: upstream.nodes names none")
    if server is None:
        tell_unasked()


def _drained(config_path: Path) -> set[str]:
    """Names in the file."""
    return {entry.node for entry in lock_store.read(config_path).drained}


def _configured(one: NodeConfig, drained: set[str]) -> dict[str, Any]:
    state = "drained" if one.drain or one.name in drained else "not asked"
    return {"name": one.name, "rest": one.rest, "grpc": one.grpc, "state": state}


def _changed(file: LockFile, nodes: tuple[NodeConfig, ...], entry: DrainEntry, *, drain: bool) -> LockFile:
    """Raises UsageError where no node would be left."""
    others = [each for each in file.drained if each.node != entry.node]
    out = {each.node for each in others}
    if drain and not any(one.name != entry.node and one.name not in out and not one.drain for one in nodes):
        raise click.UsageError("no other node would be left: take one back first")
    return file.model_copy(update={"drained": (*others, entry) if drain else tuple(others)})


def _taken_up(status: Mapping[str, Any], name: str, *, drain: bool) -> bool:
    rows = [row for row in status.get("nodes", ()) if row["name"] == name]
    return bool(rows) and all((row["state"] == "drained") is drain for row in rows)
