"""Body that must be read before the decision: its skeleton, by which plans are remembered, and the decision on it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from tlsproxy.authz.admission import Admission
from tlsproxy.proxy.decision.rulings import Ruling
from tlsproxy.qdrant.rest_decision import BodyDecision, deciding_body
from tlsproxy.qdrant.router import Recognised
from tlsproxy.qdrant.scoring import Facts
from tlsproxy.wire.content_coding import Content, decoding
from tlsproxy.wire.cooperative import Steps
from tlsproxy.wire.http1 import RequestHead
from tlsproxy.wire.json_skeleton import Template, long_arrays, marked, template_of, without

MEMO_TEXT: Final = 4096
"""By a longer text no plan is remembered."""
MUCH: Final = 65_536
"""Bytes of a body for whose copy memory is asked first."""


@dataclass(slots=True, eq=False)
class Unread:
    """A request whose body must be read before it is decided. Compared and hashed as the object that it is.

    ``coding`` is what its body must be freed of. ``confined``: to some points. ``rewritten``: the body is read, and
    written anew; else it is read for its names. ``whole``: with the numbers in it. ``repeats``: plans of its bodies may
    be remembered. ``ruling``: that by the head.
    """

    head: RequestHead
    asked: Recognised
    admission: Admission
    coding: str | None
    confined: bool
    rewritten: bool
    whole: bool
    repeats: bool
    ruling: Ruling

    def decoded(self, plain: Content) -> int:
        """Bytes that a body takes beside the received one."""
        return 0 if self.coding is None else len(plain)


class Skeleton:
    """A body that was read. ``plain``: ``content`` without its coding; ``text``: that without its long ``arrays``, as
    heads repeat, and bodies but for the numbers in them. ``key``: by which its plan is remembered, if it is.
    """

    __slots__ = ("arrays", "content", "key", "plain", "text", "unread")

    def __init__(self, unread: Unread, content: Content, plain: Content, arrays: list[tuple[int, int]]) -> None:
        self.unread = unread
        self.content = content
        self.plain = plain
        self.arrays = arrays
        self.text = text = marked(plain, arrays) if unread.rewritten else without(plain, arrays)
        self.key: tuple[Unread, bytes] | None = None
        if unread.repeats and len(text) <= MEMO_TEXT and len(content) == unread.head.length == len(plain):
            self.key = unread, bytes(text)


def skeleton_at_once(unread: Unread, content: Content) -> Skeleton | None:
    """The skeleton of a body that takes neither time nor memory; None for one that does."""
    if unread.coding is not None or len(content) > MUCH:
        return None
    return Skeleton(unread, content, content, [] if unread.whole else long_arrays(content))


def skeleton_of(unread: Unread, content: Content, limit: int) -> Steps[Skeleton]:
    """``limit``: bytes of the body without its coding. Raises as :func:`decoding` does."""
    plain = content
    if unread.coding is not None:
        plain = yield from decoding(content, unread.coding, limit)
    arrays = [] if unread.whole else long_arrays(plain)
    if arrays and len(plain) > MUCH:
        yield len(plain) + unread.decoded(plain)
    return Skeleton(unread, content, plain, arrays)


def deciding_skeleton(skeleton: Skeleton, facts: Facts | None) -> Steps[tuple[BodyDecision, Template | None]]:
    """The decision on a body by its skeleton, and the new body's: None where there is none, or none to remember."""
    unread, plain, arrays = skeleton.unread, skeleton.plain, skeleton.arrays
    held = unread.decoded(plain)
    read = yield from deciding_body(unread.admission, unread.asked, skeleton.text, facts, held)
    if read.body is None:
        return read, None
    if arrays and len(plain) > MUCH:
        yield 2 * len(plain) + held
    try:
        template = template_of(read.body, len(arrays))
        body = template.filled(plain, arrays)
        return BodyDecision(read.decision, read.facts, body, read.reducer, read.confined), template
    except ValueError:  # a number in it is like a mark
        return (yield from deciding_body(unread.admission, unread.asked, plain, facts, held)), None
