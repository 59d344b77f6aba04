"""API keys: what a request presents, and the key of ours that it is (Qdrant: src/common/auth). Tokens are next door."""

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
"""The digest of a key whose secret is not known: it is configured, and no secret is it."""


def key_digest(secret: str) -> bytes:
    """Compared in place of the key itself, so that a comparison's time says nothing of a key's length."""
    return hashlib.sha256(secret.encode()).digest()


@dataclass(frozen=True, slots=True)
class Key:
    """One key. ``expires`` is the moment (seconds since the epoch) from which it is none.

    ``role`` is empty for Qdrant's own keys, whose rights need no role. ``certificate``: it counts only on a connection
    whose certificate matches.
    """

    name: str
    digest: bytes = field(repr=False)
    rights: Rights
    role: str = ""
    expires: float = NEVER
    certificate: Matcher | None = None


@dataclass(frozen=True, slots=True)
class Keys:
    """The configured keys: of two that are the same the first counts. An empty key is not a key."""

    keys: tuple[Key, ...] = ()

    @classmethod
    def of(cls, api_key: str | None = "", alt_api_key: str | None = "", read_only_api_key: str | None = "") -> Keys:
        """Qdrant's own, the most powerful first. None is a key whose secret is not known."""
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
        """The key that this is, if it may be used now and here. Every key is compared, whichever matched."""
        digest = key_digest(presented)
        found = [key for key in self.keys if hmac.compare_digest(digest, key.digest)]
        if not found or not presented:
            return None
        key = found[0]
        if now >= key.expires:
            return None
        if key.certificate is not None and (
            identity is None or identity.defect or not key.certificate.matches(identity)
        ):
            return None
        return key


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
