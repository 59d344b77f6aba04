"""`certs`: a development CA in a directory. Files are never overwritten unless `--force` is given; keys are 0600.

`init` writes ca.pem and ca.key; `issue` writes NAME.pem (the certificate and its intermediates) and NAME.key; `p12`
writes NAME.p12. `revoke` and `crl` replace ca.crl, which is the CA's only record of what it has revoked.
"""

from __future__ import annotations

import fcntl
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final, cast, get_args

import click
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    KeySerializationEncryption,
    PrivateFormat,
    pkcs12,
)

from tlsproxy.cli.common import explained
from tlsproxy.cli.secret import read_secret
from tlsproxy.cli.show import described, read_certificates, read_chain
from tlsproxy.cli.writing import PUBLIC, SECRET, write_all
from tlsproxy.errors import MaterialError
from tlsproxy.snapshot.reading import CRL_LIMIT, PEM_LIMIT, read_argument
from tlsproxy.text import utc_time
from tlsproxy.tls.pki import Authority, Issued, KeyType, read_key

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")

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
_key_type = click.option(
    "--key-type",
    type=click.Choice(get_args(KeyType)),
    default="ecdsa",
    show_default=True,
    help="ECDSA P-256, RSA of 3072 bits, or Ed25519, which browsers and some clients do not know.",
)
_crl_days = click.option(
    "--days", default=30, show_default=True, type=click.IntRange(1, 3650), help="Days until the next CRL is due."
)


@click.group()
def certs() -> None:
    """Make certificates for development. A production CA belongs elsewhere."""


@certs.command()
@_directory
@_force
@click.option("--cn", default="tlsproxy development CA", show_default=True, help="Common name of the CA.")
@click.option("--days", default=3650, show_default=True, type=click.IntRange(1, 36500), help="Lifetime.")
@_key_type
def init(directory: Path, cn: str, days: int, key_type: KeyType, *, force: bool) -> None:
    """Create the CA: ca.pem and ca.key."""
    with explained():
        authority = Authority.create(cn, lifetime=timedelta(days=days), key_type=key_type)
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
@_key_type
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
    key_type: KeyType,
) -> None:
    """Issue a certificate with a new key: NAME.pem and NAME.key."""
    if not (server or client):
        raise click.UsageError("the purpose is missing: --server, --client, or both")
    _check_name(name)
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
                key_type=key_type,
            )
        except ValueError as error:
            raise click.UsageError(f"not a certificate that can be issued: {error}") from None
        _write_pair(directory, name, issued.chain_pem, issued.key_pem, force=force)


@certs.command()
@_directory
@_crl_days
@click.option("--serial", metavar="HEX", help="Serial number in place of NAME, as in `certs show` and the audit log.")
@click.argument("name", required=False)
def revoke(directory: Path, days: int, serial: str | None, name: str | None) -> None:
    """Revoke the certificate of NAME.pem, or that of a serial number, in ca.crl.

    A gateway whose tls.crl names that file takes it up by itself, and ends the connections of the certificate.
    """
    if (name is None) == (serial is None):
        raise click.UsageError("say what to revoke: NAME, or --serial HEX")
    with explained(), _locked(directory):
        authority = _authority(directory)
        number = _own_serial(authority, directory, name) if name is not None else _serial(serial or "")
        former = _former_crl(authority, directory)
        known = former.get_revoked_certificate_by_serial_number(number) if former is not None else None
        if known is not None:
            click.echo(f"{number:x} has been revoked since {utc_time(known.revocation_date_utc.timestamp())}")
            return
        click.echo(f"revoked {number:x}")
        _write_crl(directory, authority.next_crl_pem(former, [number], timedelta(days=days)), first=former is None)


@certs.command()
@_directory
@_crl_days
def crl(directory: Path, days: int) -> None:
    """Write ca.crl, the list of revoked certificates; anew, with the same content, before its next update is due."""
    with explained(), _locked(directory):
        authority = _authority(directory)
        former = _former_crl(authority, directory)
        _write_crl(directory, authority.next_crl_pem(former, [], timedelta(days=days)), first=former is None)


@certs.command()
@_directory
@_force
@click.option(
    "--passphrase-file", metavar="FILE", help="A file with the passphrase, or - for stdin.  [default: it is asked for]"
)
@click.option(
    "--legacy", is_flag=True, help="Encrypt as old programs expect it: 3DES, SHA-1. macOS's keychain needs it."
)
@click.argument("name")
def p12(directory: Path, passphrase_file: str | None, name: str, *, force: bool, legacy: bool) -> None:
    """Write NAME.p12, for a browser: NAME.pem, NAME.key and ca.pem in one file (PKCS#12), under a passphrase."""
    _check_name(name)
    with explained():
        certificate, key = directory / f"{name}.pem", directory / f"{name}.key"
        chain = _certificates(certificate)
        try:
            private = read_key(read_argument(key, PEM_LIMIT))
        except ValueError as error:
            raise MaterialError(str(key), f"cannot be used: {error}") from None
        if private.public_key() != chain[0].public_key():
            raise MaterialError(str(key), f"does not belong to {certificate}")
        authorities = [*chain[1:], *(_certificates(directory / "ca.pem") if (directory / "ca.pem").exists() else ())]
        if passphrase_file is not None:
            passphrase = read_secret(passphrase_file)
        else:
            passphrase = click.prompt("Passphrase", hide_input=True, confirmation_prompt=True)
        bundle = pkcs12.serialize_key_and_certificates(
            name.encode(), private, chain[0], authorities, _encryption(passphrase.encode(), legacy=legacy)
        )
        write_all([(directory / f"{name}.p12", bundle, SECRET)], force=force)


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


def _check_name(name: str) -> None:
    if not _NAME.fullmatch(name) or name == "ca":
        raise click.UsageError("the name is that of a file without its suffix, and not that of the CA")


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Two commands at the same time would each write a CRL without what the other revoked: the second is refused."""
    try:
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise MaterialError(str(directory), f"cannot be opened: {error.strerror}") from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise MaterialError(str(directory), "another `tlsproxy certs` is at work here: try again") from None
    finally:
        os.close(descriptor)


def _own_serial(authority: Authority, directory: Path, name: str) -> int:
    """The serial number of NAME.pem. Raises MaterialError if the CA has not issued it."""
    _check_name(name)
    path = directory / f"{name}.pem"
    leaf = _certificates(path)[0]
    if not authority.has_issued(leaf):
        raise MaterialError(str(path), f"was not issued by {directory / 'ca.pem'}: only its own CA can revoke it")
    return leaf.serial_number


def _serial(text: str) -> int:
    digits = text.replace(":", "").strip()
    if not re.fullmatch(r"(0[xX])?[0-9a-fA-F]{1,40}", digits) or (number := int(digits, 16)) == 0:
        raise click.UsageError("--serial is hexadecimal, as in `certs show`: 5e1f00d5")
    return number


def _certificates(path: Path) -> list[x509.Certificate]:
    return [x509.load_der_x509_certificate(each) for each in read_chain(path)]


def _former_crl(authority: Authority, directory: Path) -> x509.CertificateRevocationList | None:
    path = directory / "ca.crl"
    if not path.exists():
        return None
    try:
        return authority.own_crl(read_argument(path, CRL_LIMIT))
    except ValueError as error:
        raise MaterialError(str(path), f"is not the CA's list of revoked certificates: {error}") from None


def _write_crl(directory: Path, pem: bytes, *, first: bool) -> None:
    path, made = directory / "ca.crl", x509.load_pem_x509_crl(pem)
    write_all([(path, pem, PUBLIC)], force=True)
    number = made.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number
    due = cast("datetime", made.next_update_utc)
    click.echo(f"number {number}, {len(made)} revoked, next update {utc_time(due.timestamp())}")
    if first:
        click.echo(f"name it in the gateway's configuration: tls.crl: [{path}]")


def _encryption(passphrase: bytes, *, legacy: bool) -> KeySerializationEncryption:
    if not legacy:
        return BestAvailableEncryption(passphrase)
    builder = PrivateFormat.PKCS12.encryption_builder().hmac_hash(hashes.SHA1())  # noqa: S303 - the format's own
    return builder.key_cert_algorithm(pkcs12.PBES.PBESv1SHA1And3KeyTripleDESCBC).build(passphrase)


def _write_pair(directory: Path, name: str, certificate_pem: bytes, key_pem: bytes, *, force: bool) -> None:
    """Write the key first: a gateway that watches these files waits for the certificate that belongs to it."""
    pair = [(directory / f"{name}.key", key_pem, SECRET), (directory / f"{name}.pem", certificate_pem, PUBLIC)]
    write_all(pair, force=force)
