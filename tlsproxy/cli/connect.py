"""`connect`: client mode. It imports what it starts when it is called."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from pathlib import Path

import click

from tlsproxy.cli.common import explained
from tlsproxy.snapshot.lifetimes import tls_lifetimes, warnings


@click.command()
@click.option(
    "--config",
    "config_path",
    metavar="FILE",
    required=True,
    type=Path,  # click.Path would stat it, and hang with its file system
    help="The configuration file of client mode; QDRANT__SECTION__KEY in the environment overrides it.",
)
@click.option(
    "--ready-file",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Write the bound addresses here, as JSON, once it serves.",
)
@click.option("--check", is_flag=True, help="Check the configuration, its files and each target, and exit.")
def connect(config_path: Path, ready_file: Path | None, *, check: bool) -> None:
    """Listen in plaintext on this machine, and reach TLS servers with a client certificate, until SIGTERM or SIGINT.

    For clients that cannot present a certificate themselves. Each listener has targets, of which the first that is the
    expected server is used. A renewed certificate, key or CA is used for new connections at once; SIGHUP reloads.

    With --check it exits with 2 for an error of the configuration or its files, and with 1 if a target cannot be
    reached, or is not the expected server. It does not listen.
    """
    with explained():
        if check:
            _check(config_path)
            return
        from tlsproxy.connector.program import run  # noqa: PLC0415 - no other command needs it

        raise SystemExit(run(config_path, ready_file))


def _check(config_path: Path) -> None:
    from tlsproxy.connector.material import Source  # noqa: PLC0415
    from tlsproxy.connector.trial import tried  # noqa: PLC0415

    material = Source(config_path, os.environ).first(lambda text: click.echo(text, err=True))
    for warning in (*material.warnings, *warnings(tls_lifetimes(material.states), time.time())):
        click.echo(f"warning: {warning}", err=True)
    logging.getLogger().addHandler(logging.NullHandler())  # all that it would say is told below
    found = asyncio.run(tried(material))
    for (listen, target), fault in found.items():
        click.echo(f"error: {listen}: {target}: {fault}" if fault else f"{listen}: {target}: ok", err=bool(fault))
    if any(found.values()):
        raise SystemExit(1)
    click.echo(f"{config_path}: ok")
