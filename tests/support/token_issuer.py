"""A token issuer: a server of documents that a test may replace at any time, its key sets and its tokens."""

from __future__ import annotations

import json
import ssl
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from cryptography.hazmat.primitives.asymmetric import ec
from jwt import PyJWS
from jwt.algorithms import ECAlgorithm


class TokenIssuer:
    """``answers`` has (status, body) by path; ``authorizations`` are the last header of that name, by path.

    A path with an ETag (``etags``) is answered 304 where the client has that one; ``unchanged`` counts these. Answers
    of ``held`` paths never come; ``waiting`` counts those requests.

    With a ``certificate`` (chain and key in one file) it is served over TLS.
    """

    def __init__(self, certificate: Path | None = None) -> None:
        self.answers: dict[str, tuple[int, bytes]] = {}
        self.authorizations: dict[str, str | None] = {}
        self.etags: dict[str, str] = {}
        self.held: set[str] = set()
        self.unchanged, self.waiting = threading.Semaphore(0), threading.Semaphore(0)
        self._stopped = threading.Event()
        issuer = self

        class Handler(BaseHTTPRequestHandler):
            # With 1.0 the server closes, which a client over TLS would wait for.
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                issuer.authorizations[self.path] = self.headers["Authorization"]
                if self.path in issuer.held:
                    issuer.waiting.release()
                    issuer._stopped.wait()
                    return
                status, body = issuer.answers.get(self.path, (404, b""))
                etag = issuer.etags.get(self.path, "")
                if etag and self.headers["If-None-Match"] == etag:
                    status, body = 304, b""
                    issuer.unchanged.release()
                self.send_response(status)
                if etag:
                    self.send_header("ETag", etag)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_arguments: Any) -> None: ...

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        scheme = "http"
        if certificate is not None:
            context, scheme = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), "https"
            context.load_cert_chain(certificate)
            self._server.socket = context.wrap_socket(
                self._server.socket, server_side=True, do_handshake_on_connect=False
            )
        self.url = f"{scheme}://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        self._stopped.set()
        if self._thread.is_alive():
            self._server.shutdown()
            self._server.server_close()
            self._thread.join()


def key_set(**keys: ec.EllipticCurvePrivateKey) -> bytes:
    """A JWKS, by `kid`."""
    jwks = [ECAlgorithm.to_jwk(key.public_key(), as_dict=True) | {"kid": kid} for kid, key in keys.items()]
    return json.dumps({"keys": jwks}).encode()


def signed(key: ec.EllipticCurvePrivateKey, kid: str, **claims: Any) -> str:
    """A token, ES256."""
    return PyJWS().encode(json.dumps(claims).encode(), key, "ES256", headers={"kid": kid})
