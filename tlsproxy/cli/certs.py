"""`certs`: a development CA in a directory. Files are never overwritten unless `--force` is given; keys are 0600.

`init` writes ca.pem and ca.key; `issue` writes NAME.pem (the certificate and its intermediates) and NAME.key.
"""

from __future__ import annotations

import os
import re
import time
from datetime import timedelta
from pathlib import Path
from typing import Final

import click

from tlsproxy.cli.common import explained
from tlsproxy.cli.show import described, read_certificates
from tlsproxy.errors import MaterialError
from tlsproxy.snapshot.files import PEM_LIMIT, read_argument
from tlsproxy.tls.pki import Authority, Issued

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_SECRET: Final = 0o600
_PUBLIC: Final = 0o644

_directory = click.option(
    "--dir",
    "directory",
    metavar="DIR",
    default="certs",
    show_default=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="Directory of the development CA.",
)
_force = click.option("--force", is_flag=True, help="Overwrite files that exist.")


@click.group()
def certs() -> None:
    """Make certificates for development. A production CA belongs elsewhere."""


@certs.command()
@_directory
@_force
@click.option("--cn", default="tlsproxy development CA", show_default=True, help="Common name of the CA.")
@click.option("--days", default=3650, show_default=True, type=click.IntRange(1, 36500), help="Lifetime.")
def init(directory: Path, cn: str, days: int, *, force: bool) -> None:
    """Create the CA: ca.pem and ca.key."""
    with explained():
        authority = Authority.create(cn, lifetime=timedelta(days=days))
        _write_pair(directory, "ca", authority.certificate_pem, authority.key_pem, force=force)


@certs.command()
@_directory
@_force
@click.option("--name", required=True, help="Files to write: NAME.pem and NAME.key.")
@click.option("--server", is_flag=True, help="For TLS servers (extended key usage serverAuth).")
@click.option("--client", is_flag=True, help="For TLS clients (extended key usage clientAuth).")
@click.option("--cn", help="Common name.  [default: NAME]")
@click.option("--o", "organization", default="", help="Organization.")
@click.option("--ou", "organizational_unit", default="", help="Organizational unit.")
@click.option("--dns", multiple=True, help="DNS name; may be repeated, as the next three.")
@click.option("--uri", "uris", multiple=True, help="URI, such as a SPIFFE ID.")
@click.option("--email", "emails", multiple=True, help="Email address.")
@click.option("--ip", "ips", multiple=True, help="IP address.")
@click.option("--days", default=90, show_default=True, type=click.IntRange(1, 36500), help="Lifetime.")
def issue(  # noqa: PLR0913 - one argument for each option of a certificate
    *,
    directory: Path,
    force: bool,
    name: str,
    server: bool,
    client: bool,
    cn: str | None,
    organization: str,
    organizational_unit: str,
    dns: tuple[str, ...],
    uris: tuple[str, ...],
    emails: tuple[str, ...],
    ips: tuple[str, ...],
    days: int,
) -> None:
    """Issue a certificate with a new key: NAME.pem and NAME.key."""
    if not (server or client):
        raise click.UsageError("the purpose is missing: --server, --client, or both")
    if not _NAME.fullmatch(name) or name == "ca":
        raise click.UsageError("--name is a file name without its suffix, and not that of the CA")
    with explained():
        authority = _authority(directory)
        try:
            issued: Issued = authority.issue(
                common_name=name if cn is None else cn,
                organization=organization,
                organizational_unit=organizational_unit,
                dns=dns,
                uris=uris,
                emails=emails,
                ips=ips,
                server=server,
                client=client,
                lifetime=timedelta(days=days),
            )
        except ValueError as error:
            raise click.UsageError(f"not a certificate that can be issued: {error}") from None
        _write_pair(directory, name, issued.chain_pem, issued.key_pem, force=force)


@certs.command()
@click.argument("files", nargs=-1, required=True, metavar="FILE...", type=click.Path(path_type=Path))
def show(files: tuple[Path, ...]) -> None:
    """Show the certificates of files (PEM or DER): the fields that the rules under `identities` match on."""
    with explained():
        for path in files:
            for number, identity in enumerate(read_certificates(path), start=1):
                click.echo(f"{path} ({number})")
                for line in described(identity, now=time.time()):
                    click.echo(f"  {line}")


def _authority(directory: Path) -> Authority:
    certificate, key = directory / "ca.pem", directory / "ca.key"
    if not certificate.exists():
        raise MaterialError(
            str(certificate), f"there is no CA: create one with `tlsproxy certs init --dir {directory}`"
        )
    try:
        return Authority.load(read_argument(certificate, PEM_LIMIT), read_argument(key, PEM_LIMIT))
    except ValueError as error:
        raise MaterialError(str(certificate), f"is not a CA that can issue: {error}") from None


def _write_pair(directory: Path, name: str, certificate_pem: bytes, key_pem: bytes, *, force: bool) -> None:
    """Write the key first: a gateway that watches these files waits for the certificate that belongs to it."""
    pairs = ((directory / f"{name}.key", key_pem, _SECRET), (directory / f"{name}.pem", certificate_pem, _PUBLIC))
    for path, _, _ in pairs:
        if not force and path.exists():
            raise MaterialError(str(path), "exists; --force overwrites it")
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for path, data, mode in pairs:
            _write(path, data, mode, force=force)
            click.echo(f"wrote {path}")
    except OSError as error:
        raise MaterialError(str(error.filename or directory), f"cannot be written: {error.strerror}") from None


def _write(path: Path, data: bytes, mode: int, *, force: bool) -> None:
    """Write whole or not at all. With O_EXCL the mode is right from the first moment, and no link is followed."""
    scratch = path.with_name(f".{path.name}.new")
    scratch.unlink(missing_ok=True)
    with os.fdopen(os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
        file.write(data)
    try:
        if force:
            scratch.replace(path)
        else:
            path.hardlink_to(scratch)  # unlike a rename, it fails where the name is taken
    finally:
        scratch.unlink(missing_ok=True)
