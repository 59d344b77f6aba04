"""The fields of a call (RFC 9113 §8, gRPC's PROTOCOL-HTTP2.md): what is one, and what of it goes on."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from urllib.parse import unquote_to_bytes

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.forged_headers import FORGED, GUISES, IDENTITY
from support.rows import rows

from tlsproxy.errors import BadRequest, HeadTooLarge, RequestError
from tlsproxy.wire.field_block import Fields, literals, write
from tlsproxy.wire.grpc import (
    PREFIX,
    Message,
    NotGrpc,
    deadline_apart,
    is_timeout,
    message,
    origin,
    parse_call,
    refusal_over_http,
    restate_call,
    said_of,
    trailers,
    trailers_only,
)
from tlsproxy.wire.http2 import Code, StreamError

Field = tuple[bytes, bytes]
PATH = b"/qdrant.Points/Search"
PSEUDO: Fields = ((b":method", b"POST"), (b":scheme", b"https"), (b":path", PATH), (b":authority", b"localhost:6334"))
REGULAR: Fields = ((b"te", b"trailers"), (b"content-type", b"application/grpc"))
GOOD = PSEUDO + REGULAR


def without(name: bytes) -> Fields:
    return tuple(field for field in GOOD if field[0] != name)


def replaced(name: bytes, value: bytes) -> Fields:
    return tuple((name, value) if field[0] == name else field for field in GOOD)


def malformed(fields: Fields) -> None:
    with pytest.raises(StreamError) as error:
        parse_call(fields)
    assert error.value.code == Code.PROTOCOL_ERROR


def test_a_good_call() -> None:
    head = parse_call((*GOOD, (b"x-a", b"1"), (b"x-a", b"2"), (b"grpc-timeout", b"99999999n")))
    assert (head.path, head.authority) == (PATH.decode(), b"localhost:6334")
    assert (head.value(b"x-a"), head.value(b"x-b"), head.value(b"te")) == ("1", None, "trailers")
    assert head.without(b"x-a", b"te").fields == (
        (b"content-type", b"application/grpc"),
        (b"grpc-timeout", b"99999999n"),
    )


# Pseudo-headers (§8.3)


@given(st.permutations(PSEUDO), st.permutations((*REGULAR, (b"x-a", b"1"))))
def test_their_order_among_themselves_is_free(
    pseudo: list[tuple[bytes, bytes]], regular: list[tuple[bytes, bytes]]
) -> None:
    head = parse_call((*pseudo, *regular))
    assert (head.path, head.fields) == (PATH.decode(), tuple(regular))


@given(st.permutations(GOOD))
def test_they_stand_before_all_others(fields: list[Field]) -> None:
    late = [name[:1] == b":" for name, _ in fields] != sorted((name[:1] == b":" for name, _ in fields), reverse=True)
    if late:
        malformed(tuple(fields))
    else:
        parse_call(tuple(fields))


@pytest.mark.parametrize("name", [b":method", b":scheme", b":path"])
def test_without_one_of_them(name: bytes) -> None:
    malformed(without(name))


@rows("field", PSEUDO)
@rows("place", range(5))
def test_one_of_them_twice(field: tuple[bytes, bytes], place: int) -> None:
    malformed((*GOOD[:place], field, *GOOD[place:]))


@pytest.mark.parametrize("name", [b":status", b":protocol", b":Path", b":", b":path ", b": path", b"::path"])
def test_unknown_ones(name: bytes) -> None:
    malformed(((name, b"200"), *GOOD))


@pytest.mark.parametrize(
    "path",
    [b"", b"*", b"qdrant.Points/Search", b"https://localhost" + PATH, b"/a b", b"/a\xc3\xa9", b"/a\x7f"],
)
def test_no_valid_path(path: bytes) -> None:
    malformed(replaced(b":path", path))


@pytest.mark.parametrize(
    ("method", "path"),
    [
        (b"GET", b"/"),
        (b"POST", b"/"),
        (b"OPTIONS", b"*"),
        (b"GET", b"/collections/docs/points/1?x=" + b"a" * 8000),
    ],
)
def test_paths_of_rest(method: bytes, path: bytes) -> None:
    head = ((b":method", method), (b":scheme", b"https"), (b":path", path), (b":authority", b"localhost"))
    with pytest.raises(NotGrpc, match="send REST over HTTP/1"):
        parse_call(head)


def test_connect_has_neither_scheme_nor_path() -> None:
    with pytest.raises(NotGrpc):
        parse_call(((b":method", b"CONNECT"), (b":authority", b"qdrant:6333")))


def test_longest_path_of_a_method() -> None:
    assert parse_call(replaced(b":path", b"/" + b"a" * 512)).path
    with pytest.raises(HeadTooLarge):
        parse_call(replaced(b":path", b"/" + b"a" * 513))


def test_a_scheme_of_another_protocol() -> None:
    malformed(replaced(b":scheme", b"ftp"))
    malformed(replaced(b":scheme", b"HTTPS"))
    assert parse_call(replaced(b":scheme", b"http")).path


# :authority and host (§8.3.1)


AUTHORITIES = [b"localhost", b"localhost:6334", b"[::1]:6334", b"127.0.0.1", b"qdrant.example.org"]
NONE = [
    b"",
    b"a@localhost",
    b"localhost:",
    b"localhost:123456",
    b"local host",
    b"[::1",
    b"localhost/",
    b"a:b:1",
    b"%61",
]


@pytest.mark.parametrize("authority", AUTHORITIES)
def test_the_authority_is_there_once_or_the_same_twice(authority: bytes) -> None:
    host = (b"host", authority)
    assert parse_call(replaced(b":authority", authority)).authority == authority
    assert parse_call((*without(b":authority"), host)).authority == authority
    assert parse_call((*replaced(b":authority", authority), host)).authority == authority
    malformed((*replaced(b":authority", authority), (b"host", b"elsewhere")))
    with pytest.raises(BadRequest):
        parse_call((*replaced(b":authority", authority), host, host))


@rows("authority", NONE)
def test_no_valid_authority(authority: bytes) -> None:
    malformed(replaced(b":authority", authority))
    malformed((*without(b":authority"), (b"host", authority)))
    malformed((*replaced(b":authority", authority), (b"host", b"localhost")))


def test_no_authority_at_all() -> None:
    malformed(without(b":authority"))


# Names and values (§8.2)

TOKEN = b"!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyz"


@rows("byte", range(256))
def test_each_byte_in_a_name_and_in_a_value(byte: int) -> None:
    char = bytes((byte,))
    for name in (b"x" + char, b"x" + char + b"y"):
        if char in TOKEN and char:
            assert parse_call((*GOOD, (name, b""))).fields[-1] == (name, b"")
        else:
            malformed((*GOOD, (name, b"")))
    inside, edges = (b"x", b"a" + char + b"b"), [(b"x", char + b"b"), (b"x", b"a" + char)]
    visible = 0x21 <= byte <= 0x7E or byte >= 0x80
    if visible or char in b"\t ":
        assert parse_call((*GOOD, inside)).fields[-1] == inside
    else:
        malformed((*GOOD, inside))
    for field in edges:
        if visible:
            assert parse_call((*GOOD, field)).fields[-1] == field
        else:
            malformed((*GOOD, field))


@rows("name", [b":method", b":scheme", b":path", b":authority"])
@rows("end", [b"\r", b"\n", b"\0", b"\r\nx: y"])
def test_line_ends_in_pseudo_headers(name: bytes, end: bytes) -> None:
    malformed(replaced(name, dict(GOOD)[name] + end))


def test_no_name() -> None:
    malformed((*GOOD, (b"", b"1")))
    malformed((*GOOD, (b"x" * 257, b"1")))


OF_CONNECTIONS = [b"connection", b"keep-alive", b"proxy-connection", b"transfer-encoding", b"upgrade"]


@pytest.mark.parametrize("name", OF_CONNECTIONS)
def test_what_is_a_connections_own(name: bytes) -> None:
    malformed((*GOOD, (name, b"1")))
    malformed((*GOOD, (name, b"")))


@pytest.mark.parametrize("te", [b"gzip", b"trailers, gzip", b"Trailers", b""])
def test_te_says_trailers(te: bytes) -> None:
    malformed(replaced(b"te", te))
    assert parse_call(without(b"te")).path


# Lengths (§8.1.1)


@pytest.mark.parametrize(
    ("value", "length"), [(None, None), (b"0", 0), (b"5", 5), (b"005", 5), (b"9" * 18, 10**18 - 1)]
)
def test_what_is_said_of_the_length(value: bytes | None, length: int | None) -> None:
    said = () if value is None else ((b"content-length", value),)
    assert parse_call((*GOOD, *said)).length == length


@rows("value", [b"", b"+5", b"-5", b"5,5", b"5, 5", b"5 5", b"0x5", b"5.0", b"five", b"9" * 19, b"\xb2"])
def test_a_length_that_is_no_number(value: bytes) -> None:
    malformed((*GOOD, (b"content-length", value)))


def test_the_length_of_an_answer_goes_no_further() -> None:
    """The gateway may end it before its time."""
    said = said_of(((b":status", b"200"), (b"content-length", b"5"), (b"x", b"y")))
    assert said.fields == ((b":status", b"200"), (b"x", b"y"))
    assert said.restated == write(said.fields)
    assert said_of(((b":status", b"200"),)).restated is None


# gRPC's own


@rows(
    "name",
    ["api-key", "authorization", "content-length", "content-type", "grpc-encoding", "grpc-timeout", "te", "host"],
)
def test_what_two_readers_could_choose_from(name: str) -> None:
    """The first counts for one, the last for another."""
    twice = ((name.encode(), b"1"), (name.encode(), b"2"))
    with pytest.raises(BadRequest, match=f"{name} is given more than once"):
        parse_call((*PSEUDO, *twice))


@pytest.mark.parametrize("method", [b"GET", b"post", b"PUT", b"CONNECT", b""])
def test_another_method(method: bytes) -> None:
    with pytest.raises(NotGrpc, match="send REST over HTTP/1") as error:
        parse_call(replaced(b":method", method))
    assert error.value.status == 421


@rows(
    ("content_type", "good"),
    [
        (b"application/grpc", True),
        (b"application/grpc+proto", True),
        (b"application/grpc; charset=utf-8", True),
        (b"application/grpc-web", False),
        (b"application/grpc-web+proto", False),
        (b"application/grpcx", False),
        (b"application/json", False),
        (b"Application/gRPC", False),
        (b"", False),
    ],
)
def test_content_types(content_type: bytes, good: bool) -> None:  # noqa: FBT001 - a parameter
    if good:
        assert parse_call(replaced(b"content-type", content_type)).value(b"content-type") == content_type.decode()
    else:
        with pytest.raises(NotGrpc):
            parse_call(replaced(b"content-type", content_type))


def test_without_a_content_type() -> None:
    with pytest.raises(NotGrpc) as error:
        parse_call(without(b"content-type"))
    assert error.value.status == 415


@rows("timeout", [b"1", b"S", b"123456789S", b"1s", b"-1S", b"1.5S", b"", b"1S "])
def test_malformed_timeouts(timeout: bytes) -> None:
    with pytest.raises((BadRequest, StreamError)):
        parse_call((*GOOD, (b"grpc-timeout", timeout)))


@pytest.mark.fuzz
@given(st.binary(max_size=10) | st.from_regex(rb"[0-9]{0,10}[HMSmun0-9]?", fullmatch=True))
def test_a_timeout_is_what_the_grammar_says(value: bytes) -> None:
    assert is_timeout(value) == (re.fullmatch(rb"[0-9]{1,8}[HMSmun]", value) is not None)


@pytest.mark.fuzz
@given(
    st.lists(
        st.sampled_from(
            [*GOOD, (b"x-a", b"1"), (b"te", b"gzip"), (b"grpc-timeout", b"5S"), (b"grpc-timeout", b"5"), (b":x", b"")]
        ),
        max_size=9,
    ),
    st.booleans(),
)
def test_a_deadline_apart_changes_nothing_of_what_a_call_is(more: list[Field], whole: bool) -> None:  # noqa: FBT001
    fields = (*GOOD, *more) if whole else tuple(more)
    rest, deadline = deadline_apart(fields)
    if not deadline:
        assert rest == fields
        return
    said = next(value for name, value in fields if name == b"grpc-timeout")
    assert deadline == literals(((b"grpc-timeout", said),))
    assert sorted((*rest, (b"grpc-timeout", said))) == sorted(fields)
    try:
        head = parse_call(fields)
    except (RequestError, StreamError) as error:
        with pytest.raises(type(error)):
            parse_call(rest)
    else:
        assert parse_call(rest) == head.without(b"grpc-timeout")


def test_how_many_fields() -> None:
    many = tuple((b"x-%d" % number, b"") for number in range(98))
    assert len(parse_call(GOOD + many).fields) == 100
    with pytest.raises(HeadTooLarge):
        parse_call((*GOOD, *many, (b"x", b"")))
    assert parse_call((*GOOD, (b"x", b"")), max_fields=3).fields


# What goes on


def restated(head: Fields, key: bytes | None = b"upstr3am-key") -> Fields:
    return restate_call(parse_call(head), upstream=origin(b"127.0.0.1:6334", tls=False), upstream_key=key)


def test_what_is_stated_anew() -> None:
    kept = ((b"x-tracing-id", b"1"), (b"trace-bin", b"AAE"), (b"grpc-timeout", b"1S"), (b"openai-api-key", b"sk-1"))
    assert restated((*GOOD, (b"host", b"localhost:6334"), (b"content-length", b"7"), *kept)) == (
        (b":method", b"POST"),
        (b":scheme", b"http"),
        (b":authority", b"127.0.0.1:6334"),
        (b":path", PATH),
        (b"te", b"trailers"),
        (b"content-type", b"application/grpc"),
        *kept,
        (b"api-key", b"upstr3am-key"),
        (b"x-forwarded-host", b"localhost:6334"),
    )


@rows("name", IDENTITY)
@rows("guise", GUISES)
def test_identity_in_every_alias(name: str, guise: Callable[[str], str]) -> None:
    forged = (guise(name).encode(), FORGED.encode())
    if forged[0] != forged[0].lower():
        malformed((*GOOD, forged))  # HTTP/2 has no upper case
        return
    for key in (b"upstr3am-key", None):
        fields = restated((*GOOD, forged, (b"x-harmless", b"kept")), key)
        assert FORGED.encode() not in b"".join(value for _, value in fields)
        assert [value for name, value in fields if name == b"api-key"] == ([key] if key else [])
        assert (b"x-harmless", b"kept") in fields


@pytest.mark.fuzz
@given(
    st.lists(
        st.tuples(
            st.sampled_from([guise(name).lower().encode() for name, guise in itertools.product(IDENTITY, GUISES)])
            | st.sampled_from([b"x-harmless", b"accept", b"te", b"host", b"content-length", b":path"])
            | st.binary(max_size=8),
            st.just(FORGED.encode()) | st.binary(max_size=8),
        ),
        max_size=8,
    ),
    st.integers(0, 6),
)
def test_whatever_is_sent_what_goes_on_is_well_formed_and_ours(more: list[tuple[bytes, bytes]], place: int) -> None:
    try:
        fields = restated((*GOOD[:place], *more, *GOOD[place:]))
    except (StreamError, RequestError):
        return
    identity = {name for name, _ in fields if name.replace(b"_", b"-").replace(b".", b"-").decode() in IDENTITY}
    assert identity == {b"api-key", b"x-forwarded-host"}
    for name in (b"api-key", b"x-forwarded-host", b"te", b"content-type", b":path", b":authority"):
        assert [one for one, _ in fields].count(name) == 1
    again = parse_call(fields)  # an upstream as strict as we are takes it
    assert (again.path, again.value(b"api-key")) == (PATH.decode(), "upstr3am-key")
    assert not {b"host", b"content-length", *OF_CONNECTIONS} & {name for name, _ in fields}


# Refusals


@pytest.mark.fuzz
@given(st.text(max_size=40), st.sampled_from(list(grpc.StatusCode)))
def test_a_message_comes_back_as_it_was(text: str, code: grpc.StatusCode) -> None:
    text = text.encode(errors="replace").decode().strip(" ")
    (status_name, status), (message_name, encoded) = trailers(code.value[0], text)
    assert (status_name, int(status), message_name) == (b"grpc-status", code.value[0], b"grpc-message")
    assert unquote_to_bytes(encoded).decode() == text
    assert all(0x20 <= byte <= 0x7E for byte in encoded)


def test_a_refusal_is_one_head() -> None:
    assert trailers_only(7, "Forbidden: é %") == (
        (b":status", b"200"),
        (b"content-type", b"application/grpc"),
        (b"grpc-status", b"7"),
        (b"grpc-message", b"Forbidden: %C3%A9 %25"),
    )
    assert refusal_over_http(421, 9, 12, "no call")[:3] == (
        (b":status", b"421"),
        (b"content-type", b"application/json"),
        (b"content-length", b"9"),
    )
    assert refusal_over_http(421, 0, 12, "")[1] == (b"content-length", b"0")


# Messages


def outcome(pieces: list[bytes]) -> tuple[bytes, int, bool, bool] | str:
    reader, content = Message(), b""
    try:
        for piece in pieces:
            content += reader.feed(piece)
        reader.end()
    except BadRequest as error:
        return str(error)
    return content, reader.length, reader.compressed, reader.whole


@pytest.mark.fuzz
@given(st.binary(max_size=60), st.sampled_from([0, 0, 1, 2, 255]), st.binary(max_size=3), st.integers(-3, 3), st.data())
def test_a_message_is_the_same_however_it_is_split(
    content: bytes, flag: int, tail: bytes, lie: int, data: st.DataObject
) -> None:
    said = max(0, len(content) + lie)
    whole = bytes((flag,)) + said.to_bytes(4, "big") + content + tail
    cuts = data.draw(st.lists(st.integers(0, len(whole)), max_size=6))
    bounds = sorted({0, len(whole), *cuts})
    expected: tuple[bytes, int, bool, bool] | str
    if flag > 1:
        expected = "A message's compressed-flag is 0 or 1"
    elif len(content + tail) > said:
        expected = "This method takes one message"
    elif len(content + tail) < said:
        expected = "The request ended before its message"
    else:
        expected = (content + tail, said, flag == 1, True)
    assert outcome([whole]) == expected
    assert outcome([whole[index : index + 1] for index in range(len(whole))]) == expected
    assert outcome([b"", *(whole[start:end] for start, end in itertools.pairwise(bounds)), b""]) == expected


def test_when_a_message_is_whole() -> None:
    """The moment of the decision: with its last byte, not one before, not with what follows."""
    reader = Message()
    for byte in message(b"abc")[:-1]:
        reader.feed(bytes((byte,)))
        assert not reader.whole
    assert reader.feed(b"c") == b"c"
    assert reader.whole
    empty = Message()
    empty.feed(bytes(PREFIX - 1))
    assert not empty.whole
    empty.feed(b"\0")
    assert empty.whole


@pytest.mark.parametrize("size", range(PREFIX))
def test_an_end_within_the_prefix(size: int) -> None:
    assert outcome([bytes(size)]) == "The request ended before its message"
