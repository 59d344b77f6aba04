"""`connect`: client mode. It imports what it starts when it is called."""

from __future__ import annotations

from pathlib import Path

import click

from tlsproxy.cli.common import explained


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
def connect(config_path: Path, ready_file: Path | None) -> None:
    """Listen in plaintext on this machine, and reach TLS servers with a client certificate, until SIGTERM or SIGINT.

    For clients that cannot present a certificate themselves. Each listener has targets, of which the first that is the
    expected server is used. A renewed certificate, key or CA is used for new connections at once; SIGHUP reloads.
    """
    from tlsproxy.connector.program import run  # noqa: PLC0415 - no other command needs it

    with explained():
        raise SystemExit(run(config_path, ready_file))
