"""Messages of a call that are looked at: followed until they decide, rebuilt for the upstream, reduced for the client.

A followed message goes upstream as it comes, but the frame that would complete it is withheld until the decision: no
server acts on a part of a unary message. A rebuilt message and a reduced answer are taken whole, and sent on as there
is room in windows that are kept here: the two ends of the stream do not see the same bytes. A small message in one
frame, as searches are, is rewritten at once, and the upstream's grants for it pass to the client.
"""

from __future__ import annotations

from functools import partial
from typing import Final

from tlsproxy.authz.access import Decision
from tlsproxy.authz.query_policy import QueryPolicy
from tlsproxy.errors import BadRequest, NoMemory, RequestError, UpstreamBroken, UpstreamChanged
from tlsproxy.proxy.core.gateway import moved
from tlsproxy.proxy.core.memory_budget import MemoryShare
from tlsproxy.proxy.core.scheduler import Work, in_slices
from tlsproxy.proxy.decision.call_plan import Asked
from tlsproxy.proxy.grpc.call import Call
from tlsproxy.proxy.grpc.message_decision import MessageBuffer, MessageDecision
from tlsproxy.proxy.grpc.outgoing import Outgoing
from tlsproxy.proxy.upstream.examples import Verdict
from tlsproxy.proxy.upstream.upstreams import Upstreams
from tlsproxy.qdrant.grpc_decision import confine_message, message_under_policy
from tlsproxy.qdrant.grpc_rewrite import SMALL
from tlsproxy.qdrant.grpc_tenancy import ConfinedMessage, reshaping_of
from tlsproxy.qdrant.rest_listings import Reducer
from tlsproxy.qdrant.scoring import Facts, FactsNeeded
from tlsproxy.snapshot.generation import Generation
from tlsproxy.wire import http2
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
_NO_ROOM: Final = "Too much is being read at once for the upstream's answer"
_WHY_REDUCED: Final = "The upstream refused; its reason may name what you may not know"


class FollowedMessage:
    """The message goes upstream as it comes, but for the frame that completes it."""

    rebuilds = False

    def __init__(self, call: Call, asked: Asked) -> None:
        self._call = call
        self.decision = MessageDecision(call, asked)
        self._allowed: bool | None = None
        self._withheld = False

    @property
    def passed(self) -> bool:
        return bool(self._allowed) and not self._withheld

    def data(self, data: bytes, start: int, end: int, flags: int) -> bytes | None:
        if self._withheld:  # it comes again
            self._withheld = False
            return None
        content = self.decision.framing.feed(data[start + HEADER : end])
        whole = self.decision.framing.whole
        if flags & END_STREAM and not whole:
            self.decision.framing.end()
        passes = self._buffered_passes(content) if self.decision.framing.compressed else self._plain_passes(content)
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
            self.decision.feed(content)
        if self.decision.framing.whole and self._allowed is None:
            self._allowed = self.decision.decide()
        return self.decision.may_pass() if self._allowed is None else self._allowed

    def _buffered_passes(self, content: bytes) -> bool | None:
        """None: not yet."""
        if self.decision.buffer().add(content, self._go_on):
            self._read_buffered()
            return True if not self.decision.framing.whole else self._allowed
        return None

    def _go_on(self) -> None:
        """There is memory for what has come."""
        self._read_buffered()
        if not self.decision.framing.whole:
            self._pass_withheld()

    def _read_buffered(self) -> None:
        if self.decision.framing.whole and self._allowed is None:
            buffer = self.decision.buffer()
            in_slices(buffer.holding, self._deciding(buffer), self._decided)

    def _deciding(self, buffer: MessageBuffer) -> Steps[bool]:
        plain = yield from buffer.plain()
        yield from self.decision.read(plain)
        buffer.release()
        return self.decision.decide()

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


class RebuiltMessage:
    """Takes the message whole, decides, and sends one in its place that is within the caller's query policy, and
    confined to the caller's points.
    """

    rebuilds = True

    def __init__(self, call: Call, asked: Asked, upstreams: Upstreams) -> None:
        self._call = call
        self.decision = MessageDecision(call, asked)
        self._upstreams = upstreams
        self._out = Outgoing(call, call.relay.to_upstream, call.relay.up.append)
        self._ended = False
        self._ungranted = 0  # bytes that have come, whose room the client has not back yet

    @property
    def passed(self) -> bool:
        return self._out.done

    def data(self, data: bytes, start: int, end: int, flags: int) -> bytes | None:
        relay, size = self._call.relay, end - start - HEADER
        content = self.decision.framing.feed(data[start + HEADER : end])
        if not self.decision.framing.compressed:
            self.decision.feed(content)
        if flags & END_STREAM:
            self.decision.framing.end()
            self._ended = True
        self._ungranted += size
        if self._ended and self._is_at_hand(content):
            self._decided(content if self.decision.decide() else None)
            if self.passed and relay.reached and not relay.former:
                size -= relay.to_upstream.replaced(size, self._out.sent)
        elif self._ended or self.decision.may_pass():
            if self.decision.buffer().add(content, self._go_on):
                self._take()
            else:
                self._call.waiting = True
        relay.give_back(size)
        return b""

    def _is_at_hand(self, content: bytes) -> bool:
        """Whether this is the whole message, plain and small, with room upstream: it needs no buffer and no share of
        the memory.
        """
        framing, size = self.decision.framing, len(content)
        return (
            size == framing.length
            and size <= SMALL
            and not (framing.compressed or self.decision.asked.rebuilt or self._call.crowded)
            and self._out.room > 2 * SMALL
        )

    def _take(self) -> None:
        """There is memory for what has come."""
        if self._ended:
            buffer = self.decision.buffer()
            in_slices(buffer.holding, self._deciding(buffer), self._decided)
        elif self._ungranted:
            self._call.relay.down.append(http2.window_update(self._call.stream, self._ungranted))
            self._ungranted = 0

    def _go_on(self) -> None:
        self._call.waiting = False
        self._take()
        self._call.proceed()

    def _deciding(self, buffer: MessageBuffer) -> Steps[bytes | None]:
        """The whole message, plain; None where it is refused."""
        if self.decision.framing.compressed:
            content = yield from buffer.plain()
            yield from self.decision.read(content)
        else:
            content = yield from buffer.whole()
        buffer.has_become(content)
        return content if self.decision.decide() else None

    def _decided(self, content: bytes | None) -> None:
        if content is None:
            return
        asked = self.decision.asked
        if asked.rebuilt:
            collection = self.decision.names.collection or ""
            self._confine(collection, content, self._known(collection))
        else:
            in_slices(self, message_under_policy(asked.operation, content, self._queries), self._send)

    @property
    def _queries(self) -> QueryPolicy:
        """The policy of the decision."""
        body_facts = self._call.record.plan.body_facts
        return body_facts.queries if body_facts is not None else self.decision.asked.queries

    def _confine(self, collection: str, content: bytes, facts: Facts | None) -> None:
        steps = self._confining(collection, content, facts)
        in_slices(self.decision.buffer().holding, steps, partial(self._confined, collection, content))

    # Work in slices

    @property
    def crowded(self) -> bool:
        """As :class:`tlsproxy.proxy.core.scheduler.SlicedJob` has it."""
        return self._call.crowded

    def later(self, go_on: Work) -> None:
        """As :class:`tlsproxy.proxy.core.scheduler.SlicedJob` has it."""
        self._call.later(go_on)

    def reserve(self, size: int, go_on: Work) -> bool:
        """As :class:`tlsproxy.proxy.core.scheduler.SlicedJob` has it."""
        return self.decision.buffer().holding.reserve(size, go_on)

    def _confining(self, collection: str, content: bytes, facts: Facts | None) -> Steps[ConfinedMessage | None]:
        """None where more must be known."""
        asked, body_facts = self.decision.asked, self._call.record.plan.body_facts
        confinements = body_facts.confinements if body_facts is not None else asked.confinements
        try:
            content = yield from message_under_policy(asked.operation, content, self._queries)
            return (yield from confine_message(asked.operation, collection, content, confinements, facts))
        except FactsNeeded:
            return None

    def _confined(self, collection: str, content: bytes, made: ConfinedMessage | None) -> None:
        if made is None:
            self._check_asked()
            self.decision.buffer().has_become(content)
            told = partial(self._facts_known, collection, content, self._call.relay.gateway.generation)
            self._upstreams.facts.ask(collection, self._call.account, told)
        else:
            self.decision.buffer().has_become(made.content, made.beside)
            if made.questions:
                self._ask(made)
            else:
                self._send(made.content)

    def _facts_known(self, collection: str, content: bytes, asked_of: Generation, facts: Facts | RequestError) -> None:
        if self._call.recorded or not self._call.resumes():
            return
        try:
            current = facts if self._is_of_its_upstream(asked_of) else self._known(collection)
            if isinstance(current, RequestError):
                self._call.fail(current)
                return
            self._confine(collection, content, current)
        except RequestError as error:
            self._call.refuse(error)
        self._call.relay.session.settle()

    def _known(self, collection: str) -> Facts | None:
        """Facts that are remembered of the upstream that the message goes to."""
        return None if self._call.relay.upstream_moved else self._upstreams.facts.known(collection)

    def _is_of_its_upstream(self, asked_of: Generation) -> bool:
        """Whether an answer to the gateway's question is of the upstream that the message goes to, and counts."""
        relay = self._call.relay
        side = relay.upstream
        if side is None or not relay.upstream_moved:
            return not moved(asked_of, relay.gateway.generation, "rest")
        return any(
            side.stream.address in api.addresses and side.stream.tls == api.tls
            for api in (node.api("grpc") for node in asked_of.nodes)
        )

    def _check_asked(self) -> None:
        """Checks that the upstream that is asked would get the message. Raises :class:`UpstreamChanged`."""
        if self._call.relay.upstream_moved:
            raise UpstreamChanged("The upstream is elsewhere now, and the former one cannot be asked about this query")

    def _ask(self, made: ConfinedMessage) -> None:
        """Asks whether the examples in it are the caller's."""
        self._check_asked()
        told = partial(self._examples_known, made, self._call.relay.gateway.generation)
        self._upstreams.examples.ask(made.questions, self._call.record.plan.affinity, self._call.account, told)

    def _examples_known(self, made: ConfinedMessage, asked_of: Generation, verdict: Verdict) -> None:
        if self._call.recorded or not self._call.resumes():
            return
        record, relay = self._call.record, self._call.relay
        try:
            if not self._is_of_its_upstream(asked_of):
                self._ask(made)
            elif isinstance(verdict, Decision):
                record.plan = record.plan.refused(verdict)
                self._call.deny()
            elif verdict is not None:
                self._call.refuse(verdict)
            else:
                self._send(made.content)
        except RequestError as error:
            self._call.refuse(error)
        relay.session.settle()

    def _send(self, content: bytes) -> None:
        self.decision.has_become(content)
        framed, asked = message(content), self.decision.asked
        if self._call.reduction is not None and asked.rebuilt:
            self._call.reduction.reshaping = reshaping_of(asked.operation, framed)
        self._out.put(framed)
        self._out.finish(b"")

    def granted(self, size: int) -> None:
        self._out.granted(size)

    def proceed(self) -> None:
        self._out.proceed()


class ReducedAnswer:
    """Takes the answer whole and sends what the caller may know of it, in the form of the method that was called."""

    rebuilds = True

    def __init__(self, call: Call, listing: Reducer) -> None:
        self._call = call
        self.listing = listing
        self.reshaping: Reducer | None = None
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
        relay.budgets.data_sent()

    @property
    def left(self) -> int:
        return self._out.left

    @property
    def room(self) -> bytes:
        """Frame that grants the upstream all that an answer may have, whatever the client's own windows are."""
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
            call.response_ended(number)
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
            reduced = bytes(self._content)
            if self.reshaping is not None:
                reduced = yield from self.reshaping.reducing(reduced)
            return (yield from listing.reducing(reduced))
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

    def release(self) -> None:
        self._holding.release()
