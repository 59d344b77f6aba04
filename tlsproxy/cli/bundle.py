"""`bundle`: configuration bundles: their keys, signing, verification. No gateway is asked."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import click
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_der_private_key,
    load_pem_private_key,
)

from tlsproxy.cli.common import explained
from tlsproxy.cli.writing import PUBLIC, SECRET, write_all
from tlsproxy.config.bundle import MAX_BUNDLE, NAME, PIECE_SUFFIX, Bundle, key_id, opened, signed, unverified
from tlsproxy.config.pieces import MAIN_ONLY
from tlsproxy.config.positions import Path as TreePath
from tlsproxy.config.positions import read_tree
from tlsproxy.config.problems import ConfigError
from tlsproxy.errors import MaterialError
from tlsproxy.pem.blocks import text_of
from tlsproxy.snapshot.config_files import KEY_LIMIT
from tlsproxy.snapshot.reading import read_argument
from tlsproxy.text import printable, utc_time

_DAY: Final = 86400
_PRIVATE_KEY: Final = re.compile(rb"-----BEGIN [A-Z ]*PRIVATE KEY-----")
_PRIVATE_MEMBERS: Final = frozenset({"d", "k"})
"""Members of a JSON Web Key that are secret (RFC 7518 §6)."""
_SECRETS: Final = frozenset({"api_key", "alt_api_key", "read_only_api_key"})

_path = click.Path(path_type=Path)


@click.group()
def bundle() -> None:
    """Configuration bundles: signed files of a configuration that gateways fetch (`bundle` in the configuration)."""


@bundle.command()
@click.option("--out", "name", default="bundle", show_default=True, help="Write NAME.key and NAME.pub.", type=_path)
@click.option("--force", is_flag=True, help="Overwrite files that exist.")
def keygen(name: Path, *, force: bool) -> None:
    """Make a key pair (Ed25519): NAME.key signs, NAME.pub is `bundle.public_key` of the gateways."""
    if not name.name:
        raise click.UsageError("--out must end with a name")
    key = Ed25519PrivateKey.generate()
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    with explained():
        write_all(
            [
                (name.with_name(f"{name.name}.key"), private, SECRET),
                (name.with_name(f"{name.name}.pub"), public, PUBLIC),
            ],
            force=force,
        )
    click.echo(f"key {key_id(key.public_key())}")


@bundle.command()
@click.option("--key", "key_path", required=True, metavar="FILE", help="The private key.", type=_path)
@click.option("--out", required=True, metavar="FILE", help="Write the bundle here, in the place of one.", type=_path)
@click.option(
    "--version",
    type=click.IntRange(1, 1 << 53),
    help="A number higher than that of any bundle before.  [default: seconds since 1970]",
)
@click.option("--days", type=click.IntRange(1, 36500), help="Days after which no gateway takes it any more.")
@click.option("--with-secrets", is_flag=True, help="Sign files with private keys and API keys too.")
@click.argument("files", nargs=-1, required=True, metavar="FILES...", type=_path)
def sign(
    key_path: Path, out: Path, version: int | None, days: int | None, files: tuple[Path, ...], *, with_secrets: bool
) -> None:
    """Sign FILES as one bundle: pieces of the configuration (*.yaml) and the files that they name.

    Each is known by its name alone, without its directory: `ca_cert: ca.pem` is the bundle's own ca.pem.
    """
    with explained():
        key = _private_key(key_path)
        held = _held(files, with_secrets=with_secrets)
        now = time.time()
        number = int(now) if version is None else version
        data = signed(key, number, now, None if days is None else now + days * _DAY, held)
        if len(data) > MAX_BUNDLE:
            raise MaterialError(str(out), f"would have more than {MAX_BUNDLE >> 20} MiB, which no gateway takes")
        write_all([(out, data, PUBLIC)], force=True)
        _show(unverified(str(out), data))


@bundle.command()
@click.option(
    "--public-key", "keys", multiple=True, required=True, metavar="FILE", help="A key to trust; repeatable.", type=_path
)
@click.argument("path", metavar="BUNDLE", type=_path)
def verify(keys: tuple[Path, ...], path: Path) -> None:
    """Verify the signature and the expiry of BUNDLE, and show it. Exits with 2 if it cannot be trusted."""
    with explained():
        trusted = [(str(key), read_argument(key, KEY_LIMIT)) for key in keys]
        found = opened(str(path), read_argument(path, MAX_BUNDLE), trusted)
        found.check_newer(str(path), time.time(), None)
        _show(found)
    click.echo(f"{path}: ok")


@bundle.command()
@click.option("--file", "name", metavar="NAME", help="Print this file of the bundle instead.")
@click.argument("path", metavar="BUNDLE", type=_path)
def show(path: Path, name: str | None) -> None:
    """Show BUNDLE, whoever has signed it: its signature is not verified."""
    with explained():
        found = unverified(str(path), read_argument(path, MAX_BUNDLE))
        if name is None:
            click.echo("not verified")
            _show(found)
            return
        if name not in found.files:
            raise click.UsageError(f"the bundle has no file {printable(name)!r}: {', '.join(found.files)}")
        click.echo(found.files[name], nl=False)


def _private_key(path: Path) -> Ed25519PrivateKey:
    try:
        key = load_pem_private_key(read_argument(path, KEY_LIMIT), None)
    except (ValueError, TypeError):
        raise MaterialError(str(path), "is no private key (PEM, without a passphrase)") from None
    if not isinstance(key, Ed25519PrivateKey):
        raise MaterialError(str(path), "is not an Ed25519 key: `tlsproxy bundle keygen` makes one")
    return key


def _held(paths: tuple[Path, ...], *, with_secrets: bool) -> dict[str, bytes]:
    held: dict[str, bytes] = {}
    for path in paths:
        data = read_argument(path, MAX_BUNDLE)
        if NAME.fullmatch(path.name) is None:
            raise MaterialError(str(path), "must have a name of letters, digits, '.', '_' and '-', of 128 at most")
        if path.name in held:
            raise MaterialError(str(path), "has the name of another file: a bundle has no directories")
        if not with_secrets and _is_secret(text_of(str(path), data)):
            raise MaterialError(str(path), "holds a private key; --with-secrets signs it all the same")
        held[path.name] = data
    for path in paths:
        if path.name.endswith(PIECE_SUFFIX):
            _check_piece(path, held, with_secrets=with_secrets)
    return held


def _check_piece(path: Path, held: Mapping[str, bytes], *, with_secrets: bool) -> None:
    tree = read_tree(held[path.name], str(path))
    problems = [*tree.problems]
    for where, position in tree.positions.items():
        if len(where) == 1 and where[0] in MAIN_ONLY:
            problems.append(position.problem(where, MAIN_ONLY[str(where[0])]))
        if not with_secrets and where and where[-1] in _SECRETS and tree.get(where):
            problems.append(position.problem(where, "an API key; --with-secrets signs it all the same"))
        named = tree.get(where)
        if not with_secrets and _names_secret(where) and isinstance(named, str) and str(Path(named)) in held:
            problems.append(position.problem(where, "a file of this bundle; --with-secrets signs it all the same"))
    if problems:
        raise ConfigError(problems)


def _names_secret(where: TreePath) -> bool:
    """Whether a key names a file of a key, password or token, as `upstream.api_key_file` and `keys[0].file` do."""
    return bool(where) and (str(where[-1]).endswith("_file") or (where[0], where[-1]) == ("keys", "file"))


def _is_secret(data: bytes) -> bool:
    """Whether it has a private key, in PEM, in DER or as a JSON Web Key."""
    if _PRIVATE_KEY.search(data):
        return True
    with suppress(ValueError, TypeError, UnsupportedAlgorithm):
        load_der_private_key(data, None)
        return True
    try:
        return _has_private_member(json.loads(data))
    except (ValueError, RecursionError):
        return False


def _has_private_member(document: Any) -> bool:
    listed = document.get("keys", [document]) if isinstance(document, dict) else document
    return isinstance(listed, list) and any(
        isinstance(key, dict) and "kty" in key and not _PRIVATE_MEMBERS.isdisjoint(key) for key in listed
    )


def _show(found: Bundle) -> None:
    click.echo(f"version {found.version}, signed with the key {found.key} on {utc_time(found.created)}")
    click.echo("expires " + ("never" if found.expires is None else utc_time(found.expires)))
    for name, data in sorted(found.files.items()):
        click.echo(f"  {name}: {len(data)} bytes{', configuration' if name.endswith(PIECE_SUFFIX) else ''}")
