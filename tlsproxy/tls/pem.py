"""PEM (RFC 7468): a file's blocks, all of them or an error. It knows nothing of what a block means.

Text between blocks is allowed (section 2: OpenSSL writes subject lines and bag attributes there); a block without its
end, or with the end of another, is not: that is what a file looks like that is only half written.
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
"""`openssl ecparam -genkey` writes them before the key, which repeats them."""

_BOUNDARY: Final = re.compile(rb"^-----(BEGIN|END) ([ -,.-~]{1,64})-----[ \t]*\r?$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Block:
    """``data`` is the block with its boundary lines and a final newline."""

    label: str
    data: bytes = field(repr=False)


def blocks_of(path: str, data: bytes) -> tuple[Block, ...]:
    """Every block of a file in order. Raises MaterialError where it holds none or is not whole."""
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
