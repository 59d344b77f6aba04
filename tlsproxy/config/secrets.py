"""API keys of a configuration, given in it or in files. ``read`` returns a file's content.

If ``read`` returns None, the key is unknown: no client's key equals it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, TypeAlias

from pydantic import SecretStr

from tlsproxy.authz.keys import NEVER, UNKNOWN_DIGEST, Key, Keys, key_digest
from tlsproxy.config.callers import NamedKey
from tlsproxy.config.findings import Finding
from tlsproxy.config.model import Config
from tlsproxy.config.policy import matcher_of, rights_of
from tlsproxy.config.positions import Path as ConfigPath
from tlsproxy.errors import MaterialError
from tlsproxy.pem.blocks import text_of

Read: TypeAlias = Callable[[Path], bytes | None]

SHORT: Final = 32
"""Fewest characters of a key, as Qdrant advises and HS256 needs for tokens (RFC 7518 section 3.2)."""
KEY_NAMES: Final = ("api_key", "alt_api_key", "read_only_api_key")
"""Keys of `service`; each may be given as `NAME_file` instead."""


def secret_files(config: Config) -> tuple[Path, ...]:
    """Files of keys and passwords, in a fixed order: of clients, for Qdrant, and for the store of shared limits."""
    service, upstream = config.service, config.upstream
    paths = (
        service.api_key_file,
        service.alt_api_key_file,
        service.read_only_api_key_file,
        upstream.api_key_file,
        *(key.file for key in config.keys),
        config.shared.password_file if config.shared.used else None,
    )
    return tuple(path for path in paths if path is not None)


def repeated_keys(config: Config, keys: Keys) -> Iterator[tuple[str, str, tuple[Path, ...]]]:
    """Keys with two names: both names, and the files of both.

    Such a key would be attributed to the other name, and survive the revocation of this one.
    """
    service = config.service
    files = {name: getattr(service, f"{name}_file") for name in KEY_NAMES} | {
        entry.name: entry.file for entry in config.keys
    }
    first = {key.digest: key.name for key in reversed(keys.keys) if key.digest != UNKNOWN_DIGEST}
    for key in keys.keys[len(keys.keys) - len(config.keys) :]:
        other = first.get(key.digest, key.name)
        if other != key.name:
            paths = files[key.name], files[other]
            yield key.name, other, tuple(path for path in paths if path is not None)


def known_keys(config: Config, read: Read) -> Keys:
    """The clients' keys; one may have several names (:func:`repeated_keys`).

    Raises :class:`MaterialError` for a file that holds no usable key, or what ``read`` raises.
    """
    service = config.service
    own = Keys.of(
        api_key=_resolve(service.api_key, service.api_key_file, read),
        alt_api_key=_resolve(service.alt_api_key, service.alt_api_key_file, read),
        read_only_api_key=_resolve(service.read_only_api_key, service.read_only_api_key_file, read),
    )
    return Keys((*own.keys, *(_named(config, entry, read) for entry in config.keys)))


def _named(config: Config, entry: NamedKey, read: Read) -> Key:
    secret = None if entry.sha256 else _resolve(None, entry.file, read)
    digest = bytes.fromhex(entry.sha256) if entry.sha256 else UNKNOWN_DIGEST if secret is None else key_digest(secret)
    match = entry.require_certificate
    return Key(
        name=entry.name,
        digest=digest,
        rights=rights_of(config.roles[entry.role]),
        role=entry.role,
        expires=NEVER if entry.expires is None else entry.expires.timestamp(),
        certificate=None if match is None else matcher_of(match),
    )


def short_keys(config: Config, read: Read) -> Iterator[Finding]:
    """Warnings on clients' keys that can be guessed; of keys given by their digest nothing is known."""
    service = config.service
    found: list[tuple[ConfigPath, str | None]] = []
    for name in KEY_NAMES:
        path = getattr(service, f"{name}_file")
        place = name if path is None else f"{name}_file"
        found.append((("service", place), _resolve(getattr(service, name), path, read)))
    for index, entry in enumerate(config.keys):
        if entry.file is not None:
            found.append((("keys", index, "file"), _resolve(None, entry.file, read)))
    for where, key in found:
        if key and len(key) < SHORT:
            text = f"the key has fewer than {SHORT} characters and might be guessed: openssl rand -base64 32 makes one"
            yield Finding(where, text, warning=True)


def signing_keys(config: Config, read: Read) -> tuple[tuple[str, str], ...]:
    """(name, key) of the keys that sign tokens, in Qdrant's order. Raises like :func:`known_keys`."""
    service = config.service
    keys = (
        ("api_key", _resolve(service.api_key, service.api_key_file, read)),
        ("alt_api_key", _resolve(service.alt_api_key, service.alt_api_key_file, read)),
    )
    return tuple((name, key) for name, key in keys if key)


def upstream_api_key(config: Config, read: Read) -> str | None:
    """The key for requests to Qdrant. Raises like :func:`known_keys`."""
    return _resolve(config.upstream.api_key, config.upstream.api_key_file, read) or None


def key_error(key: str) -> str | None:
    """The reason why a text cannot be a key; None if it can. A header needs visible ASCII (RFC 9110 §5.5)."""
    if not key:
        return "the key is empty"
    if not (key.isascii() and key.isprintable()) or key != key.strip():
        return "a key must be printable ASCII on one line without spaces around it: it is sent in a header"
    return None


def secret_in(path: Path, data: bytes) -> str:
    """The key in a file. Raises MaterialError."""
    # latin-1 reads any bytes; what is not ASCII is refused below, without showing what it was.
    key = text_of(str(path), data).decode("latin-1").removesuffix("\n").removesuffix("\r")
    if error := key_error(key):
        raise MaterialError(str(path), error)
    return key


def _resolve(value: SecretStr | None, path: Path | None, read: Read) -> str | None:
    """The key: "" if there is none, None if it is unknown."""
    if path is None:
        return "" if value is None else value.get_secret_value()
    data = read(path)
    return None if data is None else secret_in(path, data)
