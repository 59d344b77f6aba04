"""One gRPC call, which is one HTTP/2 stream, as far as the gateway has to do with it.

Most calls are relayed frame by frame and not looked at. Where the message has a say there is a ``reading`` of it, where
the caller may see a part of the answer a ``reduction`` (:mod:`tlsproxy.proxy.grpc.messages`). While a call waits, for
room in the audit log or for what its token depends on, the client's DATA waits with it: the fields alone start nothing.
"""

from __future__ import annotations

from functools import partial
from typing import Final, NoReturn, Protocol

from tlsproxy.authz.access import Decision
from tlsproxy.errors import AuditUnavailable, RequestError, RequestTimeout
from tlsproxy.proxy.core.gateway import moved
from tlsproxy.proxy.core.record import Record
from tlsproxy.proxy.core.scheduler import Work
from tlsproxy.proxy.decision.attribution import account_of
from tlsproxy.proxy.decision.call_plan import Asked, CallPlan, CallPlans
from tlsproxy.proxy.grpc.call_timeouts import CallWaits
from tlsproxy.proxy.grpc.relay import Relay
from tlsproxy.proxy.limits.fair_shares import Account
from tlsproxy.proxy.upstream.value_exists import Points, Verdict
from tlsproxy.qdrant.rest_decision import NOT_CONFINED
from tlsproxy.qdrant.rest_listings import Reducer
from tlsproxy.snapshot.generation import Generation
from tlsproxy.wire.field_block import Fields
from tlsproxy.wire.grpc import PREFIX
from tlsproxy.wire.http2 import END_STREAM, FLAGS, HEADER, MAX_WINDOW
from tlsproxy.wire.tracing import id_block

FRAME_MEMORY: Final = 48
"""Bytes that a frame takes beside its own: one that holds a byte is no small thing."""


class Part(Protocol):
    """What looks at one direction of a call. If it ``rebuilds`` it, the stream's window in this direction is its own.

    ``data``: a DATA frame, ``data[start:end]`` with its header. It returns what goes in its place, None for itself, or
    raises RequestError. ``granted``: the receiver grants the stream more room. ``proceed``: there may be room.
    """

    rebuilds: bool

    def data(self, data: bytes, start: int, end: int, flags: int) -> bytes | None: ...
    def granted(self, size: int) -> None: ...
    def proceed(self) -> None: ...
    def over(self) -> None: ...


class Decider(Part, Protocol):
    """``passed``: all of the message has gone on. ``judged``: the plan that what is known of it by now has among these;
    ``refusal``: what that meets.
    """

    @property
    def passed(self) -> bool: ...
    def judged(self, calls: CallPlans, asked: Asked) -> CallPlan | None: ...
    def refusal(self) -> Decision | None: ...


class Answer(Part, Protocol):
    """``whole``: the upstream has said all of it. ``listing``: what is kept of it. ``left``: bytes that the client has
    no room for.

    ``room``: what follows the call's fields upstream.
    """

    whole: bool
    listing: Reducer

    @property
    def left(self) -> int: ...
    @property
    def room(self) -> bytes: ...

    def fields(self, raw: bytes, fields: Fields, *, end: bool) -> bytes | None: ...


def _give_way(error: RequestError) -> NoReturn:
    raise error


class Call:
    """``plain``: the client's DATA needs no look, and none of it is held. ``touched``: when the upstream was last heard
    of it, or began to be what is waited for (monotonic clock).

    ``client_done`` and ``upstream_done``: that side has ended the stream. ``opening``: what tells the upstream of it,
    once there is something to tell; ``answered``: the client has seen the beginning of a response; ``recorded``: its
    audit line is written. ``id_block`` is the gateway's id of it, as both sides are told it. ``granted`` and ``given``:
    the room on its stream that the upstream and the client have granted beyond a stream's first window. ``lead``: how
    much further the client may be on it than a former upstream, whose SETTINGS the client is not told.
    """

    __slots__ = (
        "_held",
        "_largest",
        "answered",
        "client_done",
        "deadline",
        "given",
        "granted",
        "id_block",
        "lead",
        "opening",
        "plain",
        "reading",
        "record",
        "recorded",
        "reduction",
        "relay",
        "stream",
        "touched",
        "upstream_done",
        "waiting",
        "waits",
    )

    def __init__(self, relay: Relay, stream: int, record: Record[CallPlan], now: float) -> None:
        self.relay = relay
        self.stream = stream
        self.record = record
        self.touched = now
        self.id_block = id_block(record.id)
        self.reading: Decider | None = None
        self.reduction: Answer | None = None
        self.answered = self.client_done = self.upstream_done = self.recorded = False
        self.waiting = self.plain = False
        self.opening = self.deadline = b""
        self.granted = self.given = self.lead = 0
        self.waits: CallWaits | None = None
        self._largest = record.plan.largest
        self._held: list[bytes] = []

    # Shares

    @property
    def account(self) -> Account:
        return account_of(self.relay.entry.account, self.record.plan.audit.who)

    @property
    def waits_for_client(self) -> bool:
        """For more of its message, or until more of the answer is taken."""
        return (
            self.relay.stream.stalled
            or not (self.client_done or self.waiting)
            or (self.reduction is not None and self.reduction.left > 0)
        )

    def give_way(self, error: RequestError) -> None:
        self.relay.gateway.loop.call_soon(self.relay.stream.tell, self._go_on, partial(_give_way, error))

    # Admission

    def admit(self, points: Points) -> None:
        """Waits where it must. Raises AuditUnavailable, Overloaded."""
        gateway, record = self.relay.gateway, self.record
        self.waiting = False
        if not record.admit(gateway):
            gateway.audit_gate.wait(record.started, self.relay.stream, partial(self._readmit, points))
            self.waiting = True
        elif not record.plan.block:
            self.relay.deny(self)
        else:
            exists = record.plan.exists
            if exists is not None and (asked := record.plan.asked) is not None:
                self.waiting = True
                told = partial(self._told, points, gateway.generation)
                points.ask(exists, asked.head.fields, self.account, told)
        self.plain = self._is_plain

    def _readmit(self, points: Points, late: AuditUnavailable | None) -> None:
        if not self.recorded:
            self.relay.present()
        if self.recorded:
            return
        try:
            if late is not None:
                raise late
            self.admit(points)
            self.begin()
        except RequestError as error:
            self.relay.refuse(self, error)
        else:
            if not self.recorded:
                self.proceed()
        self.relay.settle()

    def _told(self, points: Points, asked_of: Generation, verdict: Verdict) -> None:
        """Whether there is the point that the token requires."""
        self.relay.present()
        if self.recorded:
            return
        if moved(asked_of, self.relay.gateway.generation, "rest"):
            self._readmit(points, None)
            return
        self.waiting = False
        if isinstance(verdict, Decision):
            self.record.plan = self.record.plan.refused(verdict)
            self.relay.deny(self)
        elif verdict is not None:
            self.relay.refuse(self, verdict)
        else:
            self._go_on(self._begun)
            return
        self.relay.settle()

    def _begun(self) -> None:
        self.begin()
        self.proceed()

    def begin(self) -> None:
        """May go up, as far as that is known before its message. Raises Overloaded, UpstreamUnreachable."""
        if self.waiting:
            self.relay.reach.stir()
        elif self.record.plan.block and (self.relay.connected or not self.record.plan.unread):
            self.relay.reach.ask(self)

    # The present

    @property
    def undecided(self) -> bool:
        """Whether it waits for its decision, or for what that depends on."""
        return self.record.plan.unread or self.waiting

    @property
    def whole(self) -> bool:
        """Whether the upstream has all of its message."""
        passed = self.reading is None or self.reading.passed
        return self.client_done and not self.holds and passed and self.relay.all_said

    def refusal(self, plan: CallPlan, calls: CallPlans) -> Decision | None:
        """What it would meet if it went on by this plan, which is one of ``calls``. Changes nothing."""
        if self._unconfined(plan):
            return NOT_CONFINED
        if not plan.unread or plan.asked is None or self.reading is None:
            return None
        judged = self.reading.judged(calls, plan.asked)
        return None if judged is None or judged.decision.allowed else judged.decision

    def _unconfined(self, plan: CallPlan) -> bool:
        """Whether its message was to be written anew, and was not from the beginning."""
        asked, reading = plan.asked, self.reading
        return plan.unread and asked is not None and bool(asked.conditions) and not (reading and reading.rebuilds)

    def renew(self, plan: CallPlan) -> Decision | None:
        """It goes on by this plan; or the refusal that it meets."""
        if self._unconfined(plan):
            return NOT_CONFINED
        asked = plan.asked
        self.record.plan = plan
        if self.reduction is not None and asked is not None and asked.listing is not None:
            self.reduction.listing = asked.listing
        return self.reading.refusal() if plan.unread and self.reading is not None else None

    # The client's DATA

    @property
    def _is_plain(self) -> bool:
        looked_at = self.reading is not None or self._largest or self.record.plan.length is not None
        return not (looked_at or self.waiting or self._held)

    def belied(self, flags: int) -> bool:
        """Whether its DATA, with a frame of these flags, is not what its content-length says (RFC 9113 §8.1.1)."""
        come, said = self.record.bytes_in, self.record.plan.length
        return said is not None and (come > said or (come < said and flags & END_STREAM != 0))

    @property
    def holds(self) -> bool:
        """Whether what comes of it waits with it."""
        return self.waiting or bool(self._held)

    def request(self, data: bytes, start: int, end: int, flags: int) -> bytes | None:
        """What goes upstream in a DATA frame's place, None for itself. Raises RequestError."""
        if self._largest and self.record.bytes_in > self._largest + PREFIX:
            raise self.record.plan.too_large()
        if self.holds:
            self._held.append(data[start:end])
            self.relay.held += end - start + FRAME_MEMORY
            return b""
        return None if self.reading is None else self.reading.data(data, start, end, flags)

    def hold(self, frame: bytes) -> None:
        """It waits from this DATA frame on."""
        self.waiting = True
        self._held.insert(0, frame)
        self.relay.held += len(frame) + FRAME_MEMORY

    def proceed(self) -> None:
        """There may be room, or an answer to what was waited for."""
        if self._held and not self.waiting:
            passed = self._pass_held()
            self.relay.unblock()
            if not passed:
                return
        self.plain = self._is_plain
        self.relay.wanting.pop(self, None)
        for part in (self.reading, self.reduction):
            if part is not None and not self.recorded:
                part.proceed()

    def _pass_held(self) -> bool:
        """What waited goes on. Whether that was all of it."""
        relay, held, window = self.relay, self._held, self.relay.to_upstream
        while held and not self.waiting:
            frame = held[0]
            size = len(frame) - HEADER
            if window.room < size or (relay.cautious and self.room_here < size):
                relay.wanting[self] = None
                return False
            del held[0]
            relay.held -= len(frame) + FRAME_MEMORY
            try:
                instead = None if self.reading is None else self.reading.data(frame, 0, len(frame), frame[FLAGS])
            except RequestError as error:
                relay.give_back(size)
                relay.refuse(self, error)
                return False
            if instead is None:
                relay.passed(size)
            relay.up.append(frame if instead is None else instead)
        return not held

    # Waits for the client, and for the upstream

    @property
    def client_may_send(self) -> bool:
        """Whether its message is not whole, and nothing keeps the client from sending more of it."""
        relay = self.relay
        if self.client_done or self.answered or self.holds or relay.late or not relay.stream.reading:
            return False
        if self.reading is not None and self.reading.rebuilds:
            return True
        window = relay.to_upstream
        return window.credit > 0 and window.initial.least + self.granted > self.record.bytes_in

    @property
    def room_here(self) -> int:
        """Bytes of DATA that the upstream has left room for on its stream, beyond those that went there."""
        if self.reading is not None and self.reading.rebuilds:  # another is sent in its place
            return MAX_WINDOW
        return self.relay.to_upstream.initial.least + self.granted - self.record.bytes_in + self.held

    @property
    def held(self) -> int:
        """Bytes of DATA that wait with it."""
        return sum(map(len, self._held)) - HEADER * len(self._held)

    @property
    def client_must_take(self) -> bool:
        """Whether there is more of its answer than the client has left room for."""
        relay = self.relay
        if self.reduction is not None:
            return self.reduction.left > 0
        if relay.down_blocked:
            return True
        window = relay.to_client
        return self.answered and (window.room <= 0 or window.initial.least + self.given <= self.record.bytes_out)

    @property
    def room_given(self) -> int:
        """The window of its stream towards the client, beyond a stream's first."""
        return self.given - self.record.bytes_out

    @property
    def told(self) -> int:
        """Bytes of the answer that the client was sent."""
        return self.record.bytes_out - (self.reduction.left if self.reduction is not None else 0)

    def overdue(self, now: float) -> RequestError | None:
        """Error that ends the call if it has waited too long, else None."""
        if not self.record.admitted:  # waits at the audit gate, or is written down, and its client still sends
            late = self.recorded and now - self.touched > self.relay.limits.write_timeout
            return RequestTimeout("The client did not end its call") if late else None
        if self.waits is None:
            self.waits = CallWaits(self, now)
        return self.waits.overdue(self, now)

    @property
    def crowded(self) -> bool:
        """As :class:`tlsproxy.proxy.core.scheduler.SlicedJob` has it."""
        return self.relay.gateway.scheduler.crowded(self.relay.entry)

    def later(self, go_on: Work) -> None:
        """As :class:`tlsproxy.proxy.core.scheduler.SlicedJob` has it."""
        relay = self.relay
        relay.gateway.scheduler.add(relay.entry, relay.stream, partial(self._go_on, go_on))

    def _go_on(self, go_on: Work) -> None:
        relay = self.relay
        relay.present()
        if relay.calls.get(self.stream) is not self:
            return
        try:
            go_on()
        except RequestError as error:
            relay.refuse(self, error)
        relay.settle()

    def over(self) -> None:
        """It has ended: what it held is given back, and its parts, which refer to it, are let go."""
        if self._held:
            size = sum(map(len, self._held))
            self.relay.held -= size + FRAME_MEMORY * len(self._held)
            self.relay.give_back(size - HEADER * len(self._held))
            self._held.clear()
            self.relay.unblock()
        for part in (self.reading, self.reduction):
            if part is not None:
                part.over()
        self.reading = self.reduction = None
