from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from snapshot_site import ROOT, SERVER
from support.rows import rows

from tlsproxy.errors import MaterialError
from tlsproxy.pem.blocks import _boundaries, blocks_of

WHOLE = SERVER.chain_pem + SERVER.key_pem + ROOT.certificate_pem


def test_every_block_is_found_in_order() -> None:
    assert [block.label for block in blocks_of("f", WHOLE)] == ["CERTIFICATE", "PRIVATE KEY", "CERTIFICATE"]
    assert b"".join(block.data for block in blocks_of("f", WHOLE)) == WHOLE


def test_text_between_blocks_and_crlf_are_allowed() -> None:
    text = b"Bag Attributes\r\n  friendlyName: x\r\n" + SERVER.certificate_pem.replace(b"\n", b"\r\n") + b"bye"
    assert len(blocks_of("f", text)) == 1


@rows(
    ("data", "reason"),
    [
        (b"", "is empty"),
        (b" \n\n", "is empty"),
        (b"\x30\x82\x01\x00", "no PEM block"),
        (b"-----BEGIN A-----\n-----END B-----\n", "line 1: a PEM block is cut off"),
        (b"-----END A-----\n", "line 1: an END without a BEGIN"),
        (b"#-----BEGIN A-----\nQQ==\n-----END A-----\n", r"line 3: .* commented out \(#\)"),
        (b"\n-----BEGIN A-----\n-----BEGIN A-----\n-----END A-----\n", "line 2: a PEM block is cut off"),
        (b"-----BEGIN A-----\n-----END A-----\n-----BEGIN A----\n", "damaged"),
        (b"-----BEGIN A-----\n-----END A-----\nx-----BEGIN A-----\n", "damaged"),
    ],
)
def test_what_is_not_whole_is_refused(data: bytes, reason: str) -> None:
    with pytest.raises(MaterialError, match=reason):
        blocks_of("f", data)


@given(st.integers(0, len(WHOLE) - 2))
def test_a_file_cut_off_anywhere_is_refused_or_ends_at_a_block(end: int) -> None:
    cut = WHOLE[:end]
    try:
        blocks = blocks_of("f", cut)
    except MaterialError:
        return
    rest = cut[len(b"".join(block.data for block in blocks)) :]
    assert b"-----BEGIN" not in rest


@given(st.binary(max_size=200))
def test_any_bytes_are_answered_or_refused(data: bytes) -> None:
    with contextlib.suppress(MaterialError):
        assert blocks_of("f", data)


@given(st.lists(st.sampled_from([b"-----BEGIN A-----", b"-----END A-----", b"-----", b"AAAA", b"", b"text"])))
def test_boundaries_are_those_lines(lines: list[bytes]) -> None:
    data = b"\n".join(lines)
    wanted = [line for line in lines if line.startswith((b"-----BEGIN", b"-----END"))]
    assert [boundary[0] for boundary in _boundaries(data)] == wanted
