"""Pins of public keys, as they are written."""

from __future__ import annotations

import base64
import binascii
from typing import Final

_DIGEST: Final = 32
"""Bytes of a SHA-256."""


def pin_of(text: str) -> bytes:
    """The digest of a pin: 64 hex digits, or base64 as curl and RFC 7469 write it. Raises ValueError."""
    try:
        pin = bytes.fromhex(text) if len(text) == 2 * _DIGEST else base64.b64decode(text, validate=True)
    except (ValueError, binascii.Error):
        pin = b""
    if len(pin) != _DIGEST:
        raise ValueError("the SHA-256 of a public key is expected, as 64 hex digits or in base64")
    return pin
