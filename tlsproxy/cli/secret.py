"""Keys and tokens as the commands read them: from a file or the standard input, never from the command line."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Final

import click

from tlsproxy.authz.roles import Policy
from tlsproxy.config.model import Config
from tlsproxy.config.policy import policy_of
from tlsproxy.config.secrets import resolve_keys
from tlsproxy.config.tokens import key_sources, resolve_tokens
from tlsproxy.errors import MaterialError
from tlsproxy.snapshot.files import PEM_LIMIT, SECRET_LIMIT, read_file

STDIN: Final = "-"

token_option = click.option(
    "--token",
    metavar="FILE",
    help="A file that holds the API key or token that is sent as well, or - for the standard input.",
)


def read_secret(source: str) -> str:
    """Raises :class:`MaterialError`, which never shows what was read."""
    data = sys.stdin.buffer.read(SECRET_LIMIT + 1) if source == STDIN else read_file(Path(source), SECRET_LIMIT)
    text = data.decode("latin-1").strip("\r\n")
    if len(data) > SECRET_LIMIT or not text or not text.isascii() or not text.isprintable():
        raise MaterialError(source, "does not hold a key or token: one line of printable ASCII is expected")
    return text


def policy_with_secrets(config: Config) -> Policy:
    """Raises :class:`MaterialError` where a file cannot be used."""
    for source in key_sources(config):
        click.echo(f"warning: {source.shown} is not fetched by this command: none of its tokens is accepted", err=True)
    keys = resolve_keys(config, lambda path: read_file(path, SECRET_LIMIT))
    return policy_of(config, keys, resolve_tokens(config, lambda path: read_file(path, PEM_LIMIT)))
