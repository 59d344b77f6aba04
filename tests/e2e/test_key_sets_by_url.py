"""Keys of a token issuer that are fetched from its URL: at the start, when they change, and not when it is down."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from jwt import PyJWS
from jwt.algorithms import ECAlgorithm
from support.gateway import Gateway
from support.raw_request import Client
from support.site import Site
from support.upstream import ScriptedUpstream

OLD, NEW = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
ISSUER = {"name": "login", "issuer": "https://login/", "audience": "qdrant", "algorithm": "ES256", "refresh": 1}


class Issuer:
    """A server of one document. `answer` is (status, body), and may be replaced at any time."""

    def __init__(self) -> None:
        self.answer = (200, key_set(old=OLD))
        issuer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                status, body = issuer.answer
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_arguments: Any) -> None: ...

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/keys"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()

    def stop(self) -> None:
        if self._thread.is_alive():
            self._server.shutdown()
            self._server.server_close()
            self._thread.join()


@pytest.fixture
def issuer() -> Iterator[Issuer]:
    made = Issuer()
    yield made
    made.stop()


def key_set(**keys: ec.EllipticCurvePrivateKey) -> bytes:
    jwks = [ECAlgorithm.to_jwk(key.public_key(), as_dict=True) | {"kid": kid} for kid, key in keys.items()]
    return json.dumps({"keys": jwks}).encode()


def token(key: ec.EllipticCurvePrivateKey, kid: str) -> str:
    claims = {"iss": "https://login/", "aud": "qdrant", "access": "r"}
    return PyJWS().encode(json.dumps(claims).encode(), key, "ES256", headers={"kid": kid})


def ask(connection: Client, key: ec.EllipticCurvePrivateKey, kid: str) -> int:
    return connection.ask("GET", "/collections/docs", [("api-key", token(key, kid))]).status


@pytest.mark.parametrize("workers", [1, 2])
def test_a_rotation_and_an_outage(own_site: Site, upstream: ScriptedUpstream, issuer: Issuer, workers: int) -> None:
    config = own_site.write_config(
        upstream.url,
        workers=workers,
        service={"verify_https_client_certificate": False},
        jwt_issuers=[ISSUER | {"jwks": issuer.url}],
    )
    with Gateway(config) as gateway, Client(gateway, own_site.client(None)) as kept:
        assert ask(kept, OLD, "old") == 200
        assert gateway.audited(status=200)["key"] == "login"
        assert ask(kept, NEW, "new") == 403
        issuer.answer = (200, key_set(old=OLD, new=NEW))
        gateway.reloaded(reason="jwks")
        assert [ask(kept, OLD, "old"), ask(kept, NEW, "new")] == [200, 200]
        issuer.answer = (200, key_set(new=NEW))
        gateway.reloaded(reason="jwks")
        assert [ask(kept, OLD, "old"), ask(kept, NEW, "new")] == [403, 200]
        for answer in ((200, b'{"keys": []}'), (503, key_set(old=OLD)), (302, key_set(old=OLD))):
            issuer.answer = answer
            gateway.log.wait(lambda line: f"{issuer.url}: " in line and "its former keys count" in line)
        issuer.stop()
        gateway.log.wait(lambda line: f"{issuer.url}: cannot be fetched" in line)
        gateway.hang_up()
        gateway.reloaded(reason="sighup")
        assert [ask(kept, OLD, "old"), ask(kept, NEW, "new")] == [403, 200]
        (entry,) = json.loads(gateway.ask_admin("/status")[1])["key_sets"]
        assert entry["url"] == issuer.url
        assert entry["fetched_at"] > 0
        assert "cannot be fetched" in entry["error"]


def test_keys_that_cannot_be_had_at_the_start(own_site: Site, upstream: ScriptedUpstream, issuer: Issuer) -> None:
    issuer.answer = (500, b"")
    config = own_site.write_config(
        upstream.url,
        service={"verify_https_client_certificate": False},
        jwt_issuers=[ISSUER | {"jwks": issuer.url}],
    )
    with Gateway(config) as gateway, Client(gateway, own_site.client(None)) as kept:
        (warning,) = json.loads(gateway.ask_admin("/status")[1])["generation"]["warnings"]
        assert warning.startswith(f"{issuer.url}: its keys have not been fetched yet")
        assert ask(kept, OLD, "old") == 401
        issuer.answer = (200, key_set(old=OLD))
        gateway.reloaded(reason="jwks")
        assert ask(kept, OLD, "old") == 200
        assert json.loads(gateway.ask_admin("/status")[1])["generation"]["warnings"] == []


def test_an_issuer_that_comes_with_a_reload(own_site: Site, upstream: ScriptedUpstream, issuer: Issuer) -> None:
    """Its keys are there when it is: no token of its is refused first."""
    config = own_site.write_config(upstream.url, service={"verify_https_client_certificate": False})
    with Gateway(config) as gateway, Client(gateway, own_site.client(None)) as kept:
        own_site.edit_config(config, jwt_issuers=[ISSUER | {"jwks": issuer.url}])
        gateway.reloaded()
        assert ask(kept, OLD, "old") == 200
        issuer.answer = (200, key_set(new=NEW))
        gateway.reloaded(reason="jwks")
        assert ask(kept, NEW, "new") == 200
