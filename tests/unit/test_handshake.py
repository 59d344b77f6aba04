from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import orjson
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from tlsproxy.authz.identity import identity_of
from tlsproxy.proxy.frontend.handshake import AcceptedConnection, Origin, _fields_of
from tlsproxy.tls.verify_errors import described


@pytest.mark.plain  # stand-ins for compiled classes
def test_a_session_that_is_resumed_all_the_same_is_ended() -> None:
    """Where the C library cannot be told to keep none: nobody is let in whose certificate was not verified now."""
    lines: list[str] = []
    closed: list[float] = []
    reception = AcceptedConnection.__new__(AcceptedConnection)
    reception.address = "192.0.2.1"
    reception._origin = Origin(0.0, reception.address)
    reception.entry = None
    reception.stream = SimpleNamespace(close=closed.append)  # type: ignore[assignment]
    reception._opened = 0.0
    reception._gateway = SimpleNamespace(  # type: ignore[assignment]
        metrics=SimpleNamespace(handshake=lambda *_: None, refused=lambda _: None),
        audit=SimpleNamespace(write=lines.append),
    )
    tls: Any = SimpleNamespace(session_reused=True, get_verified_chain=list)
    reception.handshake_done(tls)
    assert reception.entry is None
    assert len(closed) == 1
    reception._session = None
    reception.drain()
    assert len(closed) == 2, "a drain waits for no client that was refused"
    (line,) = map(orjson.loads, lines)
    assert (line["event"], line["result"], line["reason"]) == ("handshake", "denied", "session_resumed")


def test_what_a_stranger_presents_fills_no_audit_line() -> None:
    """Names and serial numbers may be as long as a handshake."""
    key = ec.generate_private_key(ec.SECP256R1())
    units = [x509.NameAttribute(x509.NameOID.ORGANIZATIONAL_UNIT_NAME, "u" * 60) for _ in range(500)]
    builder = x509.CertificateBuilder(x509.Name(units), x509.Name(units), key.public_key(), (1 << 158) + 7)
    now = datetime.now(UTC)
    certificate = builder.not_valid_before(now).not_valid_after(now + timedelta(days=1)).sign(key, hashes.SHA256())
    der = certificate.public_bytes(Encoding.DER)
    assert len(der) > 50_000
    presented = identity_of(der)
    fields = _fields_of(replace(presented, serial="7" * 100_000))
    assert {name: len(value) for name, value in fields.items()} == {
        "certificate_subject": 256, "certificate_issuer": 256, "certificate_serial": 256, "certificate_sha256": 64,
    }  # fmt: skip
    assert len(described(10, "certificate has expired", presented.name)[1]) < 512
