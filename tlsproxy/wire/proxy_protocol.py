"""PROXY protocol: the header in which a balancer tells a connection's client, before its first byte.

Versions 1 and 2 are read, version 2 is written.

Stricter than the specification (haproxy.org/download/2.6/doc/proxy-protocol.txt) demands: version 1 in its exact form,
addresses without zones, no datagrams, and at most :data:`LONGEST` bytes. Type-length-values are walked and ignored, but
for a checksum.
"""

from __future__ import annotations

import ipaddress
import re
import struct
from dataclasses import dataclass
from typing import Final

from tlsproxy.errors import TlsproxyError

VERSION_1: Final = b"PROXY "
VERSION_2: Final = b"\r\n\r\n\0\r\nQUIT\n"
LONGEST: Final = 4096
"""Bytes of a header of version 2: far more than balancers send, even with the certificate of a client of theirs."""

_LONGEST_LINE: Final = 107
"""Bytes of a header of version 1, CRLF included (specification, section 2.1)."""
_LINE_BEGUN: Final = re.compile(rb"[\x20-\x7e]*\r?")
_PORT: Final = re.compile(r"0|[1-9][0-9]{0,4}")
_HIGHEST_PORT: Final = 65535

_START: Final = struct.Struct(">12sBBH")
_LOCAL, _PROXY = 0x20, 0x21
_UNSPECIFIED: Final = 0x00
_FAMILIES: Final = {0x00: 0, 0x11: 12, 0x21: 36, 0x31: 216}
"""Bytes of the address block by family: none, TCP over IPv4 and IPv6, a unix stream (section 2.2)."""
_TLV: Final = struct.Struct(">BH")

_CRC32C: Final = 0x03
_SUM: Final = 4
"""Bytes of a checksum."""
_UNIQUE_ID, _SSL, _SSL_VERSION, _SSL_COMMON_NAME = 0x05, 0x20, 0x21, 0x22
_OVER_TLS, _WITH_CERTIFICATE = 0x01, 0x02 | 0x04
"""Bits of a client that came over TLS, and that sent a certificate on this connection and in this session."""
_IPV6: Final = 16
"""Bytes of an address."""
_MAPPED: Final = bytes(10) + b"\xff\xff"
"""The beginning of an address of IPv4 in the form of IPv6 (RFC 4291 §2.5.5.2)."""
_LONGEST_NAME: Final = 1024
"""Bytes of a common name; a longer one is left out, since a part of it may be another's."""


class HeaderRefused(TlsproxyError):
    """``reason`` is a slug: bytes that begin no header, or a malformed one."""

    def __init__(self, reason: str, text: str) -> None:
        super().__init__(text)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Header:
    """``size`` is its length in bytes. ``address`` is the client's, without a zone; "" if it has none of IP: the
    connection then counts as the sender's. ``local``: it is the sender's own, such as a health check.
    """

    size: int
    address: str = ""
    port: int = 0
    local: bool = False


def read(data: bytes) -> Header | None:
    """The header at the beginning of ``data``, None if more of it is needed. Raises HeaderRefused.

    IPv4 in the form of IPv6 (``::ffff:192.0.2.1``) is told as IPv4, as by sockets of both families.
    """
    if data.startswith(VERSION_2):
        return _version_2(data)
    if data.startswith(VERSION_1):
        return _version_1(data)
    if VERSION_2.startswith(data) or VERSION_1.startswith(data):
        return None
    raise HeaderRefused("proxy_protocol_missing", "a header of the PROXY protocol is expected first")


def _malformed(text: str) -> HeaderRefused:
    return HeaderRefused("proxy_protocol_malformed", text)


def _version_1(data: bytes) -> Header | None:
    line, end, _ = data[:_LONGEST_LINE].partition(b"\r\n")
    if _LINE_BEGUN.fullmatch(line) is None or (end and line.endswith(b"\r")):
        raise _malformed("a line of printable ASCII that ends in CRLF is expected")
    if not end:
        if len(data) >= _LONGEST_LINE:
            raise _malformed(f"the line has more than {_LONGEST_LINE} bytes")
        return None
    size = len(line) + len(end)
    _, protocol, *rest = line.decode("ascii").split(" ")
    if protocol == "UNKNOWN":
        return Header(size, local=True)
    if protocol not in {"TCP4", "TCP6"} or len(rest) != 4:  # noqa: PLR2004 - two addresses, two ports
        raise _malformed("TCP4, TCP6 or UNKNOWN is expected, then two addresses and two ports")
    source, _ = (_address(text, protocol) for text in rest[:2])
    for port in rest[2:]:
        if _PORT.fullmatch(port) is None or int(port) > _HIGHEST_PORT:
            raise _malformed("a port is a decimal number without leading zeros")
    return Header(size, source, int(rest[2]))


def _address(text: str, protocol: str) -> str:
    try:
        if protocol == "TCP4":
            return str(ipaddress.IPv4Address(text))
        address = ipaddress.IPv6Address(text)
    except ValueError:
        raise _malformed(f"an address is none of {protocol}") from None
    if address.scope_id is not None:
        raise _malformed("an address has a zone")
    return _told(address)


def _told(address: ipaddress.IPv6Address) -> str:
    return str(address.ipv4_mapped or address)


def _version_2(data: bytes) -> Header | None:
    if len(data) < _START.size:
        return None
    _, command, family, length = _START.unpack_from(data)
    if command not in {_LOCAL, _PROXY}:
        raise _malformed("neither LOCAL nor PROXY of version 2")
    size = _START.size + length
    if size > LONGEST:
        raise _malformed(f"it has {size} bytes, more than {LONGEST}")
    block = _FAMILIES.get(family)
    if command == _PROXY and (block is None or length < block):
        raise _malformed("no family of a stream, or less than its addresses")
    if len(data) < size:
        return None
    if command == _LOCAL or block is None:
        return Header(size, local=True)  # whatever it says of addresses counts for nothing
    _check_values(data[:size], _START.size + block)
    start = data[_START.size :]
    match family:
        case 0x11:
            return Header(size, str(ipaddress.IPv4Address(start[:4])), int.from_bytes(start[8:10]))
        case 0x21:
            return Header(size, _told(ipaddress.IPv6Address(start[:16])), int.from_bytes(start[32:34]))
    return Header(size)


def _check_values(header: bytes, place: int) -> None:
    """``place`` is where the values begin in the whole header."""
    while place < len(header):
        if len(header) - place < _TLV.size:
            raise _malformed("a type-length-value is cut short")
        kind, length = _TLV.unpack_from(header, place)
        place += _TLV.size
        if kind == _CRC32C:
            _check_sum(header, place, length)
        place += length
    if place > len(header):
        raise _malformed("a type-length-value is longer than the header")


def _check_sum(header: bytes, place: int, length: int) -> None:
    """Section 2.2.3: the CRC32C (RFC 3720, appendix B.4) of the header with zeros in the place of the checksum."""
    end = place + length
    if length != _SUM or _crc32c(header[:place] + bytes(_SUM) + header[end:]) != int.from_bytes(header[place:end]):
        raise _malformed("its checksum is that of another header")


def _remainder(byte: int) -> int:
    for _ in range(8):
        byte = byte >> 1 ^ (0x82F63B78 if byte & 1 else 0)
    return byte


_REMAINDERS: Final = tuple(map(_remainder, range(256)))


def _crc32c(data: bytes) -> int:
    found = 0xFFFFFFFF
    for byte in data:
        found = found >> 8 ^ _REMAINDERS[(found ^ byte) & 0xFF]
    return found ^ 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class Announcement:
    """A client over TLS, as it is told to an upstream. ``client`` and ``server``: address and port of each end.

    A client on a unix socket has none: the header is then of no family. Our own end, "" on one, is unspecified.

    ``common_name`` is that of a verified certificate. ``verified``: there is one.
    """

    client: tuple[str, int]
    server: tuple[str, int]
    tls_version: str
    common_name: str
    verified: bool
    unique_id: str

    def header(self) -> bytes:
        """A header of version 2. Where only one end has an address of IPv4, that is written in the form of IPv6."""
        values = _value(_UNIQUE_ID, self.unique_id.encode()) + _value(_SSL, self._tls())
        if self.client[0].startswith("unix:"):
            return _START.pack(VERSION_2, _PROXY, _UNSPECIFIED, len(values)) + values
        ends = [_packed(address or "0.0.0.0") for address, _ in (self.client, self.server)]  # noqa: S104 - none
        family = 0x11
        if max(map(len, ends)) > min(map(len, ends)) or len(ends[0]) == _IPV6:
            family, ends = 0x21, [one if len(one) == _IPV6 else _MAPPED + one for one in ends]
        ports = struct.pack(">HH", self.client[1], self.server[1])
        rest = b"".join((*ends, ports, values))
        return _START.pack(VERSION_2, _PROXY, family, len(rest)) + rest

    def _tls(self) -> bytes:
        client = _OVER_TLS | (_WITH_CERTIFICATE if self.verified else 0)
        name = self.common_name.encode()
        values = _value(_SSL_VERSION, self.tls_version.encode())
        if name and len(name) <= _LONGEST_NAME:
            values += _value(_SSL_COMMON_NAME, name)
        return struct.pack(">BI", client, not self.verified) + values


def _packed(address: str) -> bytes:
    found = ipaddress.ip_address(address.partition("%")[0])
    return (found if isinstance(found, ipaddress.IPv4Address) else found.ipv4_mapped or found).packed


def _value(kind: int, data: bytes) -> bytes:
    return _TLV.pack(kind, len(data)) + data
