"""What every contender is given: P-256 certificates, and the requests that its clients send."""

from __future__ import annotations

import base64
import json
import random
import ssl
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from tlsproxy.tls.pki import Authority

ORGANIZATION = "bench"
CLIENT = "search-svc"
LIMITED = "limited-svc"
"""The common names of a caller with global rights, and of one that is limited to a collection."""
BOUNDED, BLINDED = "bounded-svc", "blinded-svc"
"""The same under a query policy: one whose queries are bounded, and one from whom a payload key is hidden besides."""
CALLERS = (CLIENT, LIMITED, BOUNDED, BLINDED)
"""Peers let all of them in."""
ISSUER, AUDIENCE = "https://id.bench", "bench"
GROUP = "search"
"""Of the token that is sent with a search, in its claim ``groups``."""

HEAD = "host: localhost\r\nuser-agent: python-httpx/0.28.1\r\naccept: */*\r\n"
IDENTITY, GZIP = ("accept-encoding: identity\r\n", "accept-encoding: gzip, deflate\r\n")
"""Qdrant compresses for a client that accepts it, and then tells no length: the upstream answers in chunks."""
VARYING = "x-correlation-id: XXXXXXXXXXXXXXXX\r\n"
"""The load generator puts another number there in each request: a head that nobody has seen before."""
DIMENSIONS = 1180
"""Of a search's vector: 12 KB of JSON."""
UPSERT_SIZE = 4 << 20
DOWNLOAD_SIZE = 64 << 20
_GRPC_DIMENSIONS = 48
_WITH_PAYLOAD = b"\x32\x02\x08\x01"
"""The field ``with_payload`` (6) of a search over gRPC: ``enable``."""
_NEVER = 4_102_444_800
"""The year 2100, in seconds since the epoch."""
_RANDOM = 20
"""The seed: every run sends the same."""


@dataclass(frozen=True, slots=True)
class Site:
    """A directory with ``ca.pem``, and NAME.pem and NAME.key of ``server`` and the clients.

    ``server-both.pem`` is what HAProxy and hitch read: certificate and key in one file. ``issuer.pem`` is the public
    key of the token's issuer.
    """

    directory: Path
    authority: Authority = field(repr=False)

    @classmethod
    def create(cls, directory: Path) -> Site:
        directory.mkdir(parents=True, exist_ok=True)
        site = cls(directory, Authority.create())
        (directory / "ca.pem").write_bytes(site.authority.certificate_pem)
        site.renew_server()
        for label, name in (("client", CLIENT), ("limited", LIMITED), ("bounded", BOUNDED), ("blinded", BLINDED)):
            issued = site.authority.issue(
                common_name=name, organization=ORGANIZATION, uris=[f"spiffe://bench/{name}"], client=True
            )
            site._write(label, issued.chain_pem, issued.key_pem)
        site._write_requests()
        return site

    def renew_server(self) -> int:
        """A new server certificate in the place of the old one, by renaming over it; its serial number."""
        issued = self.authority.issue(common_name="localhost", dns=["localhost"], ips=["127.0.0.1"], server=True)
        self._write("server", issued.chain_pem, issued.key_pem)
        self._replace("server-both.pem", issued.chain_pem + issued.key_pem)
        return issued.serial

    def client(self) -> ssl.SSLContext:
        """One that trusts the authority, and has the client's certificate."""
        context = ssl.create_default_context(cafile=self.path("ca.pem"))
        context.load_cert_chain(self.path("client.pem"), self.path("client.key"))
        return context

    def path(self, name: str) -> Path:
        return self.directory / name

    def request(self, name: str) -> Path:
        return self.directory / f"{name}.request"

    def _write(self, label: str, certificate: bytes, key: bytes) -> None:
        self._replace(f"{label}.pem", certificate)
        self._replace(f"{label}.key", key)

    def _replace(self, name: str, data: bytes) -> None:
        new = self.directory / f".{name}.new"
        new.touch(mode=0o600)
        new.write_bytes(data)
        new.replace(self.directory / name)

    def _write_requests(self) -> None:
        requests = {
            "get": http("GET", "/collections/items"),
            "get-varying": http("GET", "/collections/items", fields=VARYING),
            "search": search(DIMENSIONS),
            "search-chunked": search(DIMENSIONS, GZIP),
            "search-token": search(DIMENSIONS, fields=f"authorization: Bearer {self._token()}\r\n"),
            "search-payload": search(DIMENSIONS, with_payload=True),
            "upsert": http("PUT", "/collections/items/points?wait=true", upsert(UPSERT_SIZE)),
            "download": http("GET", "/collections/items/snapshots/items.snapshot"),
            "grpc-search": grpc_search(_GRPC_DIMENSIONS),
            "grpc-search-payload": grpc_search(_GRPC_DIMENSIONS, _WITH_PAYLOAD),
        }
        for name, content in requests.items():
            self.request(name).write_bytes(content)

    def _token(self) -> str:
        """One of the issuer's: its rights are those of a rule for the group."""
        key = Ed25519PrivateKey.generate()
        pem = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        self._replace("issuer.pem", pem)
        claims = {"iss": ISSUER, "aud": AUDIENCE, "sub": "alice", "groups": ["staff", GROUP], "exp": _NEVER}
        signed = ".".join(_base64(json.dumps(part).encode()) for part in ({"alg": "EdDSA", "typ": "JWT"}, claims))
        return f"{signed}.{_base64(key.sign(signed.encode()))}"


def http(method: str, target: str, body: bytes = b"", *, fields: str = "", coding: str = IDENTITY) -> bytes:
    framing = f"content-type: application/json\r\ncontent-length: {len(body)}\r\n" if body else ""
    return f"{method} {target} HTTP/1.1\r\n{HEAD}{coding}{fields}{framing}\r\n".encode() + body


def _vector(dimensions: int) -> list[float]:
    source = random.Random(_RANDOM)  # noqa: S311 - content to send, nothing secret
    return [round(source.uniform(0.1, 1), 7) for _ in range(dimensions)]


def _base64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def search(dimensions: int, coding: str = IDENTITY, *, fields: str = "", **members: Any) -> bytes:
    """A request of the kind that clients search with, and that may name another collection (``lookup_from``)."""
    body = json.dumps({"query": _vector(dimensions), "limit": 10, **members}, separators=(",", ":")).encode()
    return http("POST", "/collections/items/points/query", body, fields=fields, coding=coding)


def upsert(size: int) -> bytes:
    """At least ``size`` bytes."""
    point = json.dumps({"id": 12345678, "vector": _vector(128), "payload": {"text": "a payload " * 20}}).encode()
    return b'{"points":[' + b",".join([point] * (size // len(point) + 1)) + b"]}"


def grpc_search(dimensions: int, more: bytes = b"") -> bytes:
    """A ``qdrant.SearchPoints`` with gRPC's prefix: collection_name (1), vector (2, packed), limit (4)."""
    vector = struct.pack(f"<{dimensions}f", *_vector(dimensions))
    message = b"\x0a\x05items" + b"\x12" + _varint(len(vector)) + vector + b"\x20\x0a" + more
    return struct.pack(">BI", 0, len(message)) + message


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:  # noqa: PLR2004 - seven bits at a time
        out.append(value & 127 | 128)
        value >>= 7
    return bytes((*out, value))
