"""`check`, `config schema` and `config reference`: a configuration's meaning, and its errors without a start."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Iterable
from pathlib import Path

import click

from tlsproxy.admin.upstream_probe import Target, found_about
from tlsproxy.cli.account import Account, AccountError, account_of, unreadable
from tlsproxy.cli.common import config_option, explained
from tlsproxy.cli.summary import summary
from tlsproxy.config.loader import schema
from tlsproxy.config.locks import lock_path
from tlsproxy.config.reference import as_markdown, as_yaml
from tlsproxy.config.shared import store_address
from tlsproxy.config.tokens import fetch_files, key_sources
from tlsproxy.errors import FailureKind, TlsproxyError
from tlsproxy.qdrant.operations import Release
from tlsproxy.qdrant.releases import missing, outside, release_of, shown
from tlsproxy.service.start_trial import start_faults, start_warnings
from tlsproxy.service.systemd.units import socket_units
from tlsproxy.snapshot.files import read_inputs
from tlsproxy.snapshot.generation import Generation
from tlsproxy.snapshot.jwks import fetch_faults, fetched_from
from tlsproxy.snapshot.lifetimes import lifetimes_of
from tlsproxy.snapshot.lifetimes import warnings as expiry_warnings
from tlsproxy.snapshot.name_resolution import node_name
from tlsproxy.snapshot.nodes import drain_warnings
from tlsproxy.snapshot.startup import FirstGeneration, first_generation
from tlsproxy.text import printable


@click.command()
@config_option
@click.option("--reload", "for_reload", is_flag=True, help="Check for a running gateway's reload instead of a start.")
@click.option(
    "--connect",
    is_flag=True,
    help="Ask the upstream and the store too, with the gateway's own keys, and fetch the keys of token issuers.",
)
@click.option(
    "--as-user",
    metavar="ACCOUNT",
    help="Read the files as the service does: USER, USER:GROUP,GROUP or NAME.service (as root).",
)
def check(config_path: Path, *, for_reload: bool, connect: bool, as_user: str | None) -> None:
    """Find all that `run` would refuse: in the configuration, certificates, keys and CRLs, and in a TLS handshake.

    Exits with 2 for an error, with 1 where `run` could not start now but may later: an address that this machine does
    not have, an audit directory that cannot be written. An address that is taken is no error, as the gateway itself may
    have it. It accepts no client. Without --connect it sends nothing to the upstream, and fetches no URL.

    With --connect, Qdrant is asked over REST and gRPC, as the running gateway does for its readiness, the keys of
    token issuers are fetched, and the store of `shared` is drawn from once. Exits with 1 if Qdrant does not answer,
    speaks another protocol, or refuses the gateway's own key, if there are keys that cannot be had, or no store.

    With --reload, a fault that only a start cannot do with is a warning: a certificate that has expired or is not valid
    yet, a file that cannot be read now. A running gateway keeps the last good state in its place.

    With --as-user, a file that this account cannot read is an error, with --reload too: the next start would fail.
    """
    with explained():
        account = None if as_user is None else account_of(as_user)
        first = _first(config_path, account, for_reload=for_reload)
    if first is None:
        click.echo(f"{config_path}: ok for a reload")
        return
    generation = first.generation
    units = socket_units(config_path, os.environ)
    _tell_faults(start_faults(generation.config, units, time.time()), for_reload=for_reload)
    bundle = first.inputs.config_files.bundle
    for line in summary(generation, bundle):
        click.echo(line)
    for problem in generation.unused:
        click.echo(f"unused: {problem}")
    faults = (fault.text for fault in first.faults.values())
    now = time.time()
    dated = (*generation.material.warnings(now), *expiry_warnings(lifetimes_of(generation, bundle), now))
    fetching = (fault for source in key_sources(generation.config) for fault in fetch_faults(source))
    found = (
        *faults,
        *generation.warnings,
        *drain_warnings(generation.nodes),
        *dated,
        *first.inputs.warnings,
        *fetching,
    )
    for warning in (*found, *start_warnings(generation.config, units)):
        click.echo(f"warning: {warning}", err=True)
    if connect:
        _connect(generation)
    click.echo(f"{config_path}: ok")


@click.group()
def config() -> None:
    """About the configuration file."""


@config.command("schema")
def config_schema() -> None:
    """Print the JSON Schema of the configuration, for editors."""
    click.echo(json.dumps(schema(), indent=2))


@config.command("reference")
@click.option("--format", "form", type=click.Choice(["yaml", "markdown"]), default="yaml", show_default=True)
def config_reference(form: str) -> None:
    """Print every key with its default and description: as a commented file, or as tables."""
    click.echo({"yaml": as_yaml, "markdown": as_markdown}[form](), nl=False)


def _first(config_path: Path, account: Account | None, *, for_reload: bool) -> FirstGeneration | None:
    """None with ``for_reload`` where only a start would fail. ``account`` must be able to read the files."""
    try:
        inputs = read_inputs(config_path, os.environ)
        if account is not None:
            used = {*inputs.files, *inputs.config_files.directories, *fetch_files(inputs.loaded.config)}
            _check_rights(account, {*used, lock_path(config_path)})
        return first_generation(config_path, os.environ, inputs, {})
    except TlsproxyError as error:
        if error.kind is FailureKind.INPUT or (error.kind is FailureKind.AGE and not for_reload):
            raise
        label = "warning" if for_reload else "error"
        click.echo("\n".join(f"{label}: {line}" for line in str(error).splitlines()), err=True)
        if for_reload:
            return None
        raise SystemExit(1) from None


def _check_rights(account: Account, paths: Iterable[Path]) -> None:
    """Open all files with the rights of the account. Raises AccountError for those that it may not read."""
    denied = unreadable(account, sorted(paths))
    if denied:
        rights = f"uid {account.uid}, groups {', '.join(map(str, (account.gid, *account.groups)))}"
        text = f"may not be read as {account.name} ({rights}); give it read permission, by a group for example"
        raise AccountError("\n".join(f"{path}: {text}" for path in denied))


def _tell_faults(faults: Iterable[str], *, for_reload: bool) -> None:
    """Exits with 1 for a fault, unless a running gateway has passed that step."""
    label = "warning" if for_reload else "error"
    found = list(faults)
    for fault in found:
        click.echo(f"{label}: {fault}", err=True)
    if found and not for_reload:
        raise SystemExit(1)


def _connect(generation: Generation) -> None:
    """Exits with 1 for an upstream that is not good, and for keys that cannot be had."""
    config, key = generation.config, generation.upstream_api_key
    targets = {
        node_name(config, node.name, protocol): Target(protocol, node.api(protocol), key)
        for node in generation.nodes
        for protocol in generation.protocols
    }
    found = asyncio.run(found_about([*targets.values()]))
    for (name, target), (part, version) in zip(targets.items(), found, strict=True):
        named = f", Qdrant {printable(version)}" if version else ""
        click.echo(f"{name} {target.url}: ok{named}" if part.good else f"error: {name} {part}", err=not part.good)
        if part.good and target.protocol == "rest":
            _tell_release(release_of(version))
    fetched = asyncio.run(fetched_from(key_sources(generation.config)))
    for source, outcome in fetched.items():
        click.echo(f"error: {outcome.error}" if outcome.error else f"{source.shown}: ok", err=bool(outcome.error))
        if outcome.openid is not None and (warning := outcome.openid.warning(source.algorithm)):
            click.echo(f"warning: {source.shown}: {warning}", err=True)
    shared = config.shared.used and _store_trouble(generation)
    if shared or not all(part.good for part, _ in found) or any(outcome.error for outcome in fetched.values()):
        raise SystemExit(1)


def _store_trouble(generation: Generation) -> bool:
    """Whether the store of `shared` does not serve the gateway; either is told."""
    from tlsproxy.service.shared.coordinator import tried  # noqa: PLC0415 - needs the extra's library
    from tlsproxy.service.shared.store import StoreError  # noqa: PLC0415 - as above

    address = store_address(generation.config.shared.url or "")
    try:
        asyncio.run(tried(generation))
    except StoreError as error:
        click.echo(f"error: shared {address}: {error}", err=True)
        return True
    click.echo(f"{address}: ok")
    return False


def _tell_release(release: Release | None) -> None:
    """Tell whether the tables are made for the upstream's release, and which of their operations it does not have."""
    if release is None:
        click.echo("warning: the upstream does not say which release of Qdrant it is", err=True)
        return
    if text := outside(release):
        click.echo(f"warning: Qdrant {text}", err=True)
    absent = list(dict.fromkeys(row.name for row in missing(release) if row.until is None))
    if absent:
        click.echo(f"  Qdrant {shown(release)} does not have: {', '.join(absent)}")
