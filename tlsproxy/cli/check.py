"""`check`, `config schema` and `config reference`: what a configuration says, and whether `run` would accept it."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

import click

from tlsproxy.cli.common import config_option, explained
from tlsproxy.config.listeners import listening, titles
from tlsproxy.config.loader import schema
from tlsproxy.config.model import Config, Role
from tlsproxy.config.reference import as_markdown, as_yaml
from tlsproxy.config.tokens import key_sources
from tlsproxy.errors import FailureKind, TlsproxyError
from tlsproxy.snapshot.files import read_inputs
from tlsproxy.snapshot.generation import Generation
from tlsproxy.snapshot.startup import FirstGeneration, first_generation
from tlsproxy.tls.certinfo import CertificateFacts, day


@click.command()
@config_option
@click.option("--reload", "of_reload", is_flag=True, help="Whether a running gateway would refuse any of it.")
def check(config_path: Path, *, of_reload: bool) -> None:
    """Everything that `run` would refuse: the configuration, its certificates, keys and CRLs, and a TLS handshake.

    Exits with 2 where there is an error, with 1 where `run` could not start now and would be tried again. Nothing is
    listened on, nothing sent to the upstream, and no URL fetched.

    With --reload, what only keeps a gateway from starting is a warning: a certificate that has expired or is not valid
    yet, a file that cannot be read now. One that runs goes on with what it has in its place.
    """
    with explained():
        first = _first(config_path, of_reload=of_reload)
    if first is None:
        click.echo(f"{config_path}: ok for a reload")
        return
    generation = first.generation
    for line in _summary(generation):
        click.echo(line)
    for problem in generation.unused:
        click.echo(f"unused: {problem}")
    missed = (fault.text for fault in first.faults.values())
    for warning in (*missed, *generation.warnings, *generation.material.warnings(time.time()), *first.inputs.warnings):
        click.echo(f"warning: {warning}", err=True)
    click.echo(f"{config_path}: ok")


@click.group()
def config() -> None:
    """About the configuration file."""


@config.command("schema")
def config_schema() -> None:
    """Print the JSON Schema of the configuration, for editors."""
    click.echo(json.dumps(schema(), indent=2))


@config.command("reference")
@click.option("--format", "form", type=click.Choice(["yaml", "markdown"]), default="yaml", show_default=True)
def config_reference(form: str) -> None:
    """Print every key with its default and description: as a commented file, or as tables."""
    click.echo({"yaml": as_yaml, "markdown": as_markdown}[form](), nl=False)


def _first(config_path: Path, *, of_reload: bool) -> FirstGeneration | None:
    """None where a gateway could not start with it, and one that runs can do with what it has."""
    try:
        return first_generation(config_path, os.environ, read_inputs(config_path, os.environ), {})
    except TlsproxyError as error:
        if error.kind is FailureKind.INPUT or (error.kind is FailureKind.AGE and not of_reload):
            raise
        label = "warning" if of_reload else "error"
        click.echo("\n".join(f"{label}: {line}" for line in str(error).splitlines()), err=True)
        if of_reload:
            return None
        raise SystemExit(1) from None


def _summary(generation: Generation) -> Iterator[str]:
    material = generation.material
    yield from _certificate("certificate", material.leaf)
    for authority, anchor in zip(material.authorities, material.anchors.trusted.values(), strict=True):
        yield from _certificate("client CA", authority)
        yield from (f"  only       {confinement}" for confinement in material.anchors.confinements(anchor))
    for crl in material.crls:
        yield f"CRL of {crl.issuer}: {crl.count} revoked, next update {day(crl.next_update)}"
    for one in listening(generation.config):
        yield f"listens on {one.endpoint} for {titles(one.protocols)}"
    if not generation.config.service.verify_https_client_certificate:
        yield "client certificates are optional"
    for source in key_sources(generation.config):
        yield f"{source.shown}: not fetched by this command; `run` fetches it, and its tokens wait for that"
    for name, role in generation.config.roles.items():
        yield f"role {name}: {_access(role)}{_where(role)}; {_holders(generation.config, name)}"


def _holders(config: Config, role: str) -> str:
    rules = [rule.name for rule in config.identities if rule.role == role]
    keys = [f"key {key.name}" for key in config.keys if key.role == role]
    issuers = [f"confines tokens of {issuer.name}" for issuer in config.jwt_issuers if issuer.role == role]
    return ", ".join([f"given by {', '.join([*rules, *keys]) or 'nobody'}", *issuers])


def _certificate(label: str, facts: CertificateFacts) -> Iterator[str]:
    yield f"{label}: {facts.subject or '(empty subject)'}"
    names = [*(f"DNS:{name}" for name in facts.dns_names), *(f"IP:{ip}" for ip in facts.ips)]
    if names:
        yield f"  names      {', '.join(names)}"
    yield f"  valid      {day(facts.not_before)} to {day(facts.not_after)}"
    yield f"  SHA-256    {facts.sha256}"


def _where(role: Role) -> str:
    conditions = " and ".join(f'{key} = "{text}"' for key, text in role.filter.items())
    return f" where {conditions}" if conditions else ""


def _access(role: Role) -> str:
    if isinstance(role.access, str):
        return {"r": "reads everything (r)", "m": "everything (m)"}[role.access]
    return ", ".join(f"{grant.collection} ({grant.access})" for grant in role.access) or "nothing"
