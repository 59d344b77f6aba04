"""Keys and tokens for the commands: read from a file or standard input, never from the command line."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Final

import click

from tlsproxy.authz.keys import NEVER
from tlsproxy.errors import MaterialError
from tlsproxy.snapshot.reading import SECRET_LIMIT, read_argument
from tlsproxy.text import utc_time

_FAR: Final = 100 * 365 * 86400.0
STDIN: Final = "-"

token_option = click.option(
    "--token",
    metavar="FILE",
    help="A file that holds the API key or token that is sent as well, or - for the standard input.",
)
fetch_option = click.option("--fetch", is_flag=True, help="Fetch the keys of token issuers that have a URL.")


def read_secret(source: str) -> str:
    """One key or token. Raises MaterialError, whose text never shows the content."""
    data = sys.stdin.buffer.read(SECRET_LIMIT + 1) if source == STDIN else read_argument(Path(source), SECRET_LIMIT)
    text = data.decode("latin-1").strip("\r\n")
    if len(data) > SECRET_LIMIT or not text or not text.isascii() or not text.isprintable():
        raise MaterialError(source, "does not hold a key or token: one line of printable ASCII is expected")
    return text


def warn_of_end(expires: float, now: float) -> None:
    """Warn of a token whose end is so far that it was not written in seconds."""
    if expires != NEVER and expires > now + _FAR:
        told = f"it ends in the year {utc_time(expires)[:4]}"
        click.echo(f"warning: {told}: exp is in seconds (RFC 7519 section 2), not milliseconds", err=True)
