"""PEM files (RFC 7468) as blocks: all of them or an error.

Text between blocks is allowed (section 2: OpenSSL writes subject lines and bag attributes there), and so are lines that
begin with `#`. A block without its end, or with another's, is an error: the file is half written. Editors and shells
leave a byte order mark, UTF-16, other line ends, indentation and empty lines; blocks are given without them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from tlsproxy.errors import MaterialError
from tlsproxy.pem.foreign import foreign, misplaced, own_lines

CERTIFICATE: Final = "CERTIFICATE"
CRL: Final = "X509 CRL"
OPENSSH_KEY: Final = "OPENSSH PRIVATE KEY"
PRIVATE_KEYS: Final = frozenset(
    {"PRIVATE KEY", "ENCRYPTED PRIVATE KEY", "RSA PRIVATE KEY", "EC PRIVATE KEY", OPENSSH_KEY}
)
PUBLIC_KEYS: Final = frozenset({"PUBLIC KEY", "RSA PUBLIC KEY"})
PARAMETERS: Final = frozenset({"EC PARAMETERS", "DH PARAMETERS", "X9.42 DH PARAMETERS"})
"""Blocks that tools write before a key, and which are not used: a key repeats those of its curve."""

_OTHER_NAMES: Final = {b"X509 CERTIFICATE": b"CERTIFICATE", b"X.509 CERTIFICATE": b"CERTIFICATE", b"CRL": b"X509 CRL"}
_MARK: Final = b"\xef\xbb\xbf"
_UTF_16: Final = ((b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16"), (b"-\0", "utf-16-le"), (b"\0-", "utf-16-be"))
"""Beginnings of a file in UTF-16: by its byte order mark, or by the first character of a boundary."""
_ODD: Final = (b"#", b"\n ", b"\n\t", b" \n", b"\t\n")
"""Signs of comments, indentation and blanks at an end."""
_BOUNDARY: Final = re.compile(rb"-----(BEGIN|END) ([ -,.-~]{1,64})-----$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Block:
    """``data`` has the boundary lines and a final newline."""

    label: str
    data: bytes = field(repr=False)


def blocks_of(path: str, data: bytes) -> tuple[Block, ...]:
    """All blocks of a file, in order. Raises MaterialError if there is none or the file is cut off."""
    data = text_of(path, data)
    if not data.strip():
        raise MaterialError(path, "is empty; if it is being written now, it is read again once it changes")
    plain = _plain(data)
    blocks: list[Block] = []
    opened: re.Match[bytes] | None = None
    for boundary in _boundaries(plain):
        if boundary[1] == b"BEGIN":
            if opened is not None:
                raise _broken(path, plain, opened)
            opened = boundary
            continue
        if opened is None:
            text = "an END without a BEGIN before it, which may be commented out (#) or gone"
            raise MaterialError(path, f"line {_line(plain, boundary)}: {text}; write the file anew")
        if opened[2] != boundary[2]:
            raise _broken(path, plain, opened)
        label = _OTHER_NAMES.get(opened[2], opened[2])
        blocks.append(_block(label, plain[opened.end() : boundary.start()]))
        opened = None
    if opened is not None:
        raise _broken(path, plain, opened)
    if not blocks:
        raise MaterialError(path, f"holds no PEM block; {foreign(path, data)}")
    if plain.count(b"-----BEGIN") != len(blocks):
        raise MaterialError(path, f"holds a damaged PEM boundary line; {own_lines(path)}")
    return tuple(blocks)


def text_of(path: str, data: bytes) -> bytes:
    """The file without a byte order mark, and in UTF-8 in place of UTF-16. Raises MaterialError."""
    for beginning, encoding in _UTF_16:
        if data.startswith(beginning):
            try:
                return data.decode(encoding).encode()
            except UnicodeError:
                text = "begins as UTF-16 and is not; write the file anew, as UTF-8"
                raise MaterialError(path, text) from None
    return data.removeprefix(_MARK)


def refused(path: str, block: Block, belonging: str) -> MaterialError:
    """The error of a block that does not belong into a file; ``belonging`` are those that do."""
    return MaterialError(path, hinted(path, f"holds a {block.label!r} block; only {belonging} here", block))


def hinted(path: str, text: str, block: Block, *, public: bool = False) -> str:
    """The text, with a hint on a block that is there instead; ``public``: of a public key."""
    hint = misplaced(path, block.label, public=public)
    return f"{text}. {hint}" if hint else text


def _plain(data: bytes) -> bytes:
    """Lines that end in a newline alone, without comments and indentation; their number stays."""
    data = data.replace(_MARK, b"").replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    if data[:1] in {b" ", b"\t"} or any(odd in data for odd in _ODD):
        lines = (line.strip(b" \t") for line in data.split(b"\n"))
        return b"\n".join(b"" if line.startswith(b"#") else line for line in lines)
    return data


def _boundaries(data: bytes) -> Iterator[re.Match[bytes]]:
    """Boundary lines. An expression over all lines of a large CRL would hold the interpreter for a second."""
    start = before = 0
    while before >= 0:
        if data.startswith(b"-----", start) and (boundary := _BOUNDARY.match(data, start)):
            yield boundary
        before = data.find(b"\n-----", start)
        start = before + 1


def _block(label: bytes, body: bytes) -> Block:
    if b"\n\n" in body and b":" not in body:  # with a header (RFC 1421 section 4.4) an empty line is its end
        body = b"\n".join([b"", *filter(None, body.split(b"\n")), b""])
    return Block(label.decode("ascii"), b"-----BEGIN " + label + b"-----" + body + b"-----END " + label + b"-----\n")


def _broken(path: str, data: bytes, boundary: re.Match[bytes]) -> MaterialError:
    return MaterialError(path, f"line {_line(data, boundary)}: a PEM block is cut off; write the file anew")


def _line(data: bytes, boundary: re.Match[bytes]) -> int:
    return data.count(b"\n", 0, boundary.start()) + 1
