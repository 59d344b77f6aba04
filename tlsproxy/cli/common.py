"""What the commands share: their `--config` option, and how an error of ours becomes an exit status of 2."""

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
    type=Path,  # click.Path looks whether it is there, and would hang where its file system does
    help="The configuration file; QDRANT__SECTION__KEY in the environment wins over it.",
)


@contextmanager
def explained() -> Iterator[None]:
    """An error that was raised on purpose is told as such; any other is a bug, and keeps its traceback."""
    try:
        yield
    except TlsproxyError as error:
        lines = str(error).splitlines()
        click.echo("\n".join(f"error: {line}" for line in lines), err=True)
        raise SystemExit(FAILED) from None
