"""`token mint`, `token show` and `token verify`: tokens of Qdrant's kind, as this gateway and Qdrant read them."""

from __future__ import annotations

import json
import os
import time
from base64 import urlsafe_b64encode
from pathlib import Path
from typing import Any

import click

from tlsproxy.authz.access import GRANTS, Decision
from tlsproxy.authz.admission import token_credential
from tlsproxy.authz.claims import read_claims, read_object, unpadded
from tlsproxy.authz.identity import Identity
from tlsproxy.authz.tokens import Tokens, mint, qdrant_verifier
from tlsproxy.cli.common import FAILED, config_option, explained
from tlsproxy.cli.inspection import NoConnection, connected, inspected_generation, served
from tlsproxy.cli.secret import fetch_option, read_secret, warn_of_end
from tlsproxy.cli.show import read_certificates, read_chain
from tlsproxy.config.model import Config
from tlsproxy.config.secrets import signing_keys
from tlsproxy.snapshot.files import read_configuration
from tlsproxy.snapshot.generation import Generation
from tlsproxy.snapshot.reading import SECRET_LIMIT, read_file
from tlsproxy.text import utc_time

_FILE = click.argument("source", metavar="FILE")
_CERTIFICATE = click.Path(path_type=Path)


@click.group()
def token() -> None:
    """Make and look at tokens (JWT). A token is read from FILE, or from the standard input for `-`."""


@token.command("mint")
@config_option
@click.option("--access", type=click.Choice(["r", "m"]), help="All of Qdrant: r reads, m does everything.")
@click.option(
    "--collection", "collections", metavar="NAME:r|rw|prw", multiple=True, help="A collection, or a glob; repeatable."
)
@click.option("--days", type=click.FloatRange(min=0, min_open=True), default=30.0, show_default=True)
@click.option("--no-expiry", is_flag=True, help="Never expires: it is valid until the key is changed.")
@click.option("--subject", metavar="TEXT", help="What the audit log calls its holder.")
@click.option("--certificate", metavar="FILE", type=_CERTIFICATE, help="Valid only beside this client certificate.")
@click.option("--alt", is_flag=True, help="Sign with alt_api_key instead of api_key.")
def mint_command(  # noqa: PLR0913 - one for each option
    config_path: Path,
    *,
    access: str | None,
    collections: tuple[str, ...],
    days: float,
    no_expiry: bool,
    subject: str | None,
    certificate: Path | None,
    alt: bool,
) -> None:
    """Print a token, signed with an API key of the configuration."""
    if (access is None) == (not collections):
        raise click.UsageError("say what it may do: --access, or --collection once or more")
    claims: dict[str, Any] = {"access": access or [_grant(each) for each in collections]}
    if not no_expiry:
        claims["exp"] = int(time.time() + days * 86400)
    if subject is not None:
        claims["subject"] = subject
    with explained():
        config = _config(config_path)
        if certificate is not None:
            claims["cnf"] = {"x5t#S256": _thumbprint(certificate)}
        name = "alt_api_key" if alt else "api_key"
        secret = dict(signing_keys(config, _secret_file)).get(name)
    if secret is None:
        click.echo(f"error: service.{name} is not set: it is what tokens are signed with", err=True)
        raise SystemExit(FAILED)
    made = mint(secret, claims)
    outcome = Tokens((qdrant_verifier(name, secret),)).verify(made, None, time.time())
    if isinstance(outcome, Decision) and outcome.reason != "token_of_another_certificate":
        raise click.UsageError(f"such a token would be refused: {outcome.text}")
    if not config.service.jwt_rbac:
        click.echo("warning: service.jwt_rbac is false: no token is accepted", err=True)
    click.echo(made)


@token.command()
@_FILE
def show(source: str) -> None:
    """Show what a token says. Its signature is NOT verified."""
    with explained():
        text = read_secret(source)
    try:
        header, payload = (unpadded(part) for part in text.split(".")[:2])
        click.echo(f"header     {json.dumps(read_object(header))}")
        click.echo(f"claims     {json.dumps(read_object(payload))}")
        claims = read_claims(payload)
    except ValueError as error:
        click.echo(f"not a token that would be accepted: {error}")
        raise SystemExit(1) from None
    click.echo(f"rights     {claims.rights if claims.rights is not None else 'no access claim'}")
    if claims.expires is not None:
        expired = " (expired)" if claims.expires < time.time() else ""
        click.echo(f"expires    {utc_time(claims.expires)}{expired}")
        warn_of_end(claims.expires, time.time())
    if claims.defect:
        click.echo(f"defect     {claims.defect}")
    click.echo("the signature was not verified")


@token.command()
@config_option
@click.option("--certificate", metavar="FILE", type=_CERTIFICATE, help="The client certificate that it is sent with.")
@fetch_option
@_FILE
def verify(config_path: Path, certificate: Path | None, *, fetch: bool, source: str) -> None:
    """Say whether a token would be accepted, and what it gives. Exits with 1 if it would not."""
    now = time.time()
    with explained():
        generation = inspected_generation(config_path, with_keys=True, fetch=fetch)
        policy, identity = generation.policy, None
        text = read_secret(source)
        if certificate is not None:
            identity = _identity(generation, certificate, now)
    if not policy.tokens:
        click.echo("refused: no token is accepted: service.jwt_rbac is false, or there is no key to sign one with")
        raise SystemExit(1)
    token = policy.tokens.verify(text, identity, now)
    outcome = token if isinstance(token, Decision) else token_credential(token, policy, identity)
    if isinstance(outcome, Decision):
        click.echo(f"refused: {outcome.status} {outcome.text} ({outcome.reason})")
        raise SystemExit(1)
    gives = [f"rule {rule.name}: role {rule.role}"] if (rule := outcome.rule) is not None else []
    gives += [f"role {outcome.role}"] if outcome.role else []
    role = f" ({'; '.join(gives)})" if gives else ""
    warn_of_end(outcome.expires, now)
    click.echo(f"accepted: signed by {outcome.name}{role}, gives {outcome.gives}")


def _identity(generation: Generation, certificate: Path, now: float) -> Identity | None:
    """The client of a connection with this certificate; exits with 1 where there is none."""
    try:
        return connected(generation, served(generation), read_chain(certificate), now).identity
    except NoConnection as error:
        click.echo(f"no connection: {error}")
        raise SystemExit(1) from None


def _config(path: Path) -> Config:
    return read_configuration(path, os.environ).config


def _secret_file(path: Path) -> bytes:
    return read_file(path, SECRET_LIMIT)


def _grant(text: str) -> dict[str, str]:
    name, _, access = text.rpartition(":")
    if not name or access not in GRANTS:
        raise click.UsageError(f"--collection is NAME:{'|'.join(GRANTS)}")
    return {"collection": name, "access": access}


def _thumbprint(certificate: Path) -> str:
    return urlsafe_b64encode(bytes.fromhex(read_certificates(certificate)[0].sha256)).rstrip(b"=").decode()
