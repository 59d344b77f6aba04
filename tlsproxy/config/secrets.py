"""The keys of a configuration, which stand in it or in files of their own. Reads no file itself."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final

from pydantic import SecretStr

from tlsproxy.authz.credentials import NEVER, Key, Keys, key_digest
from tlsproxy.authz.matcher import Matcher
from tlsproxy.config.callers import NamedKey
from tlsproxy.config.model import Config
from tlsproxy.config.policy import rights_of
from tlsproxy.errors import MaterialError

KEY_NAMES: Final = ("api_key", "alt_api_key", "read_only_api_key")
"""Of `service`; each may be given as `NAME_file` instead."""


def secret_files(config: Config) -> tuple[Path, ...]:
    """The files that :func:`resolve_keys` and :func:`upstream_api_key` read, in a fixed order."""
    service, upstream = config.service, config.upstream
    paths = (
        service.api_key_file,
        service.alt_api_key_file,
        service.read_only_api_key_file,
        upstream.api_key_file,
        *(key.file for key in config.keys),
    )
    return tuple(path for path in paths if path is not None)


def resolve_keys(config: Config, read: Callable[[Path], bytes]) -> Keys:
    """The clients' keys. Raises :class:`MaterialError` for a file that holds no usable key, or what ``read`` raises."""
    service = config.service
    own = Keys.of(
        api_key=_resolve(service.api_key, service.api_key_file, read),
        alt_api_key=_resolve(service.alt_api_key, service.alt_api_key_file, read),
        read_only_api_key=_resolve(service.read_only_api_key, service.read_only_api_key_file, read),
    )
    keys = list(own.keys)
    for entry in config.keys:
        key = _named(config, entry, read)
        # One that is known under another name already would be attributed to that, and not be revoked with this one.
        same = next((each.name for each in keys if each.digest == key.digest), None)
        if same is not None:
            raise MaterialError(f"keys.{entry.name}", f"is the same key as {same}: every name needs a key of its own")
        keys.append(key)
    return Keys(tuple(keys))


def _named(config: Config, entry: NamedKey, read: Callable[[Path], bytes]) -> Key:
    digest = bytes.fromhex(entry.sha256) if entry.sha256 else key_digest(_resolve(None, entry.file, read))
    match = entry.require_certificate
    return Key(
        name=entry.name,
        digest=digest,
        rights=rights_of(config.roles[entry.role]),
        role=entry.role,
        expires=NEVER if entry.expires is None else entry.expires.timestamp(),
        certificate=None if match is None else Matcher(**match.model_dump()),
    )


def signing_keys(config: Config, read: Callable[[Path], bytes]) -> tuple[tuple[str, str], ...]:
    """(name, key) of those keys that tokens may be signed with, in Qdrant's order. Raises as :func:`resolve_keys`."""
    service = config.service
    keys = (
        ("api_key", _resolve(service.api_key, service.api_key_file, read)),
        ("alt_api_key", _resolve(service.alt_api_key, service.alt_api_key_file, read)),
    )
    return tuple((name, key) for name, key in keys if key)


def upstream_api_key(config: Config, read: Callable[[Path], bytes]) -> str | None:
    """The key that goes to Qdrant with every request. Raises as :func:`resolve_keys` does."""
    return _resolve(config.upstream.api_key, config.upstream.api_key_file, read) or None


def key_error(key: str) -> str | None:
    """Why this cannot be a key, or None: a header's value is visible ASCII without spaces around it (RFC 9110 §5.5)."""
    if not key:
        return "the key is empty"
    if not (key.isascii() and key.isprintable()) or key != key.strip():
        return "a key must be printable ASCII on one line without spaces around it: it is sent in a header"
    return None


def _resolve(value: SecretStr | None, path: Path | None, read: Callable[[Path], bytes]) -> str:
    if path is None:
        return "" if value is None else value.get_secret_value()
    # latin-1 reads any bytes; what is not ASCII is refused below, without showing what it was.
    key = read(path).decode("latin-1").removesuffix("\n").removesuffix("\r")
    if error := key_error(key):
        raise MaterialError(str(path), error)
    return key
