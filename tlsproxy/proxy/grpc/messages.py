"""What looks at a call's messages: a reading that decides, a reading that makes the message anew, a reduction.

A reading goes on while the frames go upstream, but the frame that would complete the message is withheld until the
decision: no server acts on a part of a unary message. Where a message is made anew, or an answer is reduced, the two
ends of the stream do not see the same bytes: what they send is taken whole, and what is sent to them is sent as there
is room in windows that are kept here.
"""

from __future__ import annotations

from functools import partial
from typing import Final

from tlsproxy.authz.access import Decision
from tlsproxy.errors import BadRequest, BodyTooLarge, NoMemory, RequestError, TooLargeToRead, UpstreamBroken
from tlsproxy.proxy.core.gateway import moved
from tlsproxy.proxy.core.memory_budget import MemoryShare
from tlsproxy.proxy.core.scheduler import Work, in_slices
from tlsproxy.proxy.decision.call_plan import Asked, CallPlan, CallPlans
from tlsproxy.proxy.grpc.call import Call
from tlsproxy.proxy.grpc.outgoing import Outgoing
from tlsproxy.proxy.upstream.facts import CollectionFacts
from tlsproxy.qdrant.grpc_decision import collection_finder, confine_message
from tlsproxy.qdrant.rest_listings import Reducer
from tlsproxy.qdrant.scoring import Facts, FactsNeeded
from tlsproxy.snapshot.generation import Generation
from tlsproxy.wire import http2
from tlsproxy.wire.content_coding import decoding
from tlsproxy.wire.cooperative import Steps
from tlsproxy.wire.field_block import Fields, write
from tlsproxy.wire.grpc import Message, message, trailers, trailers_only
from tlsproxy.wire.http2 import END_STREAM, HEADER
from tlsproxy.wire.tracing import id_field

MAX_ANSWER: Final = 32 << 20
"""Bytes of an answer that is reduced."""
MAX_FIRST_WINDOW: Final = http2.MAX_WINDOW - MAX_ANSWER
"""The most that a new stream's window may be on the upstream's side: a listing's is made larger by the above."""
MAX_PIECES: Final = 8192
"""DATA frames of a listing: four times what it needs. A client could leave its sender room for a byte at a time."""
MAX_UNCOUNTED: Final = 65_536
"""Bytes of a listing that may come while it waits for memory."""
FREE_NAMES: Final = 16_384
"""Bytes of names in a message that are not counted."""
PIECE: Final = 4096
"""Bytes of what was compressed that are read in one step: thousands of fields at most."""
_NO_ROOM: Final = "Too much is being read at once for the upstream's answer"
_WHY_REDUCED: Final = "The upstream refused; its reason may name what you may not know"


class _Judging:
    """Finds the collections that a message names, and decides once it is whole; refuses as soon as that is certain."""

    def __init__(self, call: Call, asked: Asked) -> None:
        self._call = call
        self._message = Message()
        self._reading = collection_finder(asked.operation)
        self._kept: _Kept | None = None
        self._passed = False

    @property
    def _asked(self) -> Asked:
        """By whatever plan the call goes on now."""
        asked = self._call.record.plan.asked
        if asked is None:
            raise RuntimeError("a call that is read without rights that it depends on")
        return asked

    def judged(self, calls: CallPlans, asked: Asked) -> CallPlan | None:
        """By its collection alone; None until that has come."""
        collection = self._reading.collection
        return calls.judged(asked, collection, ()) if collection else None

    def refusal(self) -> Decision | None:
        """What its collection alone refuses is not taken, or sent half way upstream, in vain."""
        plan = self.judged(self._call.relay.gateway.calls, self._asked)
        self._passed = plan is not None and plan.decision.allowed
        if plan is None or self._passed:
            return None
        self._call.record.plan = plan
        return plan.decision

    def _may_pass(self) -> bool:
        if not self._passed and self.refusal() is not None:
            self._call.relay.deny(self._call)
            return False
        if self._passed:
            self._call.relay.reach.ask(self._call)
        return True

    def _read(self, content: bytes) -> Steps[None]:
        """What was compressed is read like what comes in frames."""
        for begin in range(0, len(content), PIECE):
            self._reading.feed(content[begin : begin + PIECE])
            yield None

    def _decide(self) -> bool:
        self._call.record.plan = plan = self._call.relay.gateway.calls.judged(self._asked, *self._reading.named())
        if plan.decision.allowed:
            self._call.relay.reach.ask(self._call)
        else:
            self._call.relay.deny(self._call)
        return plan.decision.allowed

    def _feed(self, content: bytes) -> None:
        """Follows the message, and counts what it names. Raises BadRequest, NoMemory."""
        self._reading.feed(content)
        if self._reading.memory > FREE_NAMES:
            self._keep().count(self._reading.memory)

    def _keep(self) -> _Kept:
        kept = self._kept = self._kept or _Kept(self._call, self._asked)
        return kept

    def over(self) -> None:
        if self._kept is not None:
            self._kept.release()


class Reading(_Judging):
    """The message goes upstream as it comes, but for the frame that completes it."""

    rebuilds = False

    def __init__(self, call: Call, asked: Asked) -> None:
        super().__init__(call, asked)
        self._allowed: bool | None = None
        self._withheld = False

    @property
    def passed(self) -> bool:
        return bool(self._allowed) and not self._withheld

    def data(self, data: bytes, start: int, end: int, flags: int) -> bytes | None:
        if self._withheld:  # it comes again
            self._withheld = False
            return None
        content = self._message.feed(data[start + HEADER : end])
        whole = self._message.whole
        if flags & END_STREAM and not whole:
            self._message.end()
        passes = self._kept_passes(content) if self._message.compressed else self._plain_passes(content)
        if passes:
            return None
        if passes is None:
            self._withheld = True
            self._call.hold(data[start:end])
        else:
            self._call.relay.give_back(end - start - HEADER)
        return b""

    def _plain_passes(self, content: bytes) -> bool:
        if content:
            self._feed(content)
        if self._message.whole and self._allowed is None:
            self._allowed = self._decide()
        return self._may_pass() if self._allowed is None else self._allowed

    def _kept_passes(self, content: bytes) -> bool | None:
        """None: not yet."""
        if self._keep().add(content, self._go_on):
            self._read_kept()
            return True if not self._message.whole else self._allowed
        return None

    def _go_on(self) -> None:
        """There is memory for what has come."""
        self._read_kept()
        if not self._message.whole:
            self._pass_withheld()

    def _read_kept(self) -> None:
        if self._message.whole and self._allowed is None:
            kept = self._keep()
            in_slices(kept.holding, self._deciding(kept), self._decided)

    def _deciding(self, kept: _Kept) -> Steps[bool]:
        plain = yield from kept.plain()
        yield from self._read(plain)
        kept.release()
        return self._decide()

    def _decided(self, allowed: bool) -> None:  # noqa: FBT001 - what the steps come to
        self._allowed = allowed
        if allowed and self._withheld:
            self._pass_withheld()

    def _pass_withheld(self) -> None:
        self._call.waiting = False
        self._call.proceed()

    def granted(self, size: int) -> None:
        raise RuntimeError(f"{size} bytes of room for a stream whose window is its ends'")

    def proceed(self) -> None:
        """It waits for nothing."""


class Rebuilding(_Judging):
    """Takes the message whole, decides, and sends one that is confined to the caller's points in its place."""

    rebuilds = True

    def __init__(self, call: Call, asked: Asked, facts: CollectionFacts) -> None:
        super().__init__(call, asked)
        self._facts = facts
        self._out = Outgoing(call, call.relay.to_upstream, call.relay.up.append)
        self._ended = False
        self._ungranted = 0  # bytes that have come, whose room the client has not back yet

    @property
    def passed(self) -> bool:
        return self._out.done

    def data(self, data: bytes, start: int, end: int, flags: int) -> bytes | None:
        relay, size = self._call.relay, end - start - HEADER
        content = self._message.feed(data[start + HEADER : end])
        if not self._message.compressed:
            self._feed(content)
        if flags & END_STREAM:
            self._message.end()
            self._ended = True
        self._ungranted += size
        if self._ended or self._may_pass():
            if self._keep().add(content, self._go_on):
                self._take()
            else:
                self._call.waiting = True
        relay.give_back(size)
        return b""

    def _take(self) -> None:
        """There is memory for what has come."""
        if self._ended:
            kept = self._keep()
            in_slices(kept.holding, self._deciding(kept), self._decided)
        elif self._ungranted:
            self._call.relay.down.append(http2.window_update(self._call.stream, self._ungranted))
            self._ungranted = 0

    def _go_on(self) -> None:
        self._call.waiting = False
        self._take()
        self._call.proceed()

    def _deciding(self, kept: _Kept) -> Steps[bytes | None]:
        """The whole message, plain; None where it is refused."""
        if self._message.compressed:
            content = yield from kept.plain()
            yield from self._read(content)
        else:
            content = yield from kept.whole()
        kept.has_become(content)
        return content if self._decide() else None

    def _decided(self, content: bytes | None) -> None:
        if content is not None:
            collection = self._reading.collection or ""
            self._confine(collection, content, self._facts.known(collection))

    def _confine(self, collection: str, content: bytes, facts: Facts | None) -> None:
        steps = self._confining(content, facts)
        in_slices(self._keep().holding, steps, partial(self._send, collection, content))

    def _confining(self, content: bytes, facts: Facts | None) -> Steps[bytes | None]:
        """None where more must be known."""
        heard = self._call.record.plan.heard
        conditions = heard.conditions if heard is not None else self._asked.conditions
        try:
            return message((yield from confine_message(self._asked.operation, content, conditions, facts)))
        except FactsNeeded:
            return None

    def _send(self, collection: str, content: bytes, made: bytes | None) -> None:
        if made is None:
            self._keep().has_become(content)
            told = partial(self._told, collection, content, self._call.relay.gateway.generation)
            self._facts.ask(collection, self._call.account, told)
        else:
            self._keep().has_become(made)
            self._out.put(made)
            self._out.finish(b"")

    def _told(self, collection: str, content: bytes, asked_of: Generation, facts: Facts | RequestError) -> None:
        relay = self._call.relay
        relay.present()
        if self._call.recorded:
            return
        try:
            if moved(asked_of, relay.gateway.generation, "rest"):
                self._confine(collection, content, self._facts.known(collection))
            elif isinstance(facts, RequestError):
                raise facts
            else:
                self._confine(collection, content, facts)
        except RequestError as error:
            relay.refuse(self._call, error)
        relay.settle()

    def granted(self, size: int) -> None:
        self._out.granted(size)

    def proceed(self) -> None:
        self._out.proceed()


class Reduction:
    """Takes the answer whole and sends what the caller may know of it."""

    rebuilds = True

    def __init__(self, call: Call, listing: Reducer) -> None:
        self._call = call
        self.listing = listing
        self._message = Message()
        self._content = bytearray()
        self._head = b""
        self._pieces = 0
        self.whole = False
        self._trailers = b""
        self._counted = 0
        self._holding = MemoryShare(call.relay.gateway, call.account, call, lambda _: NoMemory(_NO_ROOM))
        self._out = Outgoing(call, call.relay.to_client, self._write)

    def _write(self, frame: bytes) -> None:
        relay = self._call.relay
        relay.down.append(frame)
        relay.budgets.told_data()

    @property
    def left(self) -> int:
        return self._out.left

    @property
    def room(self) -> bytes:
        """What grants the upstream all that an answer may have, whatever the client's own windows are."""
        return http2.window_update(self._call.stream, MAX_ANSWER)

    def fields(self, raw: bytes, fields: Fields, *, end: bool) -> bytes | None:
        call = self._call
        if not end:
            if self._head:
                raise UpstreamBroken("The upstream began its answer twice")
            self._head = raw
            return b""
        self.whole = True
        status = next((value for name, value in fields if name == b"grpc-status"), b"")
        if status != b"0":
            number = int(status) if status.isdigit() else UpstreamBroken.grpc.value
            last = self._without_text(number) if self.listing.hides_errors else raw
            call.relay.down.append(self._head + last)
            call.relay.answered(call, number)
            return b""
        self._trailers = raw
        if not self._holding.waits:
            self._reduce()
        return b""

    def _without_text(self, number: int) -> bytes:
        told = trailers(number, _WHY_REDUCED)
        if not self._head:
            told = (*trailers_only(number, _WHY_REDUCED), id_field(self._call.record.id))
        return http2.headers(self._call.stream, write(told), END_STREAM)

    def _count(self) -> bool:
        """Whether there is memory for what has come; if not, it waits for some."""
        self._counted = len(self._content)
        return self._holding.keep(self._counted, self._go_on)

    def _go_on(self) -> None:
        if self._count() and self.whole:
            self._reduce()

    def _reduce(self) -> None:
        in_slices(self._holding, self._reducing(self.listing), partial(self._show, self.listing))

    def _reducing(self, listing: Reducer) -> Steps[bytes]:
        try:
            self._message.end()
            yield 3 * len(self._content)  # a copy of it, and what is made of it
            return (yield from listing.reducing(bytes(self._content)))
        except (ValueError, BadRequest):
            raise UpstreamBroken("The upstream's answer cannot be reduced to what you may know") from None

    def _show(self, listing: Reducer, shown: bytes) -> None:
        if listing is not self.listing:  # meanwhile something else may be shown
            self._reduce()
            return
        call = self._call
        self._content.clear()
        self._holding.settle(len(shown))
        call.answered = True
        call.relay.down.append(self._head)
        call.record.bytes_out = len(shown)
        self._out.put(message(shown))
        self._out.finish(self._trailers)

    def data(self, data: bytes, start: int, end: int, flags: int) -> bytes | None:
        self._call.relay.give_back_upstream(end - start - HEADER)
        self._pieces += 1
        try:
            self._content += self._message.feed(http2.unpadded(flags, data[start + HEADER : end]))
        except BadRequest as error:
            raise UpstreamBroken(f"The upstream's answer cannot be read: {error}") from None
        if not self._holding.waits:
            self._count()
        elif len(self._content) > self._counted + MAX_UNCOUNTED:
            raise NoMemory(_NO_ROOM)
        too_much = len(self._content) > MAX_ANSWER or self._pieces > MAX_PIECES
        if too_much or self._message.compressed or flags & END_STREAM:
            raise UpstreamBroken("The upstream's answer cannot be reduced to what you may know")
        return b""

    def granted(self, size: int) -> None:
        self._out.granted(size)

    def proceed(self) -> None:
        self._out.proceed()

    def over(self) -> None:
        self._holding.release()


class _Kept:
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

    def has_become(self, made: bytes) -> None:
        """Which alone is kept from now on; there was memory for it."""
        self.holding.settle(len(made) + self._names)

    def release(self) -> None:
        self._content.clear()
        self.holding.release()
