"""PEM files (RFC 7468) as blocks: all of them or an error.

Text between blocks is allowed (section 2: OpenSSL writes subject lines and bag attributes there). A block without its
end, or with another's, is an error: the file is half written.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Final

from tlsproxy.errors import MaterialError

CERTIFICATE: Final = "CERTIFICATE"
CRL: Final = "X509 CRL"
PRIVATE_KEYS: Final = frozenset({"PRIVATE KEY", "ENCRYPTED PRIVATE KEY", "RSA PRIVATE KEY", "EC PRIVATE KEY"})
EC_PARAMETERS: Final = "EC PARAMETERS"
"""Block that `openssl ecparam -genkey` writes before the key, which repeats it."""

_BOUNDARY: Final = re.compile(rb"^-----(BEGIN|END) ([ -,.-~]{1,64})-----[ \t]*\r?$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Block:
    """``data`` has the boundary lines and a final newline."""

    label: str
    data: bytes = field(repr=False)


def blocks_of(path: str, data: bytes) -> tuple[Block, ...]:
    """All blocks of a file, in order. Raises MaterialError if there is none or the file is cut off."""
    if not data.strip():
        raise MaterialError(path, "is empty; if it is being written now, it is read again once it changes")
    blocks: list[Block] = []
    opened: re.Match[bytes] | None = None
    for boundary in _BOUNDARY.finditer(data):
        if boundary[1] == b"BEGIN":
            if opened is not None:
                raise _broken(path, data, opened)
            opened = boundary
            continue
        if opened is None or opened[2] != boundary[2]:
            raise _broken(path, data, opened or boundary)
        blocks.append(Block(boundary[2].decode("ascii"), data[opened.start() : boundary.end()] + b"\n"))
        opened = None
    if opened is not None:
        raise _broken(path, data, opened)
    if not blocks:
        raise MaterialError(path, "holds no PEM block; convert it, for example with `openssl x509 -inform DER`")
    if data.count(b"-----BEGIN") != len(blocks):
        raise MaterialError(path, "holds a damaged PEM boundary line; write the file anew")
    return tuple(blocks)


def _broken(path: str, data: bytes, boundary: re.Match[bytes]) -> MaterialError:
    line = data.count(b"\n", 0, boundary.start()) + 1
    return MaterialError(path, f"line {line}: a PEM block is cut off; write the file anew")
