"""Shared by the commands: the `--config` option, and the exit status of an error."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import click

from tlsproxy.errors import TlsproxyError

FAILED: Final = 2

config_option = click.option(
    "--config",
    "config_path",
    metavar="FILE",
    required=True,
    type=Path,  # click.Path would stat it, and hang with its file system
    help="The configuration file; QDRANT__SECTION__KEY in the environment overrides it.",
)


@contextmanager
def explained() -> Iterator[None]:
    """Print an error of ours and exit with 2. Any other exception is a defect, and keeps its traceback."""
    try:
        yield
    except TlsproxyError as error:
        lines = str(error).splitlines()
        click.echo("\n".join(f"error: {line}" for line in lines), err=True)
        raise SystemExit(FAILED) from None
