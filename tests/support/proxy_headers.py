"""Headers of the PROXY protocol, as balancers write them."""

from __future__ import annotations

import socket
import struct

SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
LOCAL, PROXY = 0x20, 0x21
TCP4, TCP6, UNIX, UNSPEC = 0x11, 0x21, 0x31, 0x00


def line(client: str, protocol: str = "TCP4", port: int = 56324) -> bytes:
    """Version 1."""
    here = "198.51.100.1" if protocol == "TCP4" else "2001:db8::1"
    return f"PROXY {protocol} {client} {here} {port} 6333\r\n".encode()


def binary(client: str, *values: tuple[int, bytes], command: int = PROXY, port: int = 56324) -> bytes:
    """Version 2, with these type-length-values."""
    family, kind = (socket.AF_INET6, TCP6) if ":" in client else (socket.AF_INET, TCP4)
    here = "2001:db8::1" if ":" in client else "198.51.100.1"
    block = socket.inet_pton(family, client) + socket.inet_pton(family, here) + struct.pack(">HH", port, 6333)
    return framed(command, kind, block + b"".join(value(*each) for each in values))


def value(kind: int, data: bytes) -> bytes:
    return struct.pack(">BH", kind, len(data)) + data


def framed(command: int, family: int, rest: bytes, length: int | None = None) -> bytes:
    return SIGNATURE + struct.pack(">BBH", command, family, len(rest) if length is None else length) + rest


def summed(client: str, *values: tuple[int, bytes]) -> bytes:
    """Version 2, with a checksum as its last value."""
    header = binary(client, *values, (0x03, bytes(4)))
    return header[:-4] + struct.pack(">I", crc32c(header))


def crc32c(data: bytes) -> int:
    """Bit by bit."""
    found = 0xFFFFFFFF
    for byte in data:
        found ^= byte
        for _ in range(8):
            found = found >> 1 ^ (0x82F63B78 if found & 1 else 0)
    return found ^ 0xFFFFFFFF
