"""A protocol is known by its first bytes, however they come, and answered in its own form."""

from __future__ import annotations

import http.client
import io
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.rows import rows

from tlsproxy.wire import http2
from tlsproxy.wire.misdirected import Spoken, answer, spoken

ENOUGH = 23


@rows(
    ("said", "protocol"),
    [
        (b"GET / HTTP/1.1\r\n", Spoken.HTTP_1),
        (b"DELETE /collections/docs HTTP/1.0\r\n", Spoken.HTTP_1),
        (b"OPTIONS * HTTP/1.1\r\n", Spoken.HTTP_1),
        (b"PRI * HTTP/1.1\r\n", Spoken.HTTP_1),
        (b"PATCH http://host/ HTTP/1.1\r\n", Spoken.HTTP_1),
        (b"GET https://host/ HTTP/1.1\r\n", Spoken.HTTP_1),
        (b"CONNECT host:443 HTTP/1.1\r\n", Spoken.HTTP_1),
        (http2.PREFACE, Spoken.HTTP_2),
        (b"PRI * HTTP/2.0\r\n\r\n", Spoken.HTTP_2),
        (b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n", Spoken.PROXY),
        (b"PROXY UNKNOWN\r\n", Spoken.PROXY),
        (b"\r\n\r\n\0\r\nQUIT\n\x21\x11", Spoken.PROXY),
        (b"\r\n\r\nGET / HTTP/1.1\r\n", Spoken.OTHER),
        (b"SSH-2.0-OpenSSH_9.2\r\n", Spoken.OTHER),
        (b"EHLO localhost\r\n", Spoken.OTHER),
        (b"PING\r\n", Spoken.OTHER),
        (b"GET hello", Spoken.OTHER),
        (b"\x16\x03\x01\x02\x00", Spoken.OTHER),
        (b"A" * ENOUGH, Spoken.OTHER),
        (b"", None),
        (b"P", None),
        (b"PRI * HTTP/", None),
        (b"GET", None),
        (b"POST http", None),
        (b"CONNECT ", None),
        (b"PROXY", None),
        (b"\r\n\r\n\0\r\nQUI", None),
    ],
)
def test_protocols(said: bytes, protocol: Spoken | None) -> None:
    assert spoken(said) is protocol


@given(
    st.one_of(
        st.binary(max_size=64),
        st.sampled_from([b"GET ", b"PRI * HT", b"CONNECT ", b"PROXY", b"\r\n\r\n\0"]).flatmap(
            lambda begin: st.text(st.characters(codec="ascii"), max_size=30).map(lambda rest: begin + rest.encode())
        ),
    )
)
def test_more_bytes_never_change_what_is_known(said: bytes) -> None:
    seen = [spoken(said[:end]) for end in range(len(said) + 1)]
    known = [protocol for protocol in seen if protocol is not None]
    assert len(set(known)) <= 1
    assert seen == [None] * (len(seen) - len(known)) + known
    assert len(seen) - len(known) <= ENOUGH


@pytest.mark.parametrize(("first", "body"), [(b"GET / HTTP/1.1", True), (b"HEAD / HTTP/1.1", False)])
def test_an_answer_over_http_1(first: bytes, body: bool) -> None:  # noqa: FBT001 - a parameter
    class Socket:
        def makefile(self, _mode: str) -> io.BytesIO:
            return io.BytesIO(answer(Spoken.HTTP_1, first, "Speak TLS"))

    response = http.client.HTTPResponse(Socket(), method=first.split()[0].decode())  # type: ignore[arg-type]
    response.begin()
    assert (response.status, response.getheader("connection")) == (400, "close")
    assert json.loads(response.read() or b"{}") == ({"status": {"error": "Speak TLS"}, "time": 0.0} if body else {})


def test_an_answer_over_http_2() -> None:
    sent = answer(Spoken.HTTP_2, http2.PREFACE, "Speak TLS")
    assert sent[:9] == http2.settings({})
    assert sent.endswith(b"\x00\x00\x00\x0cSpeak TLS")


def test_no_answer_to_another_protocol() -> None:
    assert answer(Spoken.OTHER, b"SSH-2.0-x\r\n", "Speak TLS") == b""
