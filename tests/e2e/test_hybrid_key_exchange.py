"""The hybrid, post-quantum key exchange X25519MLKEM768 is agreed on wherever OpenSSL has it: from 3.5 on, by default.

The group stands in clear in the ServerHello (RFC 8446 §4.1.3, §4.2.8): the test takes nobody's word. With an older
OpenSSL there is nothing to agree on but X25519. `make bench-debian13` runs this test with 3.5.
"""

from __future__ import annotations

import socket
import ssl
import struct
from typing import Final

from support.gateway import DEADLINE, Gateway
from support.raw_request import request
from support.site import Site

GROUPS: Final = {0x001D: "X25519", 0x11EC: "X25519MLKEM768"}
EXPECTED: Final = "X25519MLKEM768" if ssl.OPENSSL_VERSION_INFO >= (3, 5) else "X25519"
KEY_SHARE: Final = 51


class Tapped:
    """A TLS client that keeps what the server sent as it came. It takes part with the groups that OpenSSL offers."""

    def __init__(self, sock: socket.socket, context: ssl.SSLContext) -> None:
        self.sock = sock
        self.received = b""
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self.incoming, self.outgoing, server_hostname="localhost")

    def _exchange(self) -> None:
        self.sock.sendall(self.outgoing.read())
        data = self.sock.recv(65536)
        assert data, "the gateway ended the connection"
        self.received += data
        self.incoming.write(data)

    def shake_hands(self) -> None:
        while True:
            try:
                return self.tls.do_handshake()
            except ssl.SSLWantReadError:
                self._exchange()

    def ask(self, data: bytes) -> bytes:
        self.tls.write(data)
        while True:
            try:
                return self.tls.read(65536)
            except ssl.SSLWantReadError:
                self._exchange()


def group_of(stream: bytes) -> str:
    """That of the key share in the last ServerHello of a stream of records: the first may ask for another hello."""
    found = 0
    while len(stream) >= 5 and stream[0] == 22:  # records in clear: handshake
        (size,) = struct.unpack("!H", stream[3:5])
        hello, stream = stream[5 : 5 + size], stream[5 + size :]
        while stream[:1] == b"\x14":  # change_cipher_spec, after a hello
            stream = stream[6:]
        assert hello[0] == 2, "a ServerHello"
        at = 4 + 2 + 32  # its head, legacy version, random
        at += 1 + hello[at] + 2 + 1 + 2  # session id, cipher, compression, length of the extensions
        while at < len(hello):
            kind, length = struct.unpack("!HH", hello[at : at + 4])
            if kind == KEY_SHARE:
                (found,) = struct.unpack("!H", hello[at + 4 : at + 6])
            at += 4 + length
    return GROUPS[found]


def test_agreed_on_by_default(site: Site, shared_gateway: Gateway) -> None:
    with socket.create_connection(("127.0.0.1", shared_gateway.port), DEADLINE) as sock:
        client = Tapped(sock, site.client())
        client.shake_hands()
        assert group_of(client.received) == EXPECTED
        assert client.ask(request("GET", "/collections")).startswith(b"HTTP/1.1 200 ")
        line = shared_gateway.audited(method="list_collections")
        assert line.get("tls_group", EXPECTED) == EXPECTED, "where Python tells it, it is that"
