"""What the two sides of a gRPC connection share: its calls, what waits to be written, and how a call ends.

Frames are relayed as they are wherever nothing depends on them, so that flow control, pings and settings go from end to
end. Whatever is written is queued first: one write for each direction and each read, in the order in which it was said.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from typing import TYPE_CHECKING, Final

from tlsproxy.audit.line import json_string
from tlsproxy.errors import RequestError
from tlsproxy.memo import Memo
from tlsproxy.proxy.core.connection_manager import Entry
from tlsproxy.proxy.core.gateway import Gateway
from tlsproxy.proxy.core.record import Record
from tlsproxy.proxy.decision.call_plan import CallPlan, grpc_status
from tlsproxy.proxy.transport.tls import TlsStream
from tlsproxy.wire import http2
from tlsproxy.wire.field_block import write
from tlsproxy.wire.flood_budgets import Budgets
from tlsproxy.wire.flow_control import Window
from tlsproxy.wire.grpc import trailers, trailers_only
from tlsproxy.wire.http2 import DATA, END_STREAM, HEADER, KIND, Code
from tlsproxy.wire.tracing import id_field

if TYPE_CHECKING:
    from tlsproxy.proxy.grpc.call import Call
    from tlsproxy.proxy.grpc.draining_upstream import Former
    from tlsproxy.proxy.grpc.upstream import GrpcUpstream
    from tlsproxy.proxy.grpc.upstream_dialer import Reach

NO_METHOD: Final = "There is no such method here"
REMEMBERED: Final = 1024
"""Streams that we ended ourselves: frames that were on their way then are no fault of their sender."""


class Relay(ABC):
    """``up`` and ``down`` wait to be written. ``to_upstream`` and ``to_client``: what each side may still be sent.

    ``wanting`` are the calls that wait for room to send something of ours. ``held`` counts the bytes of DATA that wait
    with their calls, ``late`` are frames that wait for the upstream's room. ``restates``: the client waits to be told
    that there is no dynamic table, and a block of the upstream's that told it may not have reached it.

    ``cautious``: the client may know other windows of streams than the upstream's, which has changed; DATA is measured.
    ``half``: it has calls at a former upstream, and is behind a client's connection
    (:mod:`tlsproxy.proxy.grpc.draining_upstream`).
    """

    __slots__ = (
        "_owed_client",
        "_owed_upstream",
        "_remote",
        "_side",
        "budgets",
        "calls",
        "cautious",
        "down",
        "entry",
        "gateway",
        "half",
        "held",
        "late",
        "limits",
        "over",
        "reach",
        "restates",
        "stream",
        "to_client",
        "to_upstream",
        "up",
        "wanting",
    )

    patient = True
    reach: Reach

    def __init__(self, gateway: Gateway, stream: TlsStream | Former, entry: Entry) -> None:
        self.gateway = gateway
        self.stream = stream
        self.limits = gateway.bounds
        self.calls: dict[int, Call] = {}
        self.over = Memo[int, None](REMEMBERED)
        self.wanting: dict[Call, None] = {}
        self.late: deque[bytes] = deque()
        self.up: list[bytes] = []
        self.down: list[bytes] = []
        self.to_upstream = Window()
        self.to_client = Window()
        self.held = 0
        self.budgets = Budgets(self.limits.streams_per_second)
        self.restates = self.cautious = self.half = False
        self.entry = entry
        self._remote = json_string(entry.address)
        self._owed_client = self._owed_upstream = 0
        self._side: GrpcUpstream | None = None

    def give_back(self, size: int) -> None:
        """The client gets back the connection's room that frames took which went no further."""
        self._owed_client += size
        self.to_upstream.given_back(size)

    def give_back_upstream(self, size: int) -> None:
        self._owed_upstream += size
        self.to_client.credit += size

    @property
    def unsent(self) -> int:
        """Bytes of DATA that wait here, for room or with their calls."""
        late = sum(len(frame) - HEADER for frame in self.late if frame[KIND] == DATA)
        return late + sum(call.held for call in self.calls.values())

    def passed(self, size: int) -> None:
        """So much of the client's DATA goes on. For what goes to a former upstream it has room again."""
        self.to_upstream.room -= size
        if self.half:
            self.give_back(size)

    def acknowledge(self) -> None:
        """Acknowledges all SETTINGS of the upstream's."""
        while self.to_upstream.initial.unsettled:
            self.up.append(http2.SETTINGS_ACK)
            self.to_upstream.initial.settle()

    @property
    def connected(self) -> bool:
        """Whether there is an upstream connection, be it that it is dialled."""
        return self._side is not None

    @property
    def reached(self) -> bool:
        """Whether the upstream has taken that connection. Until then ``up`` waits, and can be taken back."""
        return self._side is not None and self._side.stands

    def is_served_by(self, side: GrpcUpstream) -> bool:
        return self._side is side

    @property
    def is_former(self) -> bool:
        """Whether its upstream connection leads where the upstream is no more."""
        side = self._side
        return side is not None and side.stream.address not in self.gateway.generation.upstream_addresses["grpc"]

    @property
    def all_said(self) -> bool:
        """Whether nothing that is for the upstream waits here."""
        return self._side is not None and self.reached and not (self.up or self._side.stream.unsent)

    @abstractmethod
    def present(self) -> None:
        """Judges the calls anew, where there has been a publication since they were."""

    @abstractmethod
    def rest(self) -> None:
        """No call is left, or another thing is waited for than was."""

    @abstractmethod
    def received(self, call: Call) -> int:
        """Bytes of its message that have come, those of an unfinished frame included."""

    @property
    def down_blocked(self) -> bool:
        """Whether the client has left no room on its connection for what the upstream says next."""
        return (self._side is not None and self._side.blocked) or (self.half and self.stream.stalled)

    def unblock_side(self) -> None:
        """The client has room again for what the upstream says."""
        if self._side is not None:
            self._side.unblock()

    @abstractmethod
    def unblock(self) -> None:
        """There may be room again for what the client was not let say."""

    def proceed(self) -> None:
        """There is room that there was not."""
        for call in list(self.wanting):
            call.proceed()

    def settle(self) -> None:
        """Writes what waits to be written: the last step of whatever was going on."""
        if self._owed_client:
            self.down.append(http2.window_update(0, self._owed_client))
            self._owed_client = 0
        if self._side is not None:
            if self._owed_upstream:
                self.up.append(http2.window_update(0, self._owed_upstream))
            if self.up and self._side.stands:
                data = b"".join(self.up)
                self.up.clear()
                self._side.write(data)
        self._owed_upstream = 0
        if self.down:
            data = b"".join(self.down)
            self.down.clear()
            self.stream.write(data)

    # How a call ends

    def refuse(self, call: Call, error: RequestError) -> None:
        """With what went wrong after its decision, or kept it from one."""
        self._tell(call, error.grpc.value, str(error), error.reason)

    def deny(self, call: Call) -> None:
        """As its plan says by now."""
        decision = call.record.plan.decision
        self._tell(call, grpc_status(decision), decision.text or NO_METHOD, "", decision.retry_after)

    def _tell(self, call: Call, status: int, text: str, reason: str, retry_after: int = 0) -> None:
        stream = call.stream
        if call.opening and not call.upstream_done:
            self._cancel(call)
        if not call.upstream_done:
            fields = trailers(status, text)
            if not call.answered:
                record = call.record
                only = trailers_only(status, text, http=record.plan.http, retry_after=retry_after)
                fields = (*only, id_field(record.id))
            self.down.append(http2.headers(stream, write(fields), END_STREAM))
        if not call.client_done:
            self.down.append(http2.reset(stream, Code.NO_ERROR))  # RFC 9113 §8.1: what is still to come is not wanted
        call.record.grpc_status = status
        self.forget(call, reason)

    def reset(self, call: Call, code: Code, reason: str) -> None:
        """Ends it without words, on both sides."""
        if call.opening and not (call.client_done and call.upstream_done):
            self._cancel(call)
        self.down.append(http2.reset(call.stream, code))
        self.forget(call, reason)

    def _cancel(self, call: Call) -> None:
        if not self.taken_back(call):
            self.up.append(http2.reset(call.stream, Code.CANCEL))

    def taken_back(self, call: Call) -> bool:
        """Whether the upstream never hears of the call: its fields are not written yet, and nothing came after them.

        A server counts the streams that end as soon as they began, and ends the connection of who has many.
        """
        if not self.reached:
            self._unsay(call)
            return True
        if self.up and self.up[-1] is call.opening:
            del self.up[-1]
            return True
        return False

    def _unsay(self, call: Call) -> None:
        """Drops the call's frames that wait for an upstream connection, and frees the room that they take."""
        said = [one for one in self.up if http2.stream_of(one) == call.stream]
        size = sum(len(one) - HEADER for one in said if one[KIND] == DATA)
        self.up[:] = [one for one in self.up if http2.stream_of(one) != call.stream]
        if call.reading is not None and call.reading.rebuilds:
            self.to_upstream.own(-size)
        else:
            self.to_upstream.room += size
            self.give_back(size)

    def answered(self, call: Call, status: int | None) -> None:
        """The upstream's response is whole. The client may still have something to say."""
        call.upstream_done = True
        call.record.grpc_status = status
        if not call.recorded:
            call.recorded = True
            self.finish(call.record, "")
        if call.client_done:
            self.forget(call, "")

    def forget(self, call: Call, reason: str) -> None:
        if not (call.client_done and call.upstream_done):
            self._remember(call.stream)
        self.calls.pop(call.stream, None)
        if self.wanting:
            self.wanting.pop(call, None)
        if call.reduction is not None or not call.plain:  # else it has no parts, and holds nothing
            call.over()
        if not call.recorded:  # the first end counts
            call.recorded = True
            self.finish(call.record, reason)
        if not self.calls:
            self.reach.rest()
            self.rest()
        if self.late:
            self._drop_late(call.stream)

    def _drop_late(self, stream: int) -> None:
        ended = [one for one in self.late if http2.stream_of(one) == stream]
        self.give_back(sum(len(one) - HEADER for one in ended))
        left = [one for one in self.late if http2.stream_of(one) != stream]
        self.late.clear()
        self.late.extend(left)

    def _remember(self, stream: int) -> None:
        self.over.remember(stream, None)

    def finish(self, record: Record[CallPlan], reason: str) -> None:
        if record.grpc_status is not None:
            record.status = record.plan.http
        record.finish(self.gateway, self._remote, reason)
        self.entry.count(record.bytes_in, record.bytes_out, record.plan.audit.who.key)

    def refuse_stream(self, record: Record[CallPlan], stream: int, *, done: bool, code: Code | None = None) -> None:
        """One that never became a call: in gRPC's words, or by a reset with ``code`` alone."""
        plan = record.plan
        if code is None:
            decision = plan.decision
            record.grpc_status = grpc_status(decision)
            text = decision.text or NO_METHOD
            only = trailers_only(record.grpc_status, text, http=plan.http, retry_after=decision.retry_after)
            fields = (*only, id_field(record.id))
            self.down.append(http2.headers(stream, write(fields), END_STREAM))
            code = None if done else Code.NO_ERROR
        if code is not None:
            self.down.append(http2.reset(stream, code))
            self._remember(stream)
        self.finish(record, "")
