"""The demo's clients, which trust its CA alone: qdrant-client with a client certificate, and plain TLS connections."""

from __future__ import annotations

import json
import socket
import ssl
from contextlib import closing
from http.client import HTTPSConnection
from typing import TYPE_CHECKING

import httpx
from qdrant_client import QdrantClient

from tlsproxy.demo.steps import StepError

if TYPE_CHECKING:
    from tlsproxy.demo.premises import Premises

HOST = "localhost"
_TIMEOUT = 20
_OK = 200


def tls_context(premises: Premises, client: str | None) -> ssl.SSLContext:
    """A client context with the certificate of ``client``, or without one."""
    context = ssl.create_default_context(cafile=premises.ca)
    if client is not None:
        context.load_cert_chain(premises.certificate(client), premises.key(client))
    return context


def qdrant(premises: Premises, client: str, port: int, grpc_port: int | None = None) -> QdrantClient:
    """A qdrant-client, over gRPC if ``grpc_port`` is given.

    Without explicit limits it opens a new connection to localhost for each request. ``trust_env=False`` keeps a proxy
    of the environment out of the way.
    """
    files = {
        "root_certificates": premises.ca,
        "certificate_chain": premises.certificate(client),
        "private_key": premises.key(client),
    }
    return QdrantClient(
        url=f"https://{HOST}:{port}",
        verify=tls_context(premises, client),
        check_compatibility=False,
        limits=httpx.Limits(),
        trust_env=False,
        timeout=_TIMEOUT,
        prefer_grpc=grpc_port is not None,
        grpc_port=grpc_port or 0,
        grpc_options={name: path.read_bytes() for name, path in files.items()},
    )


def query_once(context: ssl.SSLContext, port: int, collection: str, vector: list[float]) -> int:
    """One query on a new connection. Returns the serial number of the server's certificate."""
    with closing(HTTPSConnection(HOST, port, context=context, timeout=_TIMEOUT)) as connection:
        connection.connect()
        if not isinstance(connection.sock, ssl.SSLSocket):
            raise StepError("the connection is not TLS")
        shown = connection.sock.getpeercert() or {}
        body = json.dumps({"query": vector, "limit": 1})
        connection.request(
            "POST", f"/collections/{collection}/points/query", body, {"content-type": "application/json"}
        )
        response = connection.getresponse()
        text = response.read()
        if response.status != _OK:
            raise StepError(f"{response.status}: {text!r}")
        return int(str(shown["serialNumber"]), 16)


def handshake_refusal(context: ssl.SSLContext, port: int) -> str:
    """The TLS alert that ends a handshake. Raises StepError if there is none.

    In TLS 1.3 the client finishes before the server has its certificate (RFC 8446 section 2), so the alert comes in
    place of the first response.
    """
    with socket.create_connection((HOST, port), _TIMEOUT) as raw:
        try:
            with context.wrap_socket(raw, server_hostname=HOST) as connection:
                connection.sendall(b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n")
                answer = connection.recv(4096)
        except ssl.SSLError as error:
            if error.reason is None or "ALERT" not in error.reason:
                raise
            return error.reason.lower().replace("_", " ")
    raise StepError(f"expected an alert, got {answer[:100]!r}")
