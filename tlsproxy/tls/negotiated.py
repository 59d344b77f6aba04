"""Parameters that a TLS handshake agreed on, as far as Python's ssl module tells them. Nothing is inferred."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Final, Literal

if TYPE_CHECKING:
    import ssl

Side = Literal["client", "upstream"]


@dataclass(frozen=True, slots=True)
class Negotiated:
    """``version`` as `TLSv1.3`, ``cipher`` and ``group`` (of the key exchange) by OpenSSL's names, such as
    `TLS_AES_256_GCM_SHA384` and `X25519MLKEM768`. An unknown one is empty.
    """

    version: str = ""
    cipher: str = ""
    group: str = ""

    def fields(self) -> dict[str, str]:
        """Those that are known, by their names in audit lines."""
        named = {"tls_version": self.version, "tls_cipher": self.cipher, "tls_group": self.group}
        return {name: value for name, value in named.items() if value}


UNKNOWN: Final = Negotiated()


def negotiated(tls: ssl.SSLObject) -> Negotiated:
    """The facts of a finished handshake; of any other all are unknown."""
    version, cipher = tls.version(), tls.cipher()
    if version is None or cipher is None:
        return UNKNOWN
    return _shared(version, cipher[0], _group(tls))


_shared = lru_cache(maxsize=64)(Negotiated)
"""The same object for all connections that agreed on the same."""


def _group(tls: ssl.SSLObject) -> str:
    """Public since Python 3.15, with OpenSSL from 3.2 on; before, nothing tells it."""
    group = getattr(tls, "group", None)
    if group is None:
        return ""
    try:
        return group() or ""
    except NotImplementedError:  # an older OpenSSL
        return ""
