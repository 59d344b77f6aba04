"""A header of the PROXY protocol is read to the byte, or refused with its reason, however it comes."""

from __future__ import annotations

import ipaddress
from contextlib import suppress

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from support.proxy_headers import (
    LOCAL,
    PROXY,
    SIGNATURE,
    TCP4,
    TCP6,
    UNIX,
    UNSPEC,
    binary,
    crc32c,
    framed,
    line,
    summed,
    value,
)
from support.rows import rows

from tlsproxy.wire.proxy_protocol import LONGEST, Announcement, Header, HeaderRefused, read

MISSING, MALFORMED = "proxy_protocol_missing", "proxy_protocol_malformed"
HELLO = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"

ADDRESSES = st.ip_addresses().map(lambda one: str(one.ipv4_mapped or one) if one.version == 6 else str(one))
VALUES = st.lists(st.tuples(st.integers(4, 255), st.binary(max_size=40)), max_size=4)
HEADERS = st.one_of(
    st.builds(line, st.ip_addresses(v=4).map(str)),
    st.builds(lambda client: line(client, "TCP6"), st.ip_addresses(v=6).map(str)),
    st.builds(lambda client, values, command: binary(client, *values, command=command), ADDRESSES, VALUES,
              st.sampled_from([LOCAL, PROXY])),
)  # fmt: skip


def outcome(data: bytes) -> Header | str | None:
    try:
        return read(data)
    except HeaderRefused as refused:
        return refused.reason


def told(data: bytes) -> tuple[str, bool]:
    """The address in a header, and whether it is the balancer's own connection."""
    header = read(data + HELLO)
    assert header is not None
    assert header.size == len(data)
    return header.address, header.local


@given(HEADERS, st.binary(max_size=60))
def test_what_follows_does_not_count_and_less_is_not_enough(header: bytes, rest: bytes) -> None:
    whole = read(header)
    assert whole is not None
    assert whole.size == len(header)
    assert read(header + rest) == whole
    assert all(read(header[:size]) is None for size in range(len(header)))


@given(ADDRESSES, VALUES)
def test_the_client_is_told_in_one_form(client: str, values: list[tuple[int, bytes]]) -> None:
    assert told(binary(client, *values)) == (client, False)
    assert told(binary(client, *values, command=LOCAL)) == ("", True)
    mapped = f"::ffff:{client}" if ":" not in client else client
    assert told(binary(mapped)) == told(line(mapped, "TCP6")) == (client, False)
    assert told(line(mapped.upper(), "TCP6")) == (client, False)
    assert told(line(ipaddress.ip_address(mapped).exploded, "TCP6")) == (client, False)


BROKEN = st.builds(
    lambda header, place, other: header[:place] + other + header[place + 1 :],
    HEADERS, st.integers(0, 60), st.binary(min_size=1, max_size=3),
)  # fmt: skip


@given(st.binary(max_size=200) | BROKEN)
@example(b"")
def test_anything_else_is_refused_or_waited_for_within_bounds(data: bytes) -> None:
    """The verdict on the first bytes stands, whatever follows, and one is there after the longest header."""
    first = outcome(data)
    if first is not None:
        assert outcome(data + bytes(10)) == first
    else:
        assert outcome(data + b"x" * LONGEST) is not None
        with suppress(HeaderRefused):
            read(data + b"\r\n")


@rows(
    ("data", "local"),
    [
        (b"PROXY UNKNOWN\r\n", True),
        (b"PROXY UNKNOWN ffff:f...f:ffff ffff:f...f:ffff 65535 65535\r\n", True),
        (framed(LOCAL, UNSPEC, b""), True),
        (framed(LOCAL, 0xFF, b"\xff" * 7), True),
        (framed(PROXY, UNSPEC, b""), False),
        (framed(PROXY, UNSPEC, value(5, b"id")), False),
        (framed(PROXY, UNIX, bytes(216)), False),
        (framed(PROXY, UNIX, b"/run/x\0".ljust(216, b"\1") + value(0xE0, b"")), False),
    ],
)
def test_headers_without_an_address_of_ip(data: bytes, *, local: bool) -> None:
    assert told(data) == ("", local)


@pytest.mark.parametrize("port", [0, 1, 65535])
def test_every_port_may_be_one(port: int) -> None:
    assert told(line("192.0.2.1", port=port)) == told(binary("192.0.2.1", port=port)) == ("192.0.2.1", False)


@rows(
    "text",
    [
        "PROXY TCP4 192.0.2.1 192.0.2.2 1 2\n\n",
        "PROXY TCP4 192.0.2.1 192.0.2.2 1 2 \r\n",
        "PROXY TCP4 192.0.2.1 192.0.2.2 1 2 3\r\n",
        "PROXY TCP4 192.0.2.1 192.0.2.2 1\r\n",
        "PROXY TCP4 192.0.2.1  192.0.2.2 1 2\r\n",
        "PROXY  TCP4 192.0.2.1 192.0.2.2 1 2\r\n",
        "PROXY \r\n",
        "PROXY TCP4\r\n",
        "PROXY tcp4 192.0.2.1 192.0.2.2 1 2\r\n",
        "PROXY TCP5 192.0.2.1 192.0.2.2 1 2\r\n",
        "PROXY UDP4 192.0.2.1 192.0.2.2 1 2\r\n",
        "PROXY TCP4 192.0.2.01 192.0.2.2 1 2\r\n",
        "PROXY TCP4 192.0.2 192.0.2.2 1 2\r\n",
        "PROXY TCP4 0xc0000201 192.0.2.2 1 2\r\n",
        "PROXY TCP4 3221225985 192.0.2.2 1 2\r\n",
        "PROXY TCP4 192.0.2.256 192.0.2.2 1 2\r\n",
        "PROXY TCP4 2001:db8::1 192.0.2.2 1 2\r\n",
        "PROXY TCP4 ::ffff:192.0.2.1 192.0.2.2 1 2\r\n",
        "PROXY TCP4 192.0.2.1 none 1 2\r\n",
        "PROXY TCP6 192.0.2.1 2001:db8::2 1 2\r\n",
        "PROXY TCP6 fe80::1%eth0 2001:db8::2 1 2\r\n",
        "PROXY TCP6 [2001:db8::1] 2001:db8::2 1 2\r\n",
        "PROXY TCP6 2001:db8::1::2 2001:db8::2 1 2\r\n",
        "PROXY TCP4 192.0.2.1 192.0.2.2 01 2\r\n",
        "PROXY TCP4 192.0.2.1 192.0.2.2 1 00\r\n",
        "PROXY TCP4 192.0.2.1 192.0.2.2 65536 2\r\n",
        "PROXY TCP4 192.0.2.1 192.0.2.2 +1 2\r\n",
        "PROXY TCP4 192.0.2.1 192.0.2.2 -1 2\r\n",
        "PROXY TCP4 192.0.2.1 192.0.2.2 1_0 2\r\n",
        "PROXY TCP4 192.0.2.1 192.0.2.2 \N{ARABIC-INDIC DIGIT ONE} 2\r\n",
        "PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\r\n",
        "PROXY TCP4 192.0.2.1\r 192.0.2.2 1 2\r\n",
        "PROXY TCP4 192.0.2.1\0 192.0.2.2 1 2\r\n",
        "PROXY UNKNOWN" + " " * 93 + "\r\n",
        "PROXY UNKNOWN" + "x" * 200,
        "PROXY UNKNOWNX\r\n",
    ],
)
def test_malformed_lines(text: str) -> None:
    assert outcome(text.encode()) == MALFORMED


def test_the_longest_line() -> None:
    assert told(b"PROXY UNKNOWN" + b" " * 92 + b"\r\n") == ("", True)
    assert outcome(b"PROXY UNKNOWN" + b" " * 93) is None
    assert outcome(b"PROXY UNKNOWN" + b" " * 94) == MALFORMED, "it need not be waited for"


@rows(
    "data",
    [
        framed(0x11, TCP4, bytes(12)),
        framed(0x31, TCP4, bytes(12)),
        framed(0x01, TCP4, bytes(12)),
        framed(0x22, TCP4, bytes(12)),
        framed(0x2F, TCP4, bytes(12)),
        framed(PROXY, 0x12, bytes(12)),
        framed(PROXY, 0x22, bytes(36)),
        framed(PROXY, 0x10, bytes(12)),
        framed(PROXY, 0x01, bytes(12)),
        framed(PROXY, 0x41, bytes(12)),
        framed(PROXY, 0xFF, bytes(12)),
        framed(PROXY, TCP4, bytes(11)),
        framed(PROXY, TCP6, bytes(35)),
        framed(PROXY, UNIX, bytes(215)),
        framed(PROXY, TCP4, bytes(12) + b"\x04"),
        framed(PROXY, TCP4, bytes(12) + b"\x04\0"),
        framed(PROXY, TCP4, bytes(12) + b"\x04\0\x02\0"),
        framed(PROXY, TCP4, bytes(12) + value(4, b"ok") + b"\x04\xff\xff"),
        framed(PROXY, TCP4, bytes(12) + value(3, b"")),
        framed(PROXY, TCP4, bytes(12) + value(3, bytes(4))),
        framed(PROXY, TCP4, bytes(12) + value(3, bytes(5))),
        framed(PROXY, TCP4, bytes(12) + b"\x03\0\x04\0"),
        summed("192.0.2.1")[:-1] + bytes((summed("192.0.2.1")[-1] ^ 1,)),
        framed(PROXY, TCP4, b"", 65535),
        framed(LOCAL, UNSPEC, b"", 65535),
        framed(PROXY, TCP4, b"", LONGEST - 15),
    ],
)
def test_malformed_binary_headers(data: bytes) -> None:
    assert outcome(data) == MALFORMED, "at once: no more of it is waited for"


@given(ADDRESSES, st.lists(st.tuples(st.integers(4, 255), st.binary(max_size=40)), max_size=3))
def test_a_checksum_holds_for_its_header_alone(client: str, values: list[tuple[int, bytes]]) -> None:
    data = summed(client, *values)
    assert told(data) == told(binary(client))
    for place in (16, 19, 20, 23, 24, 27):  # in the addresses and ports
        damaged = data[:place] + bytes((data[place] ^ 0x20,)) + data[place + 1 :]
        assert outcome(damaged) == MALFORMED, place


def test_the_checksum_is_castagnolis() -> None:
    """RFC 3720, appendix B.4."""
    for data, known in ((b"123456789", 0xE3069283), (bytes(32), 0x8A9136AA), (b"\xff" * 32, 0x62A8AB43)):
        assert crc32c(data) == known


def test_the_longest_binary_header() -> None:
    data = binary("192.0.2.1", (0xE0, bytes(LONGEST - 31)))
    assert len(data) == LONGEST
    assert told(data) == ("192.0.2.1", False)


@rows(
    "data", [HELLO, HELLO[:1], b"GET / HTTP/1.1\r\n", b"POST", b"PRI * HTTP/2.0", b"PROXX", b"PROXY\tTCP4 ", b"proxy ",
             b"\r\n\r\n\r", b"\0", SIGNATURE[1:]],
)  # fmt: skip
def test_other_beginnings(data: bytes) -> None:
    assert outcome(data) == MISSING


@given(ADDRESSES, ADDRESSES, st.integers(0, 65535), st.text(max_size=1100), st.booleans())
def test_what_is_written_is_read(client: str, server: str, port: int, name: str, verified: bool) -> None:  # noqa: FBT001
    name = name.encode("utf-8", "replace").decode()
    written = Announcement((client, port), (server, 443), "TLSv1.3", name, verified, "0123abcd").header()
    assert read(written + HELLO) == Header(len(written), client, port)
    both_ipv4 = ":" not in client + server
    assert written[12:14] == bytes((PROXY, TCP4 if both_ipv4 else TCP6))
    values = written[16 + (12 if both_ipv4 else 36) :]
    assert values.startswith(value(5, b"0123abcd") + b"\x20")
    inner = value(0x21, b"TLSv1.3") + (value(0x22, name.encode()) if 0 < len(name.encode()) <= 1024 else b"")
    assert values.endswith((b"\7\0\0\0\0" if verified else b"\1\0\0\0\1") + inner)
