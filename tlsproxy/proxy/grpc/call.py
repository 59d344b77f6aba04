"""One gRPC call, which is one HTTP/2 stream, as far as the gateway has to do with it.

Most calls are relayed frame by frame and not looked at. Where the message has a say there is a ``reading`` of it, where
the caller may see a part of the answer a ``reduction`` (:mod:`tlsproxy.proxy.grpc.messages`). While a call waits, for
room in the audit log or for what its token depends on, the client's DATA waits with it: the fields alone start nothing.
"""

from __future__ import annotations

from functools import partial
from typing import Final, Protocol

from tlsproxy.authz.access import Decision
from tlsproxy.errors import AuditUnavailable, RequestError
from tlsproxy.proxy.core.gateway import moved
from tlsproxy.proxy.core.record import Record
from tlsproxy.proxy.core.scheduler import Work
from tlsproxy.proxy.decision.attribution import account_of
from tlsproxy.proxy.decision.call_plan import Asked, CallPlan, CallPlans, grpc_status
from tlsproxy.proxy.grpc.relay import NO_METHOD, Relay
from tlsproxy.proxy.grpc.states import STREAM_CLOSED, STREAM_OPEN
from tlsproxy.proxy.limits.fair_shares import Account
from tlsproxy.proxy.upstream.value_exists import Points, Verdict
from tlsproxy.qdrant.rest_decision import BEYOND_POLICY, NOT_CONFINED
from tlsproxy.qdrant.rest_listings import Reducer
from tlsproxy.snapshot.generation import Generation
from tlsproxy.wire import http2
from tlsproxy.wire.field_block import Fields, write
from tlsproxy.wire.grpc import PREFIX, trailers
from tlsproxy.wire.http2 import END_STREAM, FLAGS, HEADER, MAX_WINDOW, Code
from tlsproxy.wire.throughput import Throughput
from tlsproxy.wire.tracing import id_block

FRAME_MEMORY: Final = 48
"""Bytes that a frame takes beside its own: one that holds a byte is no small thing."""


class StreamPart(Protocol):
    """Handler of one direction of a call. If it ``rebuilds`` it, the stream's window in this direction is its own.

    ``data``: a DATA frame, ``data[start:end]`` with its header. It returns the frame that goes in its place, None for
    itself, or raises RequestError. ``granted``: the receiver grants the stream more room. ``proceed``: there may be
    room.
    """

    rebuilds: bool

    def data(self, data: bytes, start: int, end: int, flags: int) -> bytes | None: ...
    def granted(self, size: int) -> None: ...
    def proceed(self) -> None: ...


class CallDecision(Protocol):
    """``judged``: the plan among ``calls`` that its message selects by now, None before it does; ``refusal``: the
    decision of that plan, where it refuses.
    """

    def judged(self, calls: CallPlans, asked: Asked) -> CallPlan | None: ...
    def refusal(self) -> Decision | None: ...
    def release(self) -> None: ...


class RequestPart(StreamPart, Protocol):
    """``passed``: all of the message has gone on."""

    @property
    def decision(self) -> CallDecision: ...
    @property
    def passed(self) -> bool: ...


class ResponsePart(StreamPart, Protocol):
    """``whole``: the upstream's response is complete. ``listing`` reduces it, after ``reshaping`` has made it that of
    the method that was called, where another was asked. ``left``: bytes that the client has no room for. ``room``: the
    frame that follows the call's fields upstream.
    """

    whole: bool
    listing: Reducer
    reshaping: Reducer | None

    @property
    def left(self) -> int: ...
    @property
    def room(self) -> bytes: ...

    def fields(self, raw: bytes, fields: Fields, *, end: bool) -> bytes | None: ...
    def release(self) -> None: ...


class Call:
    """``plain``: the client's DATA needs no look, and none of it is held. ``last_activity``: when the upstream last
    sent a frame of it, or its wait for the upstream began (monotonic clock).

    ``state`` is that of its stream. ``opening``: the frames that tell the upstream of it, once there is something to
    tell; ``answered``: the client has seen the beginning of a response; ``recorded``: its audit line is written.
    ``id_block`` is the gateway's id of it, as both sides are told it. ``upstream_granted`` and ``client_granted``: the
    room on its stream that each has granted beyond a stream's first window. ``client_lead``: how much further the
    client may be on it than a former upstream, whose SETTINGS the client is not told.
    """

    __slots__ = (
        "_held",
        "_largest",
        "answered",
        "client_granted",
        "client_lead",
        "deadline",
        "id_block",
        "last_activity",
        "meters",
        "opening",
        "plain",
        "reading",
        "record",
        "recorded",
        "reduction",
        "relay",
        "state",
        "stream",
        "upstream_granted",
        "waiting",
    )

    def __init__(self, relay: Relay[Call], stream: int, record: Record[CallPlan], now: float) -> None:
        self.relay = relay
        self.stream = stream
        self.record = record
        self.last_activity = now
        self.id_block = id_block(record.id)
        self.reading: RequestPart | None = None
        self.reduction: ResponsePart | None = None
        self.state = STREAM_OPEN
        self.answered = self.recorded = False
        self.waiting = self.plain = False
        self.opening = self.deadline = b""
        self.upstream_granted = self.client_granted = self.client_lead = 0
        self.meters: tuple[Throughput, Throughput] | None = None
        self._largest = record.plan.largest
        self._held: list[bytes] = []

    # Shares

    @property
    def account(self) -> Account:
        return account_of(self.relay.entry.account, self.record.plan.audit.caller)

    @property
    def waits_for_client(self) -> bool:
        """For more of its message, or until more of the answer is taken."""
        return (
            self.relay.stream.stalled
            or not (self.state.client_done or self.waiting)
            or (self.reduction is not None and self.reduction.left > 0)
        )

    def give_way(self, error: RequestError) -> None:
        self.relay.gateway.loop.call_soon(self.relay.stream.tell, self.fail, error)

    # Admission

    def admit(self, points: Points) -> None:
        """Waits where it must. Raises AuditUnavailable, Overloaded."""
        gateway, record = self.relay.gateway, self.record
        self.waiting = False
        if not record.admit(gateway):
            gateway.audit_gate.wait(record.started, self.relay.stream, partial(self._readmit, points))
            self.waiting = True
        elif not record.plan.block:
            self.deny()
        else:
            exists = record.plan.exists
            if exists is not None:
                self.waiting = True
                told = partial(self._value_known, points, gateway.generation)
                points.ask(exists, record.plan.affinity, self.account, told)
        self.plain = self._is_plain

    def _readmit(self, points: Points, late: AuditUnavailable | None) -> None:
        if late is not None:
            self.fail(late)
            return
        if self.recorded or not self.resumes():
            return
        try:
            self.admit(points)
            self.begin()
        except RequestError as error:
            self.refuse(error)
        else:
            if not self.recorded:
                self.proceed()
        self.relay.session.settle()

    def _value_known(self, points: Points, asked_of: Generation, verdict: Verdict) -> None:
        """Whether there is the point that the token requires."""
        if self.recorded or not self.resumes():
            return
        if moved(asked_of, self.relay.gateway.generation, "rest"):
            self._readmit(points, None)
            return
        self.waiting = False
        if isinstance(verdict, Decision):
            self.record.plan = self.record.plan.refused(verdict)
            self.deny()
        elif verdict is not None:
            self.refuse(verdict)
        else:
            self._go_on(self._begun)
            return
        self.relay.session.settle()

    def _begun(self) -> None:
        self.begin()
        self.proceed()

    def begin(self) -> None:
        """May go up, as far as that is known before its message. Raises Overloaded, UpstreamUnreachable."""
        if self.waiting:
            self.relay.dialler.stir()
        elif self.record.plan.block and (self.relay.connected or not self.record.plan.unread):
            self.relay.dialler.ask(self)

    # The present

    def resumes(self) -> bool:
        """Whether it is still open, by what is published now."""
        relay = self.relay
        if relay.calls.get(self.stream) is self:
            relay.session.present()
        return self.relay.calls.get(self.stream) is self

    @property
    def undecided(self) -> bool:
        """Whether it waits for its decision, or for what that depends on."""
        return self.record.plan.unread or self.waiting

    @property
    def whole(self) -> bool:
        """Whether the upstream has all of its message."""
        passed = self.reading is None or self.reading.passed
        return self.state.client_done and not self.holds_data and passed and self.relay.all_written

    def refusal(self, plan: CallPlan, calls: CallPlans) -> Decision | None:
        """The refusal that it would meet if it went on by this plan of ``calls``. Changes nothing."""
        if (refusal := self._not_rewritten(plan)) is not None:
            return refusal
        if not plan.unread or plan.asked is None or self.reading is None:
            return None
        judged = self.reading.decision.judged(calls, plan.asked)
        return None if judged is None or judged.decision.allowed else judged.decision

    def _not_rewritten(self, plan: CallPlan) -> Decision | None:
        """Refusal of a message that was to be written anew, and was not from the beginning."""
        asked, reading = plan.asked, self.reading
        if not plan.unread or asked is None:
            return None
        if asked.confinements and not asked.rebuilt:
            return NOT_CONFINED
        if asked.queries and not (reading and reading.rebuilds):
            return BEYOND_POLICY
        return None

    def renew(self, plan: CallPlan) -> Decision | None:
        """It goes on by this plan; or the refusal that it meets."""
        if (refusal := self._not_rewritten(plan)) is not None:
            return refusal
        asked = plan.asked
        self.record.plan = plan
        if self.reduction is not None and asked is not None and asked.listing is not None:
            self.reduction.listing = asked.listing
        return self.reading.decision.refusal() if plan.unread and self.reading is not None else None

    # The client's DATA

    @property
    def _is_plain(self) -> bool:
        looked_at = self.reading is not None or self._largest or self.record.plan.length is not None
        return not (looked_at or self.waiting or self._held)

    def breaks_content_length(self, flags: int) -> bool:
        """Whether its DATA, with a frame of these flags, is not what its content-length says (RFC 9113 §8.1.1)."""
        come, said = self.record.bytes_in, self.record.plan.length
        return said is not None and (come > said or (come < said and flags & END_STREAM != 0))

    @property
    def holds_data(self) -> bool:
        """Whether what comes of it waits with it."""
        return self.waiting or bool(self._held)

    def request(self, data: bytes, start: int, end: int, flags: int) -> bytes | None:
        """The frame that goes upstream in a DATA frame's place, None for itself. Raises RequestError."""
        if self._largest and self.record.bytes_in > self._largest + PREFIX:
            raise self.record.plan.too_large()
        if self.holds_data:
            self._held.append(data[start:end])
            self.relay.pending_size += end - start + FRAME_MEMORY
            return b""
        return None if self.reading is None else self.reading.data(data, start, end, flags)

    def hold(self, frame: bytes) -> None:
        """It waits from this DATA frame on."""
        self.waiting = True
        self._held.insert(0, frame)
        self.relay.pending_size += len(frame) + FRAME_MEMORY

    def proceed(self) -> None:
        """There may be room, or an answer to what was waited for."""
        if self._held and not self.waiting:
            passed = self._pass_held()
            self.relay.session.unblock()
            if not passed:
                return
        self.plain = self._is_plain
        self.relay.wanting.pop(self, None)
        for part in (self.reading, self.reduction):
            if part is not None and not self.recorded:
                part.proceed()

    def _pass_held(self) -> bool:
        """Passes waiting DATA on. Whether that was all of it."""
        relay, held, window = self.relay, self._held, self.relay.to_upstream
        while held and not self.waiting:
            frame = held[0]
            size = len(frame) - HEADER
            if window.room < size or (relay.measured and self.room_here < size):
                relay.wanting[self] = None
                return False
            del held[0]
            relay.pending_size -= len(frame) + FRAME_MEMORY
            try:
                instead = None if self.reading is None else self.reading.data(frame, 0, len(frame), frame[FLAGS])
            except RequestError as error:
                relay.give_back(size)
                self.refuse(error)
                return False
            if instead is None:
                relay.passed(size)
            relay.up.append(frame if instead is None else instead)
        return not held

    @property
    def room_here(self) -> int:
        """Bytes of DATA that the upstream has left room for on its stream, beyond those that went there."""
        if self.reading is not None and self.reading.rebuilds:  # another is sent in its place
            return MAX_WINDOW
        return self.relay.to_upstream.initial.least + self.upstream_granted - self.record.bytes_in + self.pending_size

    @property
    def pending_size(self) -> int:
        """Bytes of DATA that wait with it."""
        return sum(map(len, self._held)) - HEADER * len(self._held)

    @property
    def room_given(self) -> int:
        """The window of its stream towards the client, beyond a stream's first."""
        return self.client_granted - self.record.bytes_out

    # Work in slices

    @property
    def crowded(self) -> bool:
        """As :class:`tlsproxy.proxy.core.scheduler.SlicedJob` has it."""
        return self.relay.gateway.scheduler.crowded(self.relay.entry)

    def later(self, go_on: Work) -> None:
        """As :class:`tlsproxy.proxy.core.scheduler.SlicedJob` has it."""
        relay = self.relay
        relay.gateway.scheduler.add(relay.entry, relay.stream, partial(self._go_on, go_on))

    def _go_on(self, go_on: Work) -> None:
        if not self.resumes():
            return
        try:
            go_on()
        except RequestError as error:
            self.refuse(error)
        self.relay.session.settle()

    # Ends

    def refuse(self, error: RequestError) -> None:
        """Ends it with an error that came up after its decision, or instead of one."""
        undecided = self.reading is not None and not self.reading.passed
        reason = self.record.failed(error, undecided=undecided)
        self._end(error.grpc.value, error.status, str(error), reason)

    def fail(self, error: RequestError) -> None:
        """Ends it, if it is open, with an error of another callback, which is not raised anew.

        A frame that raises an error out of one of its variables and the error refer to each other: the message would
        stay in memory until a garbage collection.
        """
        if self.recorded or not self.resumes():
            return
        self.refuse(error)
        self.relay.session.settle()

    def deny(self) -> None:
        """Ends it with the refusal of its present plan."""
        decision = self.record.plan.decision
        self._end(grpc_status(decision), decision.status, decision.text or NO_METHOD, "", decision.retry_after)

    def _end(self, status: int, http: int, text: str, reason: str, retry_after: int = 0) -> None:
        """Tells both sides: trailers to the client, a reset to the upstream. ``http`` is for what is no gRPC call."""
        stream, down = self.stream, self.relay.down
        self.record.grpc_status = status
        if self.opening and not self.state.upstream_done:
            self._cancel()
        if not self.state.upstream_done:
            if self.answered:
                down.append(http2.headers(stream, write(trailers(status, text)), END_STREAM))
            else:
                self.relay.respond(self.record, stream, http, text, retry_after)
        if not self.state.client_done:
            self.relay.stop(self.record, stream, Code.NO_ERROR)
        self.forget(reason)

    def reset(self, code: Code, reason: str) -> None:
        """Ends it without a status, on both sides."""
        if self.opening and self.state is not STREAM_CLOSED:
            self._cancel()
        self.relay.down.append(http2.reset(self.stream, code))
        self.forget(reason)

    def _cancel(self) -> None:
        if not self.taken_back():
            self.relay.up.append(http2.reset(self.stream, Code.CANCEL))

    def taken_back(self) -> bool:
        """Whether the upstream never hears of it: its fields are not written yet, and nothing came after them.

        A server counts the streams that end as soon as they began, and ends a connection that has many.
        """
        relay = self.relay
        if not relay.reached:
            relay.retract(self.stream, rebuilt=self.reading is not None and self.reading.rebuilds)
            return True
        if relay.up and relay.up[-1] is self.opening:
            del relay.up[-1]
            return True
        return False

    def response_ended(self, status: int | None) -> None:
        """The upstream's response is whole. The client may still be sending."""
        self.state = self.state.upstream_ends
        if status is not None:
            self.relay.answered = True
        self.record.grpc_status = status
        if not self.recorded:
            self.recorded = True
            self.relay.finish(self.record, "")
        if self.state.client_done:
            self.forget("")

    def forget(self, reason: str) -> None:
        """It is over on its connection."""
        relay = self.relay
        if self.state is not STREAM_CLOSED:
            relay.ended(self.record, self.stream)
        if self.stream in relay.calls:
            del relay.calls[self.stream]
        if relay.wanting:
            relay.wanting.pop(self, None)
        if self.reduction is not None or not self.plain:  # else it has no parts, and holds nothing
            self._release()
        if not self.recorded:  # the first end counts
            self.recorded = True
            relay.finish(self.record, reason)
        if not relay.calls:
            relay.dialler.rest(answered=self.answered and self.record.grpc_status is not None)
            relay.session.rest()
        if relay.deferred:
            relay.drop_deferred(self.stream)

    def _release(self) -> None:
        """Gives back the room of its DATA, and lets go of its parts, which refer to it."""
        if self._held:
            size = sum(map(len, self._held))
            self.relay.pending_size -= size + FRAME_MEMORY * len(self._held)
            self.relay.give_back(size - HEADER * len(self._held))
            self._held.clear()
            self.relay.session.unblock()
        if self.reading is not None:
            self.reading.decision.release()
        if self.reduction is not None:
            self.reduction.release()
        self.reading = self.reduction = None
