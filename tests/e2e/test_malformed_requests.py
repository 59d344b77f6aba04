"""What two servers could read differently: nothing of it reaches the upstream, or it reaches it in the one plain form.

The oracle is what the upstream received. Each case ends its connection, so that no byte behind it becomes a request.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from support.gateway import Gateway
from support.raw_connection import GET, connected
from support.site import Site
from support.upstream import Connection, Received, ScriptedUpstream

LINE = b"POST /collections/docs/points/search HTTP/1.1\r\n"
SMUGGLED = b"DELETE /collections/docs HTTP/1.1\r\nhost: h\r\n\r\n"


@pytest.fixture(scope="module")
def upstream() -> Iterator[ScriptedUpstream]:
    with ScriptedUpstream() as running:
        yield running


@pytest.fixture(scope="module")
def gateway(site: Site, upstream: ScriptedUpstream) -> Iterator[Gateway]:
    with Gateway(site.write_config(upstream.url, service={"api_key": "spoofed"})) as running:
        yield running


def fields(*lines: bytes) -> bytes:
    return LINE + b"host: h\r\n" + b"".join(line + b"\r\n" for line in lines) + b"\r\n"


LENGTHS = {
    "with chunked": fields(b"content-length: 5", b"transfer-encoding: chunked"),
    "chunked first": fields(b"transfer-encoding: chunked", b"content-length: 5"),
    "twice alike": fields(b"content-length: 5", b"content-length: 5"),
    "twice": fields(b"content-length: 5", b"Content-Length: 6"),
    "plus": fields(b"content-length: +5"),
    "minus": fields(b"content-length: -5"),
    "list": fields(b"content-length: 5,5"),
    "hex": fields(b"content-length: 0x5"),
    "inner space": fields(b"content-length: 5 5"),
    "fraction": fields(b"content-length: 5.0"),
    "underscore": fields(b"content-length: 1_0"),
    "empty": fields(b"content-length:"),
    "2^64": fields(b"content-length: 18446744073709551616"),
    "10^400": fields(b"content-length: 1" + b"0" * 400),
    "arabic digits": fields("content-length: ٥".encode()),
    "named by Connection": fields(b"content-length: 5", b"connection: content-length"),
}
CODINGS = {
    "xchunked": fields(b"transfer-encoding: xchunked"),
    "vertical tab": fields(b"transfer-encoding: \x0bchunked"),
    "form feed": fields(b"transfer-encoding: chunked\x0c"),
    "with identity": fields(b"transfer-encoding: chunked, identity"),
    "identity": fields(b"transfer-encoding: identity"),
    "gzip": fields(b"transfer-encoding: gzip, chunked"),
    "twice": fields(b"transfer-encoding: chunked", b"transfer-encoding: chunked"),
    "parameter": fields(b"transfer-encoding: chunked;q=1"),
    "quoted": fields(b'transfer-encoding: "chunked"'),
    "empty": fields(b"transfer-encoding:"),
    "space before colon": fields(b"transfer-encoding : chunked"),
    "folded": fields(b"transfer-encoding:", b" chunked"),
    "folded with tab": fields(b"x: 1", b"\ttransfer-encoding: chunked"),
}
HEADS = {
    "bare LF": GET.replace(b"\r\n", b"\n"),
    "one bare LF": GET.replace(b"\r\nhost", b"\nhost"),
    "bare CR": fields(b"x: a\rb"),
    "CR CR LF": GET.replace(b"\r\nhost", b"\r\r\nhost"),
    "NUL in a value": fields(b"x: a\x00b"),
    "NUL in a name": fields(b"x\x00y: a"),
    "non-ASCII name": fields(b"x\xff: a"),
    "space in a name": fields(b"x y: a"),
    "no colon": fields(b"xy"),
    "empty name": fields(b": a"),
    "folded": fields(b"x: a", b" b"),
    "first line folded": LINE + b" x: y\r\nhost: h\r\n\r\n",
    "no fields": LINE + b"\r\n",
    "no Host": LINE + b"x: y\r\n\r\n",
    "two Hosts": fields(b"host: h"),
    "two different Hosts": fields(b"Host: other"),
    "Host with user": LINE + b"host: a@b\r\n\r\n",
    "Host with path": LINE + b"host: a/b\r\n\r\n",
    "Host list": LINE + b"host: a, b\r\n\r\n",
    "Host with a letter port": LINE + b"host: a:b\r\n\r\n",
    "Host with a long port": LINE + b"host: a:999999\r\n\r\n",
    "empty Host": LINE + b"host:\r\n\r\n",
    "101 fields": fields(*[b"x: y"] * 101),
    "64 KiB field": fields(b"x: " + b"y" * 65536),
    "two api-keys": fields(b"api-key: a", b"api-key: b"),
    "two authorizations": fields(b"authorization: Bearer a", b"authorization: Bearer b"),
}
LINES = {
    name: line + b"\r\nhost: h\r\n\r\n"
    for name, line in {
        "HTTP/0.9": b"GET /collections",
        "HTTP/1.0": b"GET /collections HTTP/1.0",
        "HTTP/1.10": b"GET /collections HTTP/1.10",
        "HTTP/2": b"GET /collections HTTP/2.0",
        "lower-case HTTP": b"GET /collections http/1.1",
        "two spaces": b"GET  /collections HTTP/1.1",
        "space in target": b"GET /collections /x HTTP/1.1",
        "tab": b"GET\t/collections HTTP/1.1",
        "space at the end": b"GET /collections HTTP/1.1 ",
        "space at the start": b" GET /collections HTTP/1.1",
        "empty line first": b"\r\nGET /collections HTTP/1.1",
        "no method": b"/collections HTTP/1.1",
        "CONNECT": b"CONNECT h:6333 HTTP/1.1",
        "h2 preface": b"PRI * HTTP/2.0",
        "long method": b"G" * 33 + b" / HTTP/1.1",
    }.items()
}
UPGRADES = {
    "h2c": fields(b"connection: upgrade, http2-settings", b"upgrade: h2c", b"http2-settings: AAMAAABkAAQAAP__"),
    "websocket": fields(b"connection: upgrade", b"upgrade: websocket"),
    "unannounced": fields(b"upgrade: h2c"),
}


def cases(*tables: dict[str, bytes]) -> list[object]:
    return [pytest.param(case, id=name) for table in tables for name, case in table.items()]


@pytest.mark.parametrize("case", cases(LENGTHS, CODINGS, HEADS, LINES, UPGRADES))
def test_refused_and_nothing_behind_it_is_a_request(
    site: Site, gateway: Gateway, upstream: ScriptedUpstream, case: bytes
) -> None:
    before = len(upstream.requests)
    with connected(gateway, site.client()) as client:
        client.send(case, SMUGGLED, SMUGGLED)
        response = client.response()
        assert response.status in {400, 431, 505}
        assert response.fields["connection"] == "close"
        assert client.ended()
    assert len(upstream.requests) == before
    assert gateway.audited(result="denied")["status"] == response.status


METHODS = {
    "lower case": b"get /collections HTTP/1.1\r\nhost: h\r\n\r\n",
    "TRACE": b"TRACE /collections HTTP/1.1\r\nhost: h\r\n\r\n",
    "OPTIONS *": b"OPTIONS * HTTP/1.1\r\nhost: h\r\n\r\n",
    "absolute form": b"GET http://other/collections HTTP/1.1\r\nhost: h\r\n\r\n",
    "asterisk": b"POST * HTTP/1.1\r\nhost: h\r\n\r\n",
}


@pytest.mark.parametrize("case", cases(METHODS))
def test_well_framed_but_no_route(site: Site, gateway: Gateway, upstream: ScriptedUpstream, case: bytes) -> None:
    """Its end is known, so the next request is one."""
    before = len(upstream.requests)
    with connected(gateway, site.client()) as client:
        client.send(case, GET)
        assert client.response().status in {400, 404}
        assert client.response().status == 200
    assert [request.line for request in upstream.requests[before:]] == ["GET /collections HTTP/1.1"]


CHUNKS = {
    "0x": b"0x5\r\nhello\r\n0\r\n\r\n",
    "plus": b"+5\r\nhello\r\n0\r\n\r\n",
    "minus": b"-5\r\nhello\r\n0\r\n\r\n",
    "space": b"5 \r\nhello\r\n0\r\n\r\n",
    "extension": b"5;a=b\r\nhello\r\n0\r\n\r\n",
    "extension with LF": b"5;a\nb\r\nhello\r\n0\r\n\r\n",
    "long extension": b"5;" + b"a" * 65536 + b"\r\nhello\r\n0\r\n\r\n",
    "bare LF": b"5\nhello\n0\n\n",
    "bare LF after data": b"5\r\nhello\n0\r\n\r\n",
    "CR CR LF": b"5\r\r\nhello\r\n0\r\n\r\n",
    "no end of data": b"5\r\nhello0\r\n\r\n",
    "overflow": b"FFFFFFFFFFFFFFFF5\r\nhello\r\n0\r\n\r\n",
    "nine digits": b"000000005\r\nhello\r\n0\r\n\r\n",
    "empty size": b"\r\nhello\r\n0\r\n\r\n",
    "bare LF in trailers": b"0\r\nx: y\n\r\n\r\n",
    "folded trailer": b"0\r\nx: y\r\n z\r\n\r\n",
    "long trailers": b"0\r\nx: " + b"y" * 10_000 + b"\r\n\r\n",
}


@pytest.mark.parametrize("case", cases(CHUNKS))
@pytest.mark.parametrize("at_once", [True, False])
def test_a_malformed_chunked_body_never_ends_at_the_upstream(
    site: Site, gateway: Gateway, upstream: ScriptedUpstream, case: bytes, *, at_once: bool
) -> None:
    before = len(upstream.requests)
    with connected(gateway, site.client()) as client:
        head = fields(b"transfer-encoding: chunked")
        if at_once:
            client.send(head, case, SMUGGLED)
        else:
            client.send(head)
            client.send(case, SMUGGLED)
        response = client.response()
        assert (response.status, response.fields["connection"]) == (400, "close")
        assert client.ended()
    client_lines = [request.line for request in upstream.requests[before:]]
    assert not [line for line in client_lines if "DELETE" in line]
    assert not [request for request in upstream.requests[before:] if request.body]


def received(site: Site, gateway: Gateway, upstream: ScriptedUpstream, case: bytes) -> dict[str, str]:
    with connected(gateway, site.client()) as client:
        client.send(case)
        assert client.response().status == 200
    return upstream.requests[-1].fields


SPOOFED = [
    b"api-key", b"Api-Key", b"API_KEY", b"api.key", b"authorization", b"Proxy-Authorization", b"Forwarded",
    b"X-Forwarded-For", b"x_forwarded_for", b"X-Forwarded-Proto", b"X-Forwarded-Host", b"X-Forwarded-Client-Cert",
    b"X-Real-IP", b"X-Client-Cert", b"X-SSL-Client-S-DN", b"X-TLSProxy-Role", b"X_TLSProxy_Role", b"X.TLSProxy.Role",
]  # fmt: skip


@pytest.mark.parametrize("name", SPOOFED)
def test_identity_is_never_the_clients_to_state(
    site: Site, gateway: Gateway, upstream: ScriptedUpstream, name: bytes
) -> None:
    trailer = b"transfer-encoding: chunked"
    for case in (
        fields(name + b": spoofed"),
        fields(b"connection: x-forwarded-host", name + b":\tspoofed "),
        fields(trailer) + b"0\r\n" + name + b": spoofed\r\nok: yes\r\n\r\n",
    ):
        sent = received(site, gateway, upstream, case)
        assert "spoofed" not in str(sent)
        assert sent["x-forwarded-for"] == "127.0.0.1"
        assert sent["x-forwarded-proto"] == "https"
        assert sent["x-forwarded-host"] == "h"


def test_what_is_of_this_hop_stays_here(site: Site, gateway: Gateway, upstream: ScriptedUpstream) -> None:
    sent = received(
        site,
        gateway,
        upstream,
        fields(
            b"connection: keep-alive, X-Mine", b"x-mine: 1", b"keep-alive: 5", b"proxy-connection: close",
            b"te: trailers", b"trailer: x", b"x-other:\t 2 \t", b"Content-Length:\t0 ",
        ),
    )  # fmt: skip
    assert len(sent.pop("x-request-id")) == 32
    assert sent == {
        "host": upstream.url.removeprefix("http://"),
        "x-other": "2",
        "content-length": "0",
        "x-forwarded-host": "h",
        "x-forwarded-for": "127.0.0.1",
        "x-forwarded-proto": "https",
    }


def test_trailers_that_say_nothing_of_the_message_pass(
    site: Site, gateway: Gateway, upstream: ScriptedUpstream
) -> None:
    """Those that would frame it, route it or name its sender do not (RFC 9110 §6.5.1)."""
    raw: list[bytes] = []

    def answer(connection: Connection, _request: Received) -> None:
        raw.append(connection.read_until(b"\r\n\r\n"))
        connection.sock.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")

    usual, upstream.answer = upstream.answer, answer
    trailers = b"Host: evil\r\nx-checksum: 7\r\nContent-Length: 3\r\nAuthorization: x\r\ntransfer-encoding: x\r\n"
    try:
        received(site, gateway, upstream, fields(b"transfer-encoding: chunked") + b"0\r\n" + trailers + b"\r\n")
    finally:
        upstream.answer = usual
    assert raw == [b"0\r\nx-checksum: 7\r\n\r\n"]


@pytest.mark.parametrize(
    ("target", "canonical"),
    [
        (b"/collections?wait=true&wait=false", "/collections?wait=true&wait=false"),
        (b"//collections///docs/", "/collections/docs"),
        (b"/%63ollections/d%6Fcs", "/collections/docs"),
        (b"/collections/a%20b", "/collections/a%20b"),
    ],
)
def test_a_target_arrives_in_its_one_form(
    site: Site, gateway: Gateway, upstream: ScriptedUpstream, target: bytes, canonical: str
) -> None:
    received(site, gateway, upstream, b"GET " + target + b" HTTP/1.1\r\nhost: h\r\n\r\n")
    assert upstream.requests[-1].line == f"GET {canonical} HTTP/1.1"
