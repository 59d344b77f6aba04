"""The commands. Each reads its arguments, calls what does the work, and prints; none decides anything itself.

Exit status: 0 done, 1 the answer is no (`explain`, a failed step of `demo`), 2 an error that is explained on stderr.
"""

from __future__ import annotations

import click

from tlsproxy import __version__
from tlsproxy.cli.certs import certs
from tlsproxy.cli.check import check, config
from tlsproxy.cli.explain import explain
from tlsproxy.cli.operate import reload_command, status, top
from tlsproxy.cli.run import demo, run
from tlsproxy.cli.token import token


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="tlsproxy")
def main() -> None:
    """A security gateway for Qdrant: mutual TLS, certificate roles, decisions in Qdrant's own terms, audit."""


for command in (run, status, top, reload_command, check, explain, config, certs, token, demo):
    main.add_command(command)
