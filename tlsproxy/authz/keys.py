"""API keys: the credential of a request, and the configured key that it equals (Qdrant: src/common/auth)."""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass, field
from typing import Final

from tlsproxy.authz.access import GlobalMode, Rights
from tlsproxy.authz.identity import Identity
from tlsproxy.authz.matcher import Matcher

NEVER: Final = float("inf")
UNKNOWN_DIGEST: Final = b""
"""The digest of a configured key whose secret could not be read: no secret has it."""


def key_digest(secret: str) -> bytes:
    """SHA-256 of a key. Digests are compared instead of keys, so that the time does not depend on a key's length."""
    return hashlib.sha256(secret.encode()).digest()


@dataclass(frozen=True, slots=True)
class Key:
    """One configured key. ``expires``: seconds since the epoch, exclusive.

    ``role`` is empty for Qdrant's own keys, whose rights need no role. With a ``certificate`` it is valid only on a
    connection with a matching certificate.
    """

    name: str
    digest: bytes = field(repr=False)
    rights: Rights
    role: str = ""
    expires: float = NEVER
    certificate: Matcher | None = None

    def counts(self, identity: Identity | None, now: float) -> bool:
        """Whether it is valid now, on a connection of this client."""
        if now >= self.expires:
            return False
        return self.certificate is None or (
            identity is not None and not identity.defect and self.certificate.matches(identity)
        )


@dataclass(frozen=True, slots=True)
class Keys:
    """The configured keys; of two equal ones the first counts. An empty key counts as absent."""

    keys: tuple[Key, ...] = ()

    @classmethod
    def of(cls, api_key: str | None = "", alt_api_key: str | None = "", read_only_api_key: str | None = "") -> Keys:
        """Qdrant's own keys, the most powerful first. None: a key whose secret could not be read."""
        given = (
            ("api_key", api_key, GlobalMode.M),
            ("alt_api_key", alt_api_key, GlobalMode.M),
            ("read_only_api_key", read_only_api_key, GlobalMode.R),
        )
        return cls(
            tuple(
                Key(name, UNKNOWN_DIGEST if key is None else key_digest(key), Rights(everywhere=mode))
                for name, key, mode in given
                if key != ""
            )
        )

    def __bool__(self) -> bool:
        return bool(self.keys)

    def find(self, presented: str, identity: Identity | None, now: float) -> Key | None:
        """The valid key that equals this one, if any. All are compared: the time does not tell which one matches."""
        digest = key_digest(presented)
        found = [key for key in self.keys if hmac.compare_digest(digest, key.digest)]
        if not found or not presented:
            return None
        return found[0] if found[0].counts(identity, now) else None

    def named(self, name: str, identity: Identity | None, now: float) -> Key | None:
        """The valid key of this name, for a request whose key is not known any more."""
        return next((key for key in self.keys if key.name == name and key.counts(identity, now)), None)


def presented_key(api_key: str | None, authorization: str | None) -> str | None:
    """The credential of a request: ``api-key`` where it is sent at all, else the rest of ``Authorization: Bearer ``.

    As in Qdrant the scheme is matched to the byte (one space, this case), and a value that is not ASCII counts as
    absent; anything else is no credential.
    """
    if api_key is not None and api_key.isascii():
        return api_key
    if authorization is not None and authorization.isascii() and authorization.startswith("Bearer "):
        return authorization.removeprefix("Bearer ")
    return None
