"""The content of a body that is kept, however it comes."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tlsproxy.proxy.rest.body import RequestBody
from tlsproxy.wire.chunked import in_chunks
from tlsproxy.wire.head_buffer import HeadBuffer
from tlsproxy.wire.http1 import CHUNKED

NEXT = b"GET / HTTP/1.1\r\n"


@given(st.binary(min_size=1, max_size=60), st.booleans(), st.booleans(), st.data())
def test_it_is_the_body_without_its_framing(content: bytes, chunked: bool, keep: bool, data: st.DataObject) -> None:  # noqa: FBT001
    buffer = HeadBuffer()
    body = RequestBody(buffer, CHUNKED if chunked else len(content), 100, keep=keep)
    sent = framed = in_chunks(content) if chunked else content
    forwarded = b""
    while sent:
        size = data.draw(st.integers(1, len(sent)))
        buffer.add(sent[:size] + NEXT if size == len(sent) else sent[:size])
        sent = sent[size:]
        forward, taken = body.take()
        forwarded += forward
        assert taken == size
        kept = bytes(body.content) if body.content is not None else None
        assert kept is None or content.startswith(kept)
    assert body.done
    assert forwarded == framed
    assert bytes(body.hand_over()) == (content if keep else b"")
    assert body.content is None
    assert buffer.data[buffer.start :] == NEXT


def test_what_comes_in_one_piece_is_kept_without_a_copy() -> None:
    buffer = HeadBuffer()
    body = RequestBody(buffer, 4, 100, keep=True)
    buffer.add(b"body")
    forward, _ = body.take()
    assert body.hand_over() is forward
