from __future__ import annotations

import orjson
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from support.rows import rows

from tlsproxy.qdrant.own_key import LONGEST, refuses_call, refuses_request
from tlsproxy.wire.grpc import trailers

REFUSALS = [
    "Must provide an API key or an Authorization bearer token",
    "Invalid API key or JWT",
    "InvalidSignature",
    "ExpiredSignature",
    "Forbidden: Global access is required",
    "Forbidden: Global manage access is required",
    "Forbidden: Access to collection docs is required",
    "Write access to collection a b is required",
    "Only points access is allowed for collection docs",
    "Forbidden: Manage access for this operation is required",
]
OTHERS = [
    "",
    "Forbidden",
    "Write operations are forbidden: the collection is locked",
    "Not found: Collection `Invalid API key or JWT` doesn't exist!",
    "Invalid API key or JWT of the inference provider",
    "Bad request: Invalid API key or JWT",
]


@rows("text", REFUSALS)
def test_refusals_of_the_key(text: str) -> None:
    assert refuses_request(401, text.encode())
    assert refuses_request(403, text.encode() + b"\n")
    assert refuses_request(403, orjson.dumps({"status": {"error": text}, "time": 0.0}))
    assert not refuses_request(404, text.encode())
    for status in (7, 16):
        assert refuses_call(trailers(status, text))
    assert not refuses_call(trailers(5, text))


@pytest.mark.parametrize("text", OTHERS)
def test_refusals_of_something_else(text: str) -> None:
    assert not refuses_request(403, text.encode())
    assert not refuses_request(401, orjson.dumps({"status": {"error": text}}))
    assert not refuses_call(trailers(7, text))


@example(b"\x1c", REFUSALS[0])
@given(st.binary(min_size=1, max_size=80).filter(lambda data: data.strip()), st.sampled_from(REFUSALS[:4]))
def test_a_text_that_has_one_in_it_is_none(more: bytes, refusal: str) -> None:
    assert not refuses_request(401, refusal.encode() + more)
    assert not refuses_request(401, more + refusal.encode())


def test_bodies_that_are_none() -> None:
    padded = REFUSALS[0].encode().ljust(LONGEST)
    assert refuses_request(401, padded)
    assert not refuses_request(401, padded + b" ")
    for body in (b"\xff", b"{", b"{}", b'{"status":"ok"}', b'{"status":{"error":1}}', b'{"error":"InvalidSignature"}'):
        assert not refuses_request(401, body)


def test_messages_of_calls() -> None:
    """A collection's name is UTF-8, percent-encoded, and whatever else a server lets through."""
    for name in ("d%C3%B6cs", "%FF", "\xff"):
        message = f"Access to collection {name} is required".encode("latin-1")
        assert refuses_call(((b"grpc-status", b"7"), (b"grpc-message", message)))
    assert refuses_call(((b"grpc-status", b"16"), (b"grpc-message", b"Invalid%20API key or JWT")))
    assert not refuses_call(((b"grpc-status", b"7"),))
    assert not refuses_call(((b"grpc-message", b"InvalidSignature"),))
