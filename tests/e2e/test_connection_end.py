"""How a connection ends: a client that says goodbye is answered (RFC 8446 §6.1), so that it knows nothing was cut."""

from __future__ import annotations

import socket
import ssl

import pytest
from support.gateway import Gateway
from support.site import Site


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_goodbye_is_answered(gateway: Gateway, site: Site, version: ssl.TLSVersion) -> None:
    context = site.client("admin")
    context.minimum_version = context.maximum_version = version
    with gateway.connect(context) as tls:
        tls.sendall(b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n")
        assert tls.recv(4096).startswith(b"HTTP/1.1 200")
        plain = tls.unwrap()  # raises SSLEOFError where the other side only closes the socket
        assert isinstance(plain, socket.socket)
        assert plain.recv(1) == b""
        plain.close()
