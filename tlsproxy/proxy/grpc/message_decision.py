"""Decision of a call by its message: the names that it has, and its bytes where they are read as a whole."""

from __future__ import annotations

from typing import Final

from tlsproxy.authz.access import NO_NAMES, Decision
from tlsproxy.errors import BadRequest, BodyTooLarge, TooLargeToRead
from tlsproxy.proxy.core.memory_budget import MemoryShare
from tlsproxy.proxy.core.scheduler import Work
from tlsproxy.proxy.decision.call_plan import Asked, CallPlan, CallPlans
from tlsproxy.proxy.grpc.call import Call
from tlsproxy.qdrant.grpc_decision import collection_finder
from tlsproxy.wire.content_coding import decoding
from tlsproxy.wire.cooperative import Steps
from tlsproxy.wire.grpc import Message

FREE_NAMES: Final = 16_384
"""Bytes of names in a message that are not counted."""
PIECE: Final = 4096
"""Bytes of what was compressed that are read in one step: thousands of fields at most."""


class MessageDecision:
    """Finds the collections that a message names, and decides once it is whole; refuses as soon as that is certain.

    ``framing`` is that of the message, ``names`` are those found by now.
    """

    def __init__(self, call: Call, asked: Asked) -> None:
        self._call = call
        self.framing = Message()
        self.names = collection_finder(asked.operation)
        self._buffer: MessageBuffer | None = None
        self._passed = False

    @property
    def asked(self) -> Asked:
        """By whatever plan the call goes on now."""
        asked = self._call.record.plan.asked
        if asked is None:
            raise RuntimeError("a call that is read without rights that it depends on")
        return asked

    def judged(self, calls: CallPlans, asked: Asked) -> CallPlan | None:
        """By its collection alone; None until that has come."""
        collection = self.names.collection
        return calls.judged(asked, collection, NO_NAMES) if collection else None

    def refusal(self) -> Decision | None:
        """Refusal by its collection alone: no more of it is taken, or sent half way upstream, in vain."""
        plan = self.judged(self._call.relay.gateway.calls, self.asked)
        self._passed = plan is not None and plan.decision.allowed
        if plan is None or self._passed:
            return None
        self._call.record.plan = plan
        return plan.decision

    def may_pass(self) -> bool:
        if not self._passed and self.refusal() is not None:
            self._call.deny()
            return False
        if self._passed:
            self._call.relay.dialler.ask(self._call)
        return True

    def read(self, content: bytes) -> Steps[None]:
        """Reads a decompressed message like one that comes in frames."""
        for begin in range(0, len(content), PIECE):
            self.names.feed(content[begin : begin + PIECE])
            yield None

    def decide(self) -> bool:
        collection, names = self.names.named()
        self._call.record.plan = plan = self._call.relay.gateway.calls.judged(self.asked, collection, names)
        if plan.decision.allowed:
            self._call.relay.dialler.ask(self._call)
        else:
            self._call.deny()
        return plan.decision.allowed

    def feed(self, content: bytes) -> None:
        """Follows the message, and counts what it names. Raises BadRequest, NoMemory."""
        self.names.feed(content)
        if self.names.memory > FREE_NAMES:
            self.buffer().count(self.names.memory)

    def buffer(self) -> MessageBuffer:
        """The message's bytes, made with the first that are kept."""
        buffer = self._buffer = self._buffer or MessageBuffer(self._call, self.asked)
        return buffer

    def has_become(self, made: bytes) -> None:
        """As the buffer's. A message without one is not counted."""
        if self._buffer is not None:
            self._buffer.has_become(made)

    def release(self) -> None:
        if self._buffer is not None:
            self._buffer.release()


class MessageBuffer:
    """The bytes of a message that are read as a whole, under the limit of one and the budget of all.

    ``holding`` is the worker of what is done with them.
    """

    def __init__(self, call: Call, asked: Asked) -> None:
        self.holding = MemoryShare(call.relay.gateway, call.account, call, TooLargeToRead)
        self._limit = call.relay.limits.max_message_size
        self._coding = asked.head.value(b"grpc-encoding")
        self._content = bytearray()
        self._names = 0

    def count(self, names: int) -> None:
        """So many bytes are used beside the content. Raises NoMemory."""
        self._names = names
        self.holding.need(len(self._content) + names)

    def add(self, data: bytes, go_on: Work) -> bool:
        """Whether there is memory for it; if not, ``go_on`` is called once there is. Raises BodyTooLarge, NoMemory."""
        self._content += data
        if len(self._content) > self._limit:
            raise BodyTooLarge(f"The message is larger than allowed here (limit: {self._limit} bytes)")
        return self.holding.keep(len(self._content) + self._names, go_on)

    def whole(self) -> Steps[bytes]:
        """Returns the content that was kept, and keeps it no longer."""
        yield len(self._content)
        content = bytes(self._content)
        self._content.clear()
        return content

    def plain(self) -> Steps[bytes]:
        """The same without its compression. Raises BadRequest, BodyTooLarge, CodingRefused."""
        if self._coding in {None, "identity"}:
            raise BadRequest("A compressed message without a grpc-encoding that says how")
        content = yield from self.whole()
        plain = yield from decoding(content, self._coding, self._limit)
        yield 2 * len(plain)
        return bytes(plain)

    def has_become(self, made: bytes, beside: int = 0) -> None:
        """Which alone is kept from now on, with so many bytes beside it; there was memory for it."""
        self.holding.settle(len(made) + beside + self._names)

    def release(self) -> None:
        self._content.clear()
        self.holding.release()
