"""The commands: each reads its arguments, calls the module that does the work, and prints.

Exit status: 0 done, 1 the answer is no (`explain`, a failed step of `demo`), 2 an error that is explained on stderr.
"""

from __future__ import annotations

import signal
import sys

if sys.argv[1:2] in (["run"], ["connect"]):
    # The kernel holds a SIGHUP until there is something to reload: its default is an end. The imports take longer than
    # all that Python does before.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})

from importlib import import_module
from typing import Final

import click

from tlsproxy import __version__
from tlsproxy.form import form

_COMMANDS: Final = {
    "init": ("init", "init"),
    "run": ("run", "run"),
    "connect": ("connect", "connect"),
    "status": ("operate", "status"),
    "top": ("operate", "top"),
    "reload": ("operate", "reload_command"),
    "connections": ("clients", "connections"),
    "who": ("clients", "who"),
    "cut": ("clients", "cut"),
    "lock": ("locks", "lock"),
    "unlock": ("locks", "unlock"),
    "locks": ("locks", "locks"),
    "node": ("nodes", "node"),
    "nodes": ("nodes", "nodes"),
    "check": ("check", "check"),
    "explain": ("explain", "explain"),
    "config": ("check", "config"),
    "bundle": ("bundle", "bundle"),
    "certs": ("certs", "certs"),
    "token": ("token", "token"),
    "demo": ("run", "demo"),
}
"""Module and function of each command."""


class _Commands(click.Group):
    """Imports only the command that is called: `run` has to block signals from its first moment on."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return sorted(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in _COMMANDS:
            return None
        module, name = _COMMANDS[cmd_name]
        command: click.Command = getattr(import_module(f"{__name__}.{module}"), name)
        return command


@click.command(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(f"{__version__} ({form()})", prog_name="tlsproxy")
def main() -> None:
    """A security gateway for Qdrant: mutual TLS, certificate roles, decisions in Qdrant's own terms, audit."""
