"""API keys: what a request presents, and the rights that a configured key gives (Qdrant: src/common/auth)."""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass, field

from tlsproxy.authz.access import GlobalMode, Rights


def _digest(secret: str) -> bytes:
    """Compared in place of the key itself, so that a comparison's time says nothing of a key's length."""
    return hashlib.sha256(secret.encode()).digest()


@dataclass(frozen=True, slots=True)
class Keys:
    """The configured keys as digests, most powerful first. An empty key is not a key."""

    manage: tuple[bytes, ...] = field(default=(), repr=False)
    read_only: tuple[bytes, ...] = field(default=(), repr=False)

    @classmethod
    def of(cls, api_key: str = "", alt_api_key: str = "", read_only_api_key: str = "") -> Keys:
        return cls(
            manage=tuple(_digest(key) for key in (api_key, alt_api_key) if key),
            read_only=tuple(_digest(key) for key in (read_only_api_key,) if key),
        )

    def __bool__(self) -> bool:
        return bool(self.manage or self.read_only)

    def rights_of(self, presented: str) -> Rights | None:
        """None where the key is not one of ours. Every key is compared, whichever matched (constant time)."""
        digest = _digest(presented)
        manages = [hmac.compare_digest(digest, key) for key in self.manage]
        reads = [hmac.compare_digest(digest, key) for key in self.read_only]
        if any(manages):
            return Rights(everywhere=GlobalMode.M)
        return Rights(everywhere=GlobalMode.R) if any(reads) else None


def presented_key(api_key: str | None, authorization: str | None) -> str | None:
    """The credential of a request: ``api-key`` where it is sent at all, else the rest of ``Authorization: Bearer ``.

    As in Qdrant the scheme is matched to the byte (one space, this case); anything else is no credential.
    """
    if api_key is not None:
        return api_key
    if authorization is not None and authorization.startswith("Bearer "):
        return authorization.removeprefix("Bearer ")
    return None
