"""`explain`: the gateway's decision on a certificate's request, and the rules behind it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import click

from tlsproxy.authz.access import UNREAD, Decision
from tlsproxy.authz.admission import Admission, admit
from tlsproxy.authz.keys import NEVER, Keys
from tlsproxy.authz.tokens import Tokens
from tlsproxy.cli.common import config_option, explained
from tlsproxy.cli.secret import policy_with_secrets, read_secret, token_option
from tlsproxy.cli.show import described, read_client
from tlsproxy.config.loader import parse
from tlsproxy.config.policy import policy_of
from tlsproxy.errors import GrpcStatus, RequestError
from tlsproxy.proxy.decision.call_plan import grpc_status
from tlsproxy.qdrant.grpc_decision import decide_at_best, decide_call, operation_of
from tlsproxy.qdrant.operations import GRPC, Operation
from tlsproxy.qdrant.rest_decision import HeadDecision, decide_request
from tlsproxy.qdrant.router import recognise
from tlsproxy.snapshot.files import CONFIG_LIMIT, read_file
from tlsproxy.text import printable, utc_time


@click.command()
@config_option
@token_option
@click.argument("cert", type=click.Path(path_type=Path))
@click.argument("method")
@click.argument("path")
def explain(config_path: Path, token: str | None, cert: Path, method: str, path: str) -> None:
    """Show the identity of CERT (PEM or DER), and whether it may do METHOD PATH. Without a certificate, CERT is `none`.

    For a gRPC call METHOD is `grpc`, and PATH its full method: /qdrant.Points/Search.

    Exits with 0 if allowed, 1 if not. With --token the decision is on a request with that key or token, and the
    configuration's keys are read. The CA is found through the intermediates that follow CERT in its file. The chain is
    not verified: that is the handshake's part.
    """
    now = time.time()
    with explained():
        config = parse(read_file(config_path, CONFIG_LIMIT), config_path, os.environ).config
        identity = None if str(cert) == "none" else read_client(cert, config)
        presented = None if token is None else read_secret(token)
        policy = policy_of(config, Keys(), Tokens()) if presented is None else policy_with_secrets(config)
    principal = policy.principal_of(identity)
    if identity is not None:
        for line in described(identity, now=now):
            click.echo(line)
        for line in policy.why(identity):
            click.echo(f"  {line}")
    click.echo(f"rule       {principal.rule or 'none'}")
    admitted = admit(principal, policy, presented, now)
    caller = admitted.principal if isinstance(admitted, Admission) else principal
    click.echo(f"role       {caller.role or 'none'}{f' ({caller.rights})' if caller.role else ''}")
    if isinstance(admitted, Admission):
        _print_credential(admitted)
    if method.lower() == "grpc":
        called = operation_of(path)
        _print_operation(called, "gRPC method")
        judgement = decide_call(admitted, called)
        if judgement.decision is UNREAD and isinstance(admitted, Admission) and called is not None:
            at_best = decide_at_best(admitted, called)
            judgement = judgement if at_best.allowed else HeadDecision(at_best)
        _print_decision(judgement, admitted, called, _grpc_status)
        return
    try:
        request = recognise(method, path)
    except RequestError as error:
        click.echo(f"decision   refused: {error.status} {error} ({error.reason})")
        raise SystemExit(1) from None
    _print_operation(request.operation, "route, or not for this method")
    if request.collection is not None:
        click.echo(f"collection {printable(request.collection)}")
    _print_decision(decide_request(admitted, request), admitted, request.operation, _http_status)


def _print_credential(admission: Admission) -> None:
    credential = admission.credential
    if credential is None:
        return
    role = f", role {credential.role}" if credential.role else ""
    click.echo(
        f"{'key' if credential.kind == 'ApiKey' else 'token of':<10} {credential.name} ({credential.gives}){role}"
    )
    if credential.expires != NEVER:
        click.echo(f"until      {utc_time(credential.expires)}")
    if credential.exists is not None:
        click.echo(f"provided   a certain point exists in the collection {credential.exists.collection}")


def _print_operation(operation: Operation | None, kind: str) -> None:
    if operation is None:
        click.echo(f"operation  none: Qdrant has no such {kind}")
    else:
        click.echo(f"operation  {operation.name}: {_requirement(operation)}")


def _print_decision(
    judgement: HeadDecision,
    admitted: Admission | Decision,
    operation: Operation | None,
    status_of: Callable[[Decision], str],
) -> None:
    """Exits with 1 for a refusal."""
    decision = judgement.decision
    if decision is UNREAD and isinstance(admitted, Admission):
        click.echo(f"decision   allowed if its body {_condition(admitted, operation)}")
        return
    if decision.allowed:
        suffix = " (the answer is reduced to what the caller may know)" if judgement.listing is not None else ""
        click.echo(f"decision   allowed{suffix}")
        return
    click.echo(f"decision   refused: {status_of(decision)} ({decision.reason})")
    raise SystemExit(1)


def _http_status(decision: Decision) -> str:
    return f"{decision.status} {decision.text or '(empty body)'}"


def _grpc_status(decision: Decision) -> str:
    return f"{GrpcStatus(grpc_status(decision)).name} {decision.text}".rstrip()


def _condition(admission: Admission, operation: Operation | None) -> str:
    """The condition on the body or message of an undecided request."""
    conditions = [entry for rights in admission.rights for entry in rights.conditions]
    confined = "can be confined to " + " and ".join(f'{entry.key} = "{entry.value}"' for entry in conditions)
    limited = any(rights.limited for rights in admission.rights)
    named = limited and operation is not None and (operation.names_others or operation in GRPC)
    return " and ".join(["names only collections that the caller has"] * named + [confined] * bool(conditions))


def _requirement(operation: Operation) -> str:
    needs = operation.requirement
    flags = [name for name in ("write", "manage", "extras") if getattr(needs, name)]
    others = ["its body may name further collections"] if operation.names_others else []
    return ", ".join([f"scope {needs.scope.value}", *flags, *others])
