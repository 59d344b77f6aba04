"""Outcome of a TLS handshake, as each version of Python tells it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from tlsproxy.proxy.core.connection_manager import Entry
from tlsproxy.tls.negotiated import UNKNOWN, Negotiated, negotiated


def tls(**more: Any) -> Any:
    told = {"version": lambda: "TLSv1.3", "cipher": lambda: ("TLS_AES_256_GCM_SHA384", "TLSv1.3", 256)}
    return SimpleNamespace(**told | more)


def too_old() -> str:
    raise NotImplementedError


def test_the_group_is_told_or_unknown() -> None:
    before = Negotiated("TLSv1.3", "TLS_AES_256_GCM_SHA384")
    assert negotiated(tls()) == negotiated(tls(group=too_old)) == negotiated(tls(group=lambda: None)) == before
    assert "tls_group" not in before.fields()
    hybrid = negotiated(tls(group=lambda: "X25519MLKEM768"))
    assert hybrid.fields() == {
        "tls_version": "TLSv1.3", "tls_cipher": "TLS_AES_256_GCM_SHA384", "tls_group": "X25519MLKEM768",
    }  # fmt: skip
    assert negotiated(tls(group=lambda: "X25519MLKEM768")) is hybrid, "connections share it"


def test_a_handshake_that_has_not_ended_agreed_on_nothing() -> None:
    assert negotiated(tls(version=lambda: None)) is negotiated(tls(cipher=lambda: None)) is UNKNOWN
    assert UNKNOWN.fields() == {}


@pytest.mark.plain  # stand-ins for compiled classes
def test_members_of_an_audit_line() -> None:
    standing: Any = SimpleNamespace(identity=None, principal=None)
    bare = Entry(1, "rest", "192.0.2.1", standing, 0.0)
    assert bare.remote == '"192.0.2.1"'
    entry = Entry(1, "rest", "192.0.2.1", standing, 0.0, via="192.0.2.9", negotiated=Negotiated("TLSv1.2", "C"))
    assert entry.remote == '"192.0.2.1","via":"192.0.2.9","tls_version":"TLSv1.2","tls_cipher":"C"'
