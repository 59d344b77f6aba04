"""The request head: what is accepted reads the same to everybody, and what is not is refused with its reason."""

from __future__ import annotations

import httptools
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from support.rows import rows

from tlsproxy.errors import BadRequest, ExpectationFailed, HeadTooLarge, UpgradeRefused, VersionRefused
from tlsproxy.wire.http1 import (
    _IDENTITY,
    CHUNKED,
    MEMO_LINE,
    KnownLines,
    RequestHead,
    has_bare_lf,
    is_identity,
    parse_request,
    restate_request,
    with_host,
)
from tlsproxy.wire.target import parse_target

HOST = b"host: localhost:6333\r\n"


def head(*lines: bytes, request: bytes = b"GET / HTTP/1.1", host: bytes = HOST) -> bytes:
    return request + b"\r\n" + host + b"".join(line + b"\r\n" for line in lines) + b"\r\n"


class _Llhttp:
    """llhttp's reading of a head."""

    def __init__(self) -> None:
        self.fields: list[tuple[bytes, bytes]] = []
        self.url = b""
        self.complete = False
        self.parser = httptools.HttpRequestParser(self)

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self.fields.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        self.complete = True


token = st.text("!#$%&'*+-.^_`|~0123456789abcXYZ", min_size=1, max_size=12).map(str.encode)
value = st.binary(max_size=20)
names = st.one_of(
    token,
    st.sampled_from(
        [b"Host", b"content-length", b"Transfer-Encoding", b"connection", b"expect", b"upgrade", b"api-key", b"te"]
    ),
)
values = st.one_of(
    value,
    st.sampled_from([b"0", b"5", b"05", b"+5", b"5,5", b"chunked", b"Chunked ", b"xchunked", b"identity, chunked"]),
    st.sampled_from([b"close", b"keep-alive, close", b"100-continue", b"localhost", b"a:1", b"h2c", b"\tx\t"]),
)
separators = st.sampled_from([b": ", b":", b" : ", b":\t", b""])
ends = st.sampled_from([b"\r\n"] * 12 + [b"\n", b"\r", b"\r\n ", b"\r\r\n"])
field_lines = st.tuples(names, separators, values, ends).map(b"".join)
targets = st.text("/abc%25?&=.-_~#\\ \t", min_size=1, max_size=20).map(str.encode)
request_lines = st.builds(
    lambda method, gap, target, version, end: method + gap + target + b" HTTP/" + version + end,
    st.sampled_from([b"GET", b"POST", b"get", b"PUT", b"CONNECT", b"G@T", b""]),
    st.sampled_from([b" "] * 6 + [b"  ", b"\t"]),
    targets,
    st.sampled_from([b"1.1"] * 6 + [b"1.0", b"2.0", b"1.10", b"0.9"]),
    ends,
)
heads = st.builds(
    lambda line, fields: line + HOST + b"".join(fields) + b"\r\n", request_lines, st.lists(field_lines, max_size=6)
)


@pytest.mark.fuzz
@given(heads)
@example(head(b"Transfer-Encoding: chunked"))
@example(head(b"Content-Length: 5", request=b"POST / HTTP/1.1"))
def test_llhttp_never_reads_an_accepted_head_differently(data: bytes) -> None:
    try:
        ours = parse_request(data)
        parse_target(ours.target)
    except BadRequest:
        return
    if ours.method not in {"GET", "POST", "PUT"}:  # llhttp refuses methods that it does not know
        return
    theirs = _Llhttp()
    theirs.parser.feed_data(data)
    assert theirs.complete
    assert theirs.parser.get_method().decode() == ours.method
    assert theirs.url.decode() == ours.target
    assert [(name, field.strip(b" \t")) for name, field in theirs.fields] == list(ours.fields)
    if ours.length != CHUNKED:  # llhttp says of a chunked body only that it is not over
        assert theirs.parser.should_keep_alive() is not ours.close
    lengths = [int(field) for name, field in theirs.fields if name == b"content-length"]
    assert ours.length in (lengths or [0, CHUNKED])


def outcome(data: bytes, known: KnownLines | None) -> RequestHead | tuple[type, str]:
    try:
        return parse_request(data, max_fields=5, known=known)
    except BadRequest as error:
        return type(error), str(error)


@pytest.mark.fuzz
@given(st.lists(heads, max_size=5), st.integers(1, 4))
def test_a_head_is_read_the_same_whatever_lines_are_known(several: list[bytes], capacity: int) -> None:
    known = KnownLines(capacity)
    for data in several * 2:
        assert outcome(data, known) == outcome(data, None)


def test_neither_long_nor_malformed_lines_are_remembered() -> None:
    known = KnownLines(9)
    fits = b"x:" + b"a" * (MEMO_LINE - 2)
    parse_request(head(b"A: 1", fits, fits + b"a"), known=known)
    with pytest.raises(BadRequest):
        parse_request(head(b"B: 1", b"c : 1"), known=known)
    with pytest.raises(VersionRefused):
        parse_request(head(request=b"GET /old HTTP/1.0"), known=known)
    parse_request(head(request=b"GET /%b HTTP/1.1" % (b"a" * MEMO_LINE)), known=known)
    assert list(known.fields) == [HOST[:-2], b"A: 1", fits, b"B: 1"]
    assert list(known.requests) == [b"GET / HTTP/1.1"]


@pytest.mark.fuzz
@given(heads)
def test_what_is_accepted_is_read_the_same_after_it_was_restated(data: bytes) -> None:
    try:
        first = parse_request(data)
    except BadRequest:
        return
    stated = restate_request(first, "/t", upstream_host=b"up:1", upstream_key=None) + b"\r\n"
    second = parse_request(stated)
    assert (second.method, second.length, second.expects_continue) == (
        first.method,
        first.length,
        first.expects_continue,
    )
    assert second.target == "/t"
    assert second.host == b"up:1"
    names = [name for name, _ in second.fields]
    assert names.count(b"x-forwarded-host") == 1
    assert not [name for name in names if is_identity(name) and name != b"x-forwarded-host"]
    kept = [field for field in first.fields if field in second.fields]
    assert [field for field in second.fields if field in kept] == kept  # in their order


@pytest.mark.fuzz
@given(st.binary(max_size=200))
def test_any_bytes_are_understood_or_refused(data: bytes) -> None:
    try:
        parse_request(data + b"\r\n\r\n")
    except BadRequest as refused:
        error = refused
    else:
        return
    assert str(error)


@rows(
    "data",
    [
        head(request=b"GET /  HTTP/1.1"),
        head(request=b"GET  / HTTP/1.1"),
        head(request=b"GET\t/ HTTP/1.1"),
        head(request=b"GET /"),
        head(request=b"GET /\xe4 HTTP/1.1"),
        head(request=b" GET / HTTP/1.1"),
        head(request=b"\r\nGET / HTTP/1.1"),
        head(host=b""),
        head(host=HOST + HOST),
        head(host=b"host: a b\r\n"),
        head(host=b"host: a@b\r\n"),
        head(host=b"host: a/b\r\n"),
        head(host=b"host: a,b\r\n"),
        head(host=b"host:\r\n"),
        head(host=b"host: a:999999\r\n"),
        head(b"content-length: 5", b"content-length: 5"),
        head(b"content-length: 5", b"Content-Length: 6"),
        head(b"content-length: 5", b"transfer-encoding: chunked"),
        head(b"content-length: 5, 5"),
        head(b"content-length: +5"),
        head(b"content-length: -1"),
        head(b"content-length: 0x5"),
        head(b"content-length:"),
        head(b"content-length: 1" + b"0" * 400),
        head(b"transfer-encoding: identity, chunked"),
        head(b"transfer-encoding: chunked, identity"),
        head(b"transfer-encoding: xchunked"),
        head(b"transfer-encoding: \x0bchunked"),
        head(b"transfer-encoding: chunked", b"transfer-encoding: chunked"),
        head(b"transfer-encoding : chunked"),
        head(b"x: a\r\n folded"),
        head(b"x: a\nb: c"),
        head(b"x: a\rb"),
        head(b"x: a\x00b"),
        head(b"x\x80: a"),
        head(b"no colon"),
        head(b": empty"),
        head(b"api-key: a", b"Api-Key: b"),
        head(b"authorization: Bearer a", b"authorization: Bearer b"),
        head(b"connection: content-length", b"content-length: 1"),
        head(b"connection: host"),
    ],
)
def test_what_parsers_could_read_in_two_ways_is_refused(data: bytes) -> None:
    with pytest.raises(BadRequest):
        parse_request(data)


@pytest.mark.parametrize("version", [b"1.0", b"0.9", b"2.0", b"1.2"])
def test_other_versions_are_refused_as_such(version: bytes) -> None:
    with pytest.raises(VersionRefused):
        parse_request(head(request=b"GET / HTTP/" + version))


@pytest.mark.parametrize(
    "data", [head(b"upgrade: h2c", b"connection: upgrade"), head(request=b"CONNECT localhost:1 HTTP/1.1")]
)
def test_upgrade_and_connect_are_refused_as_such(data: bytes) -> None:
    with pytest.raises(UpgradeRefused):
        parse_request(data)


def test_an_expectation_that_nobody_understands_is_refused() -> None:
    assert parse_request(head(b"expect: 100-Continue")).expects_continue
    with pytest.raises(ExpectationFailed):
        parse_request(head(b"expect: 200-ok"))


def test_the_number_of_fields_is_bounded() -> None:
    fields = [b"x: 1"] * 9
    assert parse_request(head(*fields), max_fields=10).host == b"localhost:6333"
    with pytest.raises(HeadTooLarge):
        parse_request(head(*fields), max_fields=9)


def test_spaces_in_a_value_cost_no_more_than_they_weigh() -> None:
    """A lazy pattern that tries every space takes minutes for this one."""
    parsed = parse_request(head(b"x: a" + b" " * 1_000_000 + b"b"))
    assert len(parsed.fields[1][1]) == 1_000_002


@rows(
    ("name", "identity"),
    [
        (b"api-key", True),
        (b"api_key", True),
        (b"api.key", True),
        (b"authorization", True),
        (b"proxy-authorization", True),
        (b"forwarded", True),
        (b"x-forwarded-for", True),
        (b"x_forwarded.host", True),
        (b"x-forwarded-client-cert", True),
        (b"x-real-ip", True),
        (b"x-tlsproxy-role", True),
        (b"openai-api-key", False),
        (b"x-request-id", True),
        (b"x_request.id", True),
        (b"traceparent", True),
        (b"x-tracing-id", False),
        (b"x-qdrant-route-affinity", False),
        (b"accept-encoding", False),
    ],
)
def test_identity_fields_are_known_under_every_alias(name: bytes, *, identity: bool) -> None:
    assert is_identity(name) is identity


@given(st.builds(lambda prefix, rest: prefix + rest, st.sampled_from([b"x-forwarded", b"api.key", b"x_ssl_"]), token))
def test_identity_fields_are_known_again(name: bytes) -> None:
    assert {is_identity(name), is_identity(name)} == {_IDENTITY.fullmatch(name) is not None}


def test_the_head_that_goes_upstream() -> None:
    parsed = parse_request(
        head(
            b"Accept: */*",
            b"Api-Key: secret",
            b"Connection: close, X-Hop",
            b"X-Hop: 1",
            b"Keep-Alive: 5",
            b"TE: trailers",
            b"OpenAI-Api-Key: theirs",
            b"Content-Length: 3",
            request=b"POST /collections//a HTTP/1.1",
        )
    )
    assert parsed.close
    assert restate_request(parsed, "/collections/a", upstream_host=b"up:1", upstream_key=b"ours") == (
        b"POST /collections/a HTTP/1.1\r\n"
        b"host: up:1\r\n"
        b"accept: */*\r\n"
        b"openai-api-key: theirs\r\n"
        b"content-length: 3\r\n"
        b"api-key: ours\r\n"
        b"x-forwarded-host: localhost:6333\r\n"
    )


@given(heads)
def test_a_head_for_another_node_is_that_of_its_host(data: bytes) -> None:
    try:
        parsed = parse_request(data)
    except BadRequest:
        return
    one, other = (restate_request(parsed, "/t", upstream_host=host, upstream_key=b"k") for host in (b"a:1", b"[::1]:2"))
    assert with_host(one, b"[::1]:2") == other


def test_a_chunked_body_is_announced_anew() -> None:
    parsed = parse_request(head(b"Transfer-Encoding: CHUNKED"))
    assert parsed.length == CHUNKED
    assert b"\r\ntransfer-encoding: chunked\r\n" in restate_request(parsed, "/", upstream_host=b"u", upstream_key=None)


@pytest.mark.parametrize(
    ("data", "bare"),
    [(b"GET / HTTP/1.1\n", True), (b"a\r\nb\n", True), (b"a\rb", True), (b"a\r\r", True), (b"a\r\nb\r", False)],
)
def test_a_bare_line_end_is_seen_before_the_head_is_whole(data: bytes, *, bare: bool) -> None:
    assert has_bare_lf(data) is bare
