from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.rows import rows

from tlsproxy.errors import BadRequest, HeadTooLarge
from tlsproxy.wire.head_buffer import HeadBuffer

MAX = 1024
HEAD = b"GET / HTTP/1.1\r\nhost: h\r\n\r\n"


@given(st.lists(st.sampled_from([HEAD, HEAD.replace(b"/", b"/x"), b"\r\n\r\n"]), min_size=1, max_size=6), st.data())
def test_heads_come_out_as_they_went_in_however_they_were_cut(heads: list[bytes], data: st.DataObject) -> None:
    stream, inbox, out = b"".join(heads), HeadBuffer(), []
    while stream:
        size = data.draw(st.integers(1, len(stream)))
        inbox.add(stream[:size])
        stream = stream[size:]
        while (head := inbox.head(MAX)) is not None:
            out.append(head)
    assert out == heads
    assert inbox.data == b""


def test_a_body_taken_from_it_is_not_searched_for_a_head() -> None:
    inbox = HeadBuffer()
    inbox.add(HEAD + b"body" + HEAD)
    assert inbox.head(MAX) == HEAD
    inbox.take(inbox.start + 4)
    assert inbox.head(MAX) == HEAD


@pytest.mark.parametrize("size", [1024, 1025])
def test_the_largest_head(size: int) -> None:
    head = HEAD[:-4] + b"x" * (size - len(HEAD)) + b"\r\n\r\n"
    inbox = HeadBuffer()
    inbox.add(head)
    if size == 1024:
        assert inbox.head(MAX) == head
    else:
        with pytest.raises(HeadTooLarge):
            inbox.head(MAX)


def test_too_much_without_an_end() -> None:
    inbox = HeadBuffer()
    inbox.add(b"x" * 1024)
    assert inbox.head(MAX) is None
    inbox.add(b"x")
    with pytest.raises(HeadTooLarge):
        inbox.head(MAX)


@rows("cut", range(1, 18))
def test_a_bare_lf_is_told_when_it_comes(cut: int) -> None:
    """A CR that came before the cut belongs to the LF behind it."""
    inbox, line = HeadBuffer(), b"GET / HTTP/1.1\r\nx: 1"
    inbox.add(line[:cut])
    assert inbox.head(MAX) is None
    inbox.add(line[cut:])
    assert inbox.head(MAX) is None
    inbox.add(b"\n")
    with pytest.raises(BadRequest, match="CRLF"):
        inbox.head(MAX)


def test_a_head_byte_by_byte_costs_what_its_bytes_do() -> None:
    inbox = HeadBuffer()
    began = time.process_time()
    for _ in range(32_000):
        inbox.add(b"x")
        assert inbox.head(40_000) is None
    assert time.process_time() - began < 1, "searched from its start each time it is 3 s and more"
