"""`init`: a first configuration, from nothing or from Qdrant's."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import click

from tlsproxy.cli.common import explained
from tlsproxy.cli.writing import PUBLIC, SECRET, write_all
from tlsproxy.config.conversion import Taken, as_yaml, qdrants_own, take
from tlsproxy.config.loader import parse
from tlsproxy.config.positions import read_tree
from tlsproxy.config.problems import ConfigError
from tlsproxy.snapshot.reading import CONFIG_LIMIT, read_argument

_FILES: Final = {"cert": "certs/server.pem", "key": "certs/server.key", "ca_cert": "certs/ca.pem"}
_FIRST_ROLES: Final = ("admin=m", "search=r")
_FIRST_RULES: Final = ("ou=platform:admin", "cn=search-*:search")
_COMMENTS: Final = {
    "service": "Addresses for clients. Every key is explained in docs/configuration.md.",
    "tls": "The server's certificate, and the CAs of clients. To try: tlsproxy certs init, tlsproxy certs issue.",
    "upstream": "Qdrant, in plaintext, where only the gateway reaches it.",
    "roles": "Roles and their rights; the first rule of `identities` that matches a certificate gives its role.",
    "admin": "The operators' page and commands.",
}


@click.command()
@click.option("--from", "source", metavar="FILE", type=Path, help="Qdrant's config.yaml, to take over what fits.")
@click.option("--out", default="tlsproxy.yaml", show_default=True, type=Path, help="The file to write.")
@click.option("--force", is_flag=True, help="Overwrite it.")
@click.option("--rest", metavar="URL", default="http://127.0.0.1:16333", show_default=True, help="Qdrant's REST API.")
@click.option("--grpc", metavar="URL", default="http://127.0.0.1:16334", show_default=True, help="Qdrant's gRPC API.")
@click.option("--upstream-key-file", metavar="FILE", help="A file with the key that Qdrant asks the gateway for.")
@click.option("--cert", metavar="FILE", help="The server certificate.  [default: Qdrant's, or certs/server.pem]")
@click.option("--key", metavar="FILE", help="Its private key.  [default: Qdrant's, or certs/server.key]")
@click.option("--ca-cert", metavar="FILE", help="The CAs of client certificates.  [default: Qdrant's, or certs/ca.pem]")
@click.option("--optional-certificates", is_flag=True, help="Let clients in without a certificate, with a key alone.")
@click.option(
    "--role", "roles", metavar="NAME=ACCESS", multiple=True, help="r, pr, m, or COLLECTION:rw,COLLECTION:m; repeatable."
)
@click.option(
    "--rule", "rules", metavar="FIELD=GLOB:ROLE", multiple=True, help="Who has a role: ou=platform:admin; repeatable."
)
@click.option("--audit-dir", default="./audit", show_default=True, help="Directory of the audit log.")
@click.option("--admin", default="127.0.0.1:9333", show_default=True, help="Address of the operators' page.")
def init(  # noqa: PLR0913 - one argument for each question
    *,
    source: Path | None,
    out: Path,
    force: bool,
    rest: str,
    grpc: str,
    upstream_key_file: str | None,
    cert: str | None,
    key: str | None,
    ca_cert: str | None,
    optional_certificates: bool,
    roles: tuple[str, ...],
    rules: tuple[str, ...],
    audit_dir: str,
    admin: str,
) -> None:
    """Write a first configuration; with --from, one that takes over what a Qdrant configuration has.

    It says what was taken, what was left out and why, and what Qdrant's own file must have from then on: plaintext, on
    loopback, with other ports and without the keys of clients. Without --role, a certificate with OU=platform may do
    everything and one whose name begins with search- may read, unless keys were taken over: these go on giving rights.
    Paths are relative to the written file.
    """
    if (cert is None) != (key is None):
        raise click.UsageError("--cert and --key belong together")
    with explained():
        qdrant = _read(source) if source is not None else {}
        taken = take(qdrant, lambda name: _located(name, source))
        if not roles and not rules and not taken.secrets:
            roles, rules = _FIRST_ROLES, _FIRST_RULES
        files = {"cert": cert, "key": key, "ca_cert": ca_cert}
        config = {
            "service": taken.sections.get("service", {}) or {"host": "0.0.0.0", "http_port": 6333, "grpc_port": 6334},  # noqa: S104 - Qdrant's own default
            "tls": _FILES | taken.sections.get("tls", {}) | {name: path for name, path in files.items() if path},
            "upstream": {
                "rest": rest,
                "grpc": grpc,
                **({"api_key_file": upstream_key_file} if upstream_key_file else {}),
            },
            "roles": dict(map(_role, roles)),
            "identities": [_rule(number, text) for number, text in enumerate(rules, start=1)],
            "audit": {"dir": audit_dir} | taken.sections.get("audit", {}),
            "admin": {"listen": admin},
        } | {name: value for name, value in taken.sections.items() if name in {"log_level", "logger"}}
        if optional_certificates:
            config["service"]["verify_https_client_certificate"] = False
        config, refused = _accepted({name: value for name, value in config.items() if value}, taken, out)
        text = as_yaml(config, _COMMENTS)
        write_all([(out, text.encode(), SECRET if taken.secrets else PUBLIC)], force=force)
    if source is not None:
        _tell(taken, refused)
        click.echo("Qdrant's own file must have, from then on:")
        for line in qdrants_own(qdrant, rest, grpc, upstream_key_file):
            click.echo(f"  {line}")
    if taken.secrets:
        click.echo(
            f"{out} holds keys, so only its owner may read it; service.api_key_file keeps them in files", err=True
        )
    click.echo(f"next: tlsproxy check --config {out}")


def _read(source: Path) -> dict[str, Any]:
    tree = read_tree(read_argument(source, CONFIG_LIMIT), str(source))
    if tree.problems:
        raise ConfigError(tree.problems)
    return tree.root


def _located(name: str, source: Path | None) -> str | None:
    """The absolute path of a file of Qdrant's, whose paths are relative to where it is started.

    That is the directory of its configuration, or the one above where that is `config/`, as in its distribution.
    """
    if source is None:
        return None
    directory = source.absolute().parent
    found = (place / name for place in (directory, directory.parent) if (place / name).is_file())
    return next((str(path.resolve()) for path in found), None)


def _role(text: str) -> tuple[str, dict[str, Any]]:
    name, separator, access = text.partition("=")
    if not separator or not access:
        raise click.UsageError(f"--role {text}: NAME=ACCESS is expected, such as admin=m or ingest=docs:rw")
    if ":" not in access:
        return name, {"access": access}
    grants = (grant.rpartition(":") for grant in access.split(","))
    return name, {"access": [{"collection": collection, "access": mode} for collection, _, mode in grants]}


def _rule(number: int, text: str) -> dict[str, Any]:
    condition, separator, role = text.rpartition(":")
    field, equals, glob = condition.partition("=")
    if not (separator and equals and role and glob):
        raise click.UsageError(f"--rule {text}: FIELD=GLOB:ROLE is expected, such as ou=platform:admin")
    return {"name": f"{role}-{number}", "match": {field: glob}, "role": role}


def _accepted(config: dict[str, Any], taken: Taken, out: Path) -> tuple[dict[str, Any], list[tuple[str, str]]]:
    """The configuration without what the gateway refuses of the taken keys, and these with the reason.

    Raises ConfigError for what came from an option.
    """
    try:
        parse(as_yaml(config, _COMMENTS).encode(), out, {})
    except ConfigError as error:
        refused = [(problem.key, problem.text) for problem in error.problems if problem.key in taken.names]
        if len(refused) < len(error.problems):
            raise
        for name, _ in refused:
            section, _, key = name.partition(".")
            config[section].pop(key) if key else config.pop(section)
        parse(as_yaml(config, _COMMENTS).encode(), out, {})
        return config, refused
    return config, []


def _tell(taken: Taken, refused: Iterable[tuple[str, str]]) -> None:
    left = [*taken.left, *refused]
    names = [name for name in taken.names if name not in dict(refused)]
    click.echo(f"taken: {', '.join(names) or 'nothing'}")
    for name, reason in left:
        click.echo(f"left out: {name}: {reason}")
