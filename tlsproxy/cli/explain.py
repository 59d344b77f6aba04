"""`explain`: the gateway's decision on a certificate's request, and the rules behind it."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterable
from itertools import takewhile
from pathlib import Path

import click

from tlsproxy.authz.access import UNREAD, Decision
from tlsproxy.authz.admission import Admission, admit, joined, key_credential
from tlsproxy.authz.keys import NEVER
from tlsproxy.authz.locks import Lock
from tlsproxy.authz.locks import refusal as locked
from tlsproxy.authz.roles import Policy, Principal
from tlsproxy.authz.tokens import INVALID
from tlsproxy.cli.common import config_option, explained
from tlsproxy.cli.inspection import NoConnection, connected, inspected_generation
from tlsproxy.cli.matrix import matrix_of
from tlsproxy.cli.questions import Client, Line, Request, client_of, line_of
from tlsproxy.cli.secret import fetch_option, read_secret, token_option, warn_of_end
from tlsproxy.cli.show import described
from tlsproxy.config.problems import did_you_mean
from tlsproxy.errors import GrpcStatus, RequestError
from tlsproxy.proxy.decision.call_plan import grpc_status
from tlsproxy.qdrant.grpc_decision import decide_at_best, decide_call, operation_of
from tlsproxy.qdrant.operations import GRPC, Operation
from tlsproxy.qdrant.query_policy import concerning
from tlsproxy.qdrant.rest_decision import HeadDecision, decide_request, needs_names
from tlsproxy.qdrant.rest_tenancy import has_body
from tlsproxy.qdrant.router import recognise
from tlsproxy.snapshot.files import read_configuration
from tlsproxy.snapshot.generation import Generation
from tlsproxy.text import printable, utc_time


@click.command()
@config_option
@token_option
@fetch_option
@click.option(
    "--line",
    "source",
    metavar="FILE",
    help="Explain the request of this line of the audit log again, in place of CERT, METHOD and PATH; - for stdin.",
)
@click.option("--matrix", "role", metavar="ROLE", help="Print what a role may do: all operations, by its collections.")
@click.option("--json", "as_json", is_flag=True, help="Print the matrix as JSON.")
@click.argument("cert", required=False)
@click.argument("method", required=False)
@click.argument("path", required=False)
def explain(  # noqa: PLR0913 - one for each option and argument
    config_path: Path,
    token: str | None,
    *,
    fetch: bool,
    source: str | None,
    role: str | None,
    as_json: bool,
    cert: str | None,
    method: str | None,
    path: str | None,
) -> None:
    """Show whether the holder of CERT would get a connection, its identity and role, and whether it may do METHOD PATH.

    CERT is a file (PEM or DER; intermediates that the client sends follow its certificate), `none` for no certificate,
    or a subject such as CN=alice,OU=search. A file's chain is verified as in a handshake: dates, CA, purpose, CRLs. A
    subject alone cannot be.

    For a gRPC call METHOD is `grpc`, and PATH its full method: /qdrant.Points/Search.

    Exits with 0 if allowed, 1 if not. With --token the decision is on a request with that key or token, and the
    configuration's keys are read, those of a URL only with --fetch; of a token the rules that name claims are shown
    too.

    With --matrix ROLE in place of a client and its request, all operations of Qdrant are shown, and what a holder of
    that role may do on the collections of each of its grants. Nothing but the configuration is read.
    """
    now = time.time()
    with explained():
        if role is not None:
            if any(one is not None for one in (token, source, cert)):
                raise click.UsageError("--matrix is about a role: leave the client and its request out")
            _explain_matrix(config_path, role, as_json=as_json)
            return
        if as_json:
            raise click.UsageError("--json is for --matrix")
        try:
            if source is None:
                _explain_arguments(config_path, token, cert, method, path, now, fetch=fetch)
            elif cert is None and token is None:
                _explain_line(config_path, line_of(source), now)
            else:
                raise click.UsageError("--line has the client, its key and the request: leave the others out")
        except NoConnection as error:
            click.echo(f"no connection: {error}")
            raise SystemExit(1) from None


def _explain_matrix(config_path: Path, name: str, *, as_json: bool) -> None:
    roles = read_configuration(config_path, os.environ).config.roles
    role = roles.get(name)
    if role is None:
        raise click.UsageError(f"no role is called {printable(name)!r}{did_you_mean(name, roles)}")
    matrix = matrix_of(name, role)
    if as_json:
        click.echo(json.dumps(matrix.as_json(), indent=2))
    else:
        from tlsproxy.cli import terminal  # noqa: PLC0415

        terminal.show_matrix(matrix)


def _explain_arguments(
    config_path: Path,
    token: str | None,
    cert: str | None,
    method: str | None,
    path: str | None,
    now: float,
    *,
    fetch: bool,
) -> None:
    if cert is None or method is None:
        raise click.UsageError("say CERT, METHOD and PATH, or give an audit line with --line, or a role with --matrix")
    request, client = Request.of(method, path), client_of(cert)
    generation = inspected_generation(config_path, with_keys=token is not None, fetch=fetch)
    presented = None if token is None else read_secret(token)
    principal = _principal(generation, client, request, now)
    if presented is not None and principal.refusal is None:
        _print_token(generation.policy, presented, principal, now)
    _print_decision_on(request, admit(principal, generation.policy, presented, now), principal)


def _explain_line(config_path: Path, line: Line, now: float) -> None:
    click.echo(f"recorded   {line.recorded}")
    try:
        request = line.request()
        generation = inspected_generation(config_path, with_keys=False)
        client = line.client(generation.material.anchors)
    except NoConnection:
        _print_lines(line.presented)
        raise
    policy = generation.policy
    principal = _principal(generation, client, request, now)
    credential = None
    if line.token:
        click.echo(f"not judged its token, which no log has; recorded rights: {printable(line.token)}")
    elif line.key:
        key = policy.keys.named(line.key, principal.identity, now)
        lock = policy.locks.of_key(line.key, now)
        _print_lock(lock)
        outcome = INVALID if key is None else key_credential(key, policy, principal.identity)
        outcome = outcome if lock is None else locked("key")
        if isinstance(outcome, Decision):
            _print_decision_on(request, outcome, principal)
            return
        credential = outcome
    _print_decision_on(request, joined(principal, policy, credential), principal)


def _principal(generation: Generation, client: Client, request: Request, now: float) -> Principal:
    """The principal of the client's connection, with its identity and rules printed. Raises NoConnection."""
    identity, policy = client.identity, generation.policy
    if client.chain is None:
        principal, _ = policy.held(policy.principal_of(identity), now)
    else:
        try:
            principal = connected(generation, request.protocol, client.chain, now).principal
        except NoConnection:
            _print_lines(described(identity, now=now) if identity is not None else ())
            raise
        if identity is not None and principal.identity is None:
            click.echo("not judged the certificate: without tls.ca_cert none is asked for")
        identity = principal.identity
    if identity is not None:
        _print_lines(described(identity, now=now))
        _print_lines(f"  {line}" for line in policy.why(identity))
    if client.chain is None:
        click.echo("not judged the connection: dates, CA, purpose and CRLs are those of a certificate file")
        earlier = takewhile(
            lambda rule: rule.name != principal.rule, (rule for rule in policy.rules if not rule.claims)
        )
        unsure = [rule.name for rule in earlier if {name for name, _ in rule.match.given()} - client.told]
        if unsure:
            click.echo(f"not judged rules that ask for more than is told here: {', '.join(unsure)}")
    _print_lock(policy.locks.of_identity(identity, now))
    click.echo(f"rule       {principal.rule or 'none'}")
    return principal


def _print_token(policy: Policy, presented: str, principal: Principal, now: float) -> None:
    """Subject and groups of a token that is valid in itself, with the rules that were tried on its claims.

    The lock that holds it, or a key.
    """
    key = policy.keys.find(presented, principal.identity, now)
    if key is not None:
        _print_lock(policy.locks.of_key(key.name, now))
        return
    token = policy.tokens.verify(presented, principal.identity, now)
    if isinstance(token, Decision):
        return
    facts = [f"subject {token.subject}" if token.subject else "without a subject"]
    facts += [f"groups {', '.join(token.groups)}"] if token.groups else []
    click.echo(f"token      {printable('; '.join(facts))}")
    _print_lines(f"  {printable(line)}" for line in policy.why_of_token(token, principal.identity))
    _print_lock(policy.locks.of_token(token.verifier.name, token.claims.claims, now))


def _print_lock(lock: Lock | None) -> None:
    if lock is None:
        return
    until = "" if lock.until == NEVER else f" until {utc_time(lock.until)}"
    by = f", by {lock.by}" if lock.by else ""
    reason = f": {lock.reason}" if lock.reason else ""
    click.echo(f"locked     {printable(f'{lock.name}{until}{by}{reason}')}")


def _print_lines(lines: Iterable[str]) -> None:
    for line in lines:
        click.echo(line)


def _print_decision_on(request: Request, admitted: Admission | Decision, principal: Principal) -> None:
    """Exits with 1 for a refusal."""
    caller = admitted.principal if isinstance(admitted, Admission) else principal
    click.echo(f"role       {caller.role or 'none'}{f' ({caller.rights})' if caller.role else ''}")
    if isinstance(admitted, Admission):
        _print_credential(admitted)
    if request.protocol == "grpc":
        called = operation_of(request.path)
        _print_operation(called, "gRPC method")
        judgement = decide_call(admitted, called)
        if judgement.decision is UNREAD and isinstance(admitted, Admission) and called is not None:
            at_best = decide_at_best(admitted, called)
            judgement = judgement if at_best.allowed else HeadDecision(at_best)
        _print_decision(judgement, admitted, called, _grpc_status)
        return
    try:
        asked = recognise(request.method, request.path)
    except RequestError as error:
        click.echo(f"decision   refused: {error.status} {error} ({error.reason})")
        raise SystemExit(1) from None
    _print_operation(asked.operation, "route, or not for this method")
    if asked.collection is not None:
        click.echo(f"collection {printable(asked.collection)}")
    _print_decision(decide_request(admitted, asked), admitted, asked.operation, _http_status)


def _print_credential(admission: Admission) -> None:
    credential = admission.credential
    if credential is None:
        return
    role = f", role {credential.role}" if credential.role else ""
    if credential.rule is not None:
        role = f", rule {credential.rule.name} (role {credential.rule.role}){role}"
    click.echo(
        f"{'key' if credential.kind == 'ApiKey' else 'token of':<10} {credential.name} ({credential.gives}){role}"
    )
    if credential.expires != NEVER:
        click.echo(f"until      {utc_time(credential.expires)}")
        warn_of_end(credential.expires, time.time())
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
    if decision is UNREAD and isinstance(admitted, Admission) and operation is not None:
        subject = "its body" if has_body(operation) else "it"
        click.echo(f"decision   allowed if {subject} {_condition(admitted, operation)}")
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


def _condition(admission: Admission, operation: Operation) -> str:
    """The condition on the body or message of an undecided request."""
    confinements = admission.confinements
    limited = any(rights.limited for rights in admission.rights)
    conditions = {
        "names only collections and aliases that the caller may manage": operation.names_changed,
        "names only collections that the caller has": limited
        and not operation.names_changed
        and (operation.names_others or operation in GRPC),
        "has no operation in it that is left out": bool(operation.carries) and needs_names(admission.rights, operation),
        "keeps to the query policy of the role": bool(concerning(admission.queries, operation)),
        f"can be confined to {' and '.join(map(str, confinements))}": bool(confinements),
    }
    return " and ".join(text for text, holds in conditions.items() if holds)


def _requirement(operation: Operation) -> str:
    needs = operation.requirement
    flags = [name for name in ("write", "manage", "extras", "files") if getattr(needs, name)]
    flags += ["or m on all that it names"] * needs.grantable
    others = ["its body may name further collections"] if operation.names_others else []
    return ", ".join([f"scope {needs.scope.value}", *flags, *others])
