"""Configuration bundles: files of a configuration from afar, signed with Ed25519 (RFC 8032). Reads no file.

A bundle is one line, `tlsproxy-bundle 1 KEY SIGNATURE`, and a JSON document: `version`, `created`, `expires` (or null)
and `files`, in base64 by name. The signature is over `tlsproxy-bundle 1`, a newline and the document; KEY is the
beginning of the public key's SHA-256. Names are plain, so that no file is anywhere but in the bundle; nothing is
unpacked. Those that end in `.yaml` are pieces of the configuration (:mod:`tlsproxy.config.pieces`), in the order of
their names; the others are the files that those name, such as CAs, CRLs and key sets.
"""

from __future__ import annotations

import re
from base64 import b64decode, b64encode
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any, Final

import orjson
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from pydantic import Field

from tlsproxy.config.callers import KeySetUrl, Section
from tlsproxy.config.pieces import MAX_FILES, Piece
from tlsproxy.errors import MaterialError
from tlsproxy.text import rfc3339

MAX_BUNDLE: Final = 8 << 20
NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
PIECE_SUFFIX: Final = ".yaml"

BEGIN: Final = b"tlsproxy-bundle "
"""First bytes of a bundle, of any version of the format."""

_FORMAT: Final = BEGIN + b"1"
_HEAD: Final = re.compile(rb"tlsproxy-bundle 1 ([0-9a-f]{16}) ([A-Za-z0-9+/]{86}==)")
_PUBLIC_KEY: Final = re.compile(rb"-----BEGIN PUBLIC KEY-----.*?-----END PUBLIC KEY-----", re.DOTALL)
_MAX_VERSION: Final = 1 << 53


class BundleConfig(Section):
    """Configuration from afar: a signed bundle of further files of the configuration, and of files that they name
    (`tlsproxy bundle`). In the main file alone. See docs/operations.md.
    """

    url: KeySetUrl
    """URL of the bundle: https://, or http:// on loopback."""
    public_key: Path | tuple[Path, ...]
    """File of the Ed25519 public key that the bundle is signed with (PEM), of several while it is replaced, or a list
    of such files."""
    cache: Path = Path("./configuration.bundle")
    """File that keeps the last good bundle, which serves while the URL cannot be fetched, at the next start too. The
    gateway writes it: under systemd name one below /var/lib/tlsproxy."""
    ca_cert: Path | None = None
    """CAs of the URL's server; without it the system's."""
    bearer_token_file: Path | None = None
    """File of a token that is sent as `Authorization: Bearer`."""
    refresh: Annotated[float, Field(ge=1, le=86400)] = 30.0
    """Seconds between two fetches, and the longest that a right which a bundle takes away stays; `tlsproxy reload` and
    SIGHUP fetch at once. After a failure the next is in 10 s, or `refresh` if that is less."""

    @property
    def keys(self) -> tuple[Path, ...]:
        return self.public_key if isinstance(self.public_key, tuple) else (self.public_key,)


@dataclass(frozen=True, slots=True)
class Bundle:
    """A bundle whose signature is good. ``expires`` is in seconds since the epoch; None for never."""

    version: int
    created: float
    expires: float | None
    key: str
    files: Mapping[str, bytes] = field(repr=False)

    def pieces(self, base: Path) -> tuple[Piece, ...]:
        """The configuration's pieces; ``base`` is the bundle's path, as if it was their directory."""
        names = sorted(name for name in self.files if name.endswith(PIECE_SUFFIX))
        return tuple(Piece(base / name, self.files[name]) for name in names)

    def check_newer(self, name: str, now: float, former: Bundle | None) -> None:
        """Check that it may take the place of ``former``. Raises MaterialError."""
        if self.expires is not None and self.expires <= now:
            raise MaterialError(name, f"version {self.version} expired on {rfc3339(self.expires)}: sign a new one")
        if former is None:
            return
        if self.version < former.version:
            text = f"version {self.version} is older than {former.version}, which serves: sign it with a higher one"
            raise MaterialError(name, text)
        if self.version == former.version and self != former:
            raise MaterialError(name, f"another bundle has the same version, {self.version}: sign it with a higher one")


def key_id(key: Ed25519PublicKey) -> str:
    return sha256(key.public_bytes_raw()).hexdigest()[:16]


def public_keys(name: str, data: bytes) -> tuple[Ed25519PublicKey, ...]:
    """The Ed25519 keys of a PEM file. Raises MaterialError."""
    found = []
    for block in _PUBLIC_KEY.findall(data):
        try:
            key = load_pem_public_key(block)
        except ValueError:
            raise MaterialError(name, "has a public key that cannot be read") from None
        if not isinstance(key, Ed25519PublicKey):
            raise MaterialError(name, "has a public key that is not Ed25519: `tlsproxy bundle keygen` makes one")
        found.append(key)
    if not found:
        raise MaterialError(name, "has no public key (PEM): `tlsproxy bundle keygen` makes one")
    return tuple(found)


def signed(
    key: Ed25519PrivateKey, version: int, created: float, expires: float | None, files: Mapping[str, bytes]
) -> bytes:
    document = orjson.dumps(
        {
            "version": version,
            "created": rfc3339(created),
            "expires": None if expires is None else rfc3339(expires),
            "files": {name: b64encode(files[name]).decode() for name in sorted(files)},
        },
        option=orjson.OPT_INDENT_2,
    )
    signature = key.sign(_FORMAT + b"\n" + document)
    return b"%s %s %s\n%s" % (_FORMAT, key_id(key.public_key()).encode(), b64encode(signature), document)


def opened(name: str, data: bytes, keys: Sequence[tuple[str, bytes]]) -> Bundle:
    """The bundle, if one of the keys (names and contents of PEM files) has signed it. Raises MaterialError.

    The last ones are cached, since each poll reads the same one again.
    """
    return _opened(name, data, tuple(keys))


@lru_cache(maxsize=2)
def _opened(name: str, data: bytes, keys: tuple[tuple[str, bytes], ...]) -> Bundle:
    trusted = {key_id(key): key for where, pem in keys for key in public_keys(where, pem)}
    signer, signature, document = _split(name, data)
    key = trusted.get(signer)
    if key is None:
        known = ", ".join(sorted(trusted))
        raise MaterialError(name, f"is signed with the key {signer}, and trusted are: {known}")
    try:
        key.verify(signature, _FORMAT + b"\n" + document)
    except InvalidSignature:
        raise MaterialError(name, "its signature does not match: it is truncated or was altered") from None
    return _read(name, signer, document)


def unverified(name: str, data: bytes) -> Bundle:
    """The bundle, whoever has signed it: to be shown. Raises MaterialError."""
    signer, _, document = _split(name, data)
    return _read(name, signer, document)


def _split(name: str, data: bytes) -> tuple[str, bytes, bytes]:
    """The key's id, the signature and the document."""
    if len(data) > MAX_BUNDLE:
        raise MaterialError(name, f"has more than {MAX_BUNDLE >> 20} MiB; is it a bundle?")
    head, _, document = data.partition(b"\n")
    match = _HEAD.fullmatch(head)
    if match is None:
        raise MaterialError(name, "is no configuration bundle: `tlsproxy bundle sign` makes one")
    return match[1].decode(), b64decode(match[2]), document


def _read(name: str, signer: str, document: bytes) -> Bundle:
    try:
        found = orjson.loads(document)
        version, files = found["version"], found["files"]
        created = _moment(found["created"])
        expires = None if found["expires"] is None else _moment(found["expires"])
        return Bundle(_version(version), created, expires, signer, dict(_files(files)))
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError):
        raise MaterialError(name, "is signed, and its document cannot be read: sign it with this version") from None


def _version(found: object) -> int:
    if type(found) is not int or not 0 < found <= _MAX_VERSION:
        raise ValueError
    return found


def _moment(text: str) -> float:
    return datetime.fromisoformat(text).astimezone(UTC).timestamp()


def _files(found: Mapping[str, Any]) -> Iterator[tuple[str, bytes]]:
    if len(found) > MAX_FILES:
        raise ValueError
    for name, content in found.items():
        if NAME.fullmatch(name) is None:
            raise ValueError
        yield name, b64decode(content, validate=True)
