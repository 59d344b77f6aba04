"""`run` and `demo`. They import what they start when they are called."""

from __future__ import annotations

from pathlib import Path

import click

from tlsproxy.cli.common import FAILED, config_option, explained


@click.command()
@config_option
@click.option(
    "--ready-file",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Write the bound addresses here, as JSON, once the gateway serves.",
)
def run(config_path: Path, ready_file: Path | None) -> None:
    """Serve until SIGTERM or SIGINT; SIGHUP reloads.

    Changed certificates, CRLs, keys, roles and limits are applied at once; a bad file is reported, and its last good
    state stays in force.
    """
    from tlsproxy.service.server import run as serve  # noqa: PLC0415 - no other command needs uvloop and aiohttp

    with explained():
        raise SystemExit(serve(config_path, ready_file))


@click.command()
@click.option(
    "--dir",
    "directory",
    metavar="DIR",
    default="demo-data",
    show_default=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="Directory of the demo's certificates, configuration, logs and audit files.",
)
@click.option("--once", is_flag=True, help="Exit after the steps: 0 only if each succeeded.")
def demo(directory: Path, *, once: bool) -> None:
    """Run a whole gateway in front of an embedded Qdrant, step by step, and leave it up to be tried."""
    try:
        from tlsproxy.demo.scenario import run_demo  # noqa: PLC0415 - needs the libraries of the extra `demo`
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] == "tlsproxy":
            raise
        click.echo(f"error: the demo needs {error.name}: pip install 'tlsproxy[demo]'", err=True)
        raise SystemExit(FAILED) from None
    with explained():
        raise SystemExit(run_demo(directory, once=once))
