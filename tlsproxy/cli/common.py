"""Shared by the commands: the `--config` option, and the exit status of an error."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import click
from click.core import ParameterSource
from click.shell_completion import CompletionItem

from tlsproxy.errors import TlsproxyError

FAILED: Final = 2

CONFIG_VARIABLE: Final = "TLSPROXY_CONFIG"
DEFAULT_CONFIG: Final = Path("/etc/tlsproxy/tlsproxy.yaml")


def _found(context: click.Context, parameter: click.Parameter, path: Path) -> Path:
    """The path. Raises UsageError where nobody named a file, and there is none at the default place.

    A file that was named is not looked at here: that could hang with its file system.
    """
    named = context.get_parameter_source(parameter.name or "") is not ParameterSource.DEFAULT
    if named or context.params.get("admin") is not None or os.path.lexists(path):
        return path
    others = " or --admin ADDRESS" if "admin" in context.params else ""
    raise click.UsageError(
        f"which configuration? --config FILE{others} is not given, {CONFIG_VARIABLE} is not set, and there is no {path}"
    )


config_option = click.option(
    "--config",
    "config_path",
    metavar="FILE",
    envvar=CONFIG_VARIABLE,
    show_envvar=True,
    default=lambda: DEFAULT_CONFIG,
    show_default=str(DEFAULT_CONFIG),
    callback=_found,
    shell_complete=lambda _context, _parameter, incomplete: [CompletionItem(incomplete, type="file")],
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
