"""`explain`: what the gateway would answer the holder of a certificate, and why. It is the gateway's own decision."""

from __future__ import annotations

import os
import time
from pathlib import Path

import click

from tlsproxy.authz.access import UNREAD, Rights
from tlsproxy.authz.credentials import Keys
from tlsproxy.authz.roles import Principal
from tlsproxy.cli.common import config_option, explained
from tlsproxy.cli.show import described, read_certificates
from tlsproxy.config.loader import parse
from tlsproxy.config.policy import policy_of
from tlsproxy.errors import RequestError
from tlsproxy.qdrant.judge import judge
from tlsproxy.qdrant.operations import Operation
from tlsproxy.qdrant.rest import Recognised, recognise
from tlsproxy.tls.files import CONFIG_LIMIT, read_file


@click.command()
@config_option
@click.argument("cert", type=click.Path(path_type=Path))
@click.argument("method")
@click.argument("path")
def explain(config_path: Path, cert: Path, method: str, path: str) -> None:
    """Say who CERT (PEM or DER) is, and whether it may do METHOD PATH.

    Exits with 0 if it may, 1 if not. The decision is about a request without an API key. Whether the certificate's
    chain is valid is not looked at: the handshake does that before anything here matters.
    """
    with explained():
        config = parse(read_file(config_path, CONFIG_LIMIT), config_path, os.environ).config
        identity = read_certificates(cert)[0]
    policy = policy_of(config, Keys())
    principal = policy.principal_of(identity)
    for line in described(identity, now=time.time()):
        click.echo(line)
    for line in policy.why(identity):
        click.echo(f"  {line}")
    click.echo(f"rule       {principal.rule or 'none'}")
    click.echo(f"role       {principal.role or 'none'}")
    try:
        asked = recognise(method, path)
    except RequestError as error:
        click.echo(f"decision   refused: {error.status} {error} ({error.reason})")
        raise SystemExit(1) from None
    _decide(principal, asked)


def _decide(principal: Principal, asked: Recognised) -> None:
    if asked.operation is None:
        click.echo("operation  none: Qdrant has no such route, or not for this method")
    else:
        click.echo(f"operation  {asked.operation.name}: {_requirement(asked.operation)}")
    if asked.collection is not None:
        click.echo(f"collection {asked.collection}")
    judgement = judge(principal, Keys(), None, asked)
    decision = judgement.decision
    if decision is UNREAD:
        names = judgement.rights.limited and asked.operation is not None and asked.operation.names_others
        named = ["names only collections that the role names"] if names else []
        confined = [f"can be confined to {_conditions(judgement.rights)}"] if judgement.rights.conditions else []
        click.echo(f"decision   allowed if its body {' and '.join([*named, *confined])}")
        return
    if decision.allowed:
        shown = " (the answer is reduced to what the role may know)" if judgement.listing is not None else ""
        click.echo(f"decision   allowed{shown}")
        return
    click.echo(f"decision   refused: {decision.status} {decision.text or '(empty body)'} ({decision.reason})")
    raise SystemExit(1)


def _conditions(rights: Rights) -> str:
    return ", ".join(f'{one.key} = "{one.value}"' for one in rights.conditions)


def _requirement(operation: Operation) -> str:
    needs = operation.requirement
    flags = [name for name in ("write", "manage", "extras") if getattr(needs, name)]
    others = ["its body may name further collections"] if operation.names_others else []
    return ", ".join([f"scope {needs.scope.value}", *flags, *others])
