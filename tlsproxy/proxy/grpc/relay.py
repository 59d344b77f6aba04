"""Queues, windows and budgets between one client and one upstream connection.

Frames are relayed as they are wherever nothing depends on them, so that flow control, pings and settings go from end to
end. Whatever is written is queued first: one write for each direction and each read, in the order of its making.
"""

from __future__ import annotations

from collections import deque
from http import HTTPStatus
from typing import Final, Generic, TypeVar

from tlsproxy.errors import Form, error_body
from tlsproxy.memo import Memo
from tlsproxy.proxy.core.connection_manager import Entry
from tlsproxy.proxy.core.gateway import Gateway
from tlsproxy.proxy.core.record import Record
from tlsproxy.proxy.decision.call_plan import CallPlan, grpc_status
from tlsproxy.proxy.grpc.session import CallDialler, ClientStream, GrpcSession, RelayedCall, UpstreamSide
from tlsproxy.proxy.transport.dial import leads_to
from tlsproxy.wire import http2
from tlsproxy.wire.field_block import write
from tlsproxy.wire.flood_budgets import Budgets
from tlsproxy.wire.flow_control import Window
from tlsproxy.wire.grpc import refusal_over_http, trailers_only
from tlsproxy.wire.http2 import DATA, END_STREAM, HEADER, KIND, Code
from tlsproxy.wire.tracing import id_field

NO_METHOD: Final = "There is no such method here"
REMEMBERED: Final = 1024
"""Streams that the gateway ended: frames that were on their way then are no fault of their sender."""
DROPPED: Final = 16 << 20
"""Bytes of a body that are taken and dropped, before its stream is reset."""

_OK: Final = HTTPStatus.OK.value

C = TypeVar("C", bound=RelayedCall)


class Relay(Generic[C]):
    """``up`` and ``down`` are queues of frames to be written. ``to_upstream`` and ``to_client`` are the windows of each
    receiver.

    ``wanting`` are the calls that wait for room to send frames made here. ``pending_size`` counts the bytes of DATA
    that wait with their calls, ``deferred`` are frames that wait for the upstream's room. ``ended_streams`` are those
    on which frames may still come, with the bytes of DATA that are taken there and dropped. ``restates``: the client
    waits to be told that there is no dynamic table, and a block of the upstream's that told it may not have reached it.
    ``last_stream`` is the client's latest. ``answered``: a response has ended since the last sweep.

    ``measured``: the client may know other windows of streams than the upstream's, which has changed; DATA is measured.
    ``origin``: that of the upstream connection's node as it stands in a field block; empty with a single node.
    ``former``: its calls are at a former upstream (:mod:`tlsproxy.proxy.grpc.draining_upstream`).
    """

    __slots__ = (
        "_owed_client",
        "_owed_upstream",
        "_remote",
        "answered",
        "budgets",
        "calls",
        "deferred",
        "dialler",
        "down",
        "ended_streams",
        "entry",
        "former",
        "gateway",
        "last_stream",
        "limits",
        "measured",
        "origin",
        "pending_size",
        "restates",
        "session",
        "stream",
        "to_client",
        "to_upstream",
        "up",
        "upstream",
        "wanting",
    )

    __deletable__ = ("dialler", "session")

    dialler: CallDialler

    def __init__(self, gateway: Gateway, stream: ClientStream, entry: Entry, session: GrpcSession) -> None:
        self.gateway = gateway
        self.stream = stream
        self.session = session
        self.limits = gateway.bounds
        self.calls: dict[int, C] = {}
        self.ended_streams = Memo[int, int](REMEMBERED)
        self.wanting: dict[C, None] = {}
        self.deferred: deque[bytes] = deque()
        self.up: list[bytes] = []
        self.down: list[bytes] = []
        self.to_upstream = Window()
        self.to_client = Window()
        self.pending_size = self.last_stream = 0
        self.budgets = Budgets(self.limits.streams_per_second)
        self.restates = self.measured = self.former = self.answered = False
        self.upstream: UpstreamSide | None = None
        self.origin = b""
        self.entry = entry
        self._remote = entry.remote
        self._owed_client = self._owed_upstream = 0

    def give_back(self, size: int) -> None:
        """The client gets back the connection's room that frames took which went no further."""
        self._owed_client += size
        self.to_upstream.given_back(size)

    def give_back_upstream(self, size: int) -> None:
        self._owed_upstream += size
        self.to_client.credit += size

    def take_over(self, other: Relay[C]) -> None:
        """Goes on with the calls of ``other`` and all that they have towards their upstream, which ``other`` loses.

        Acknowledgements of the client's that wait in ``other`` stay there.
        """
        self.budgets, self.ended_streams, self.last_stream = other.budgets, other.ended_streams, other.last_stream
        self.restates = other.restates
        self.calls, other.calls = other.calls, {}
        self.up, self.wanting, self.pending_size = other.up, other.wanting, other.pending_size
        self.deferred.extend(frame for frame in other.deferred if frame[KIND] == DATA)
        other.deferred = deque(frame for frame in other.deferred if frame[KIND] != DATA)
        self.to_upstream = other.to_upstream
        self._owed_upstream, other._owed_upstream = other._owed_upstream, 0
        self.acknowledge()
        self.to_client, other.to_client = other.to_client, other.to_client.for_another_sender()
        self.dialler, self.upstream = other.dialler, other.upstream

    def begin_anew(self) -> int:
        """Forgets what was towards the upstream; frames that wait for its room go no further.

        Returns how many acknowledgements of the client's were among them.
        """
        self.upstream = None
        acknowledgements = 0
        for frame in self.deferred:
            if frame[KIND] == DATA:
                self.give_back(len(frame) - HEADER)
            else:
                acknowledgements += 1
        self.up, self.deferred, self.wanting, self.pending_size = [], deque(), {}, 0
        window, self.to_upstream = self.to_upstream, Window()
        self.down.append(http2.window_update(0, self.to_upstream.begin(window.credit)))
        self.measured = True
        return acknowledgements

    @property
    def unsent(self) -> int:
        """Bytes of DATA that wait here, for room or with their calls."""
        deferred = sum(len(frame) - HEADER for frame in self.deferred if frame[KIND] == DATA)
        return deferred + sum(call.pending_size for call in self.calls.values())

    def passed(self, size: int) -> None:
        """So much of the client's DATA goes on. For what goes to a former upstream it has room again."""
        self.to_upstream.room -= size
        if self.former:
            self.give_back(size)

    def acknowledge(self) -> None:
        """Acknowledges all SETTINGS of the upstream's."""
        while self.to_upstream.initial.unsettled:
            self.up.append(http2.SETTINGS_ACK)
            self.to_upstream.initial.settle()

    @property
    def connected(self) -> bool:
        """Whether there is an upstream connection, be it that it is dialled."""
        return self.upstream is not None

    @property
    def reached(self) -> bool:
        """Whether the upstream has taken that connection. Until then ``up`` waits, and can be taken back."""
        return self.upstream is not None and self.upstream.stands

    @property
    def upstream_moved(self) -> bool:
        """Whether its upstream connection leads where the upstream is no more, or to a drained node."""
        side = self.upstream
        return side is not None and not any(
            leads_to(side.stream, api.addresses, api.tls)
            for api in (node.api("grpc") for node in self.gateway.generation.nodes if not node.drained)
        )

    @property
    def upstream_renewed(self) -> bool:
        """Whether a new upstream connection would present another certificate of ours."""
        side = self.upstream
        return side is not None and not any(
            side.stream.tls is node.api("grpc").tls for node in self.gateway.generation.nodes
        )

    @property
    def all_written(self) -> bool:
        """Whether nothing that is for the upstream waits here."""
        return self.upstream is not None and self.reached and not (self.up or self.upstream.stream.unsent)

    @property
    def down_blocked(self) -> bool:
        """Whether the client has left no room on its connection for what the upstream says next."""
        return (self.upstream is not None and self.upstream.blocked) or (self.former and self.stream.stalled)

    def unblock_upstream(self) -> None:
        """The client has room again for what the upstream says."""
        if self.upstream is not None:
            self.upstream.unblock()

    def proceed(self) -> None:
        """There is room that there was not."""
        for call in list(self.wanting):
            call.proceed()

    def flush(self) -> None:
        """Writes the queued frames."""
        if self._owed_client:
            self.down.append(http2.window_update(0, self._owed_client))
            self._owed_client = 0
        if self.upstream is not None:
            if self._owed_upstream:
                self.up.append(http2.window_update(0, self._owed_upstream))
            if self.up and self.upstream.stands:
                data = b"".join(self.up)
                self.up.clear()
                self.upstream.write(data)
        self._owed_upstream = 0
        if self.down:
            data = b"".join(self.down)
            self.down.clear()
            self.stream.write(data)

    def drop_requests(self) -> None:
        """Nothing goes upstream any more, and the client needs no more room."""
        self.wanting.clear()
        self.up.clear()
        self._owed_client = 0

    def let_go(self) -> None:
        """The connection has ended, and is referred to no more: late results of its calls come to nothing."""
        del self.dialler, self.session

    # Streams

    def retract(self, stream: int, *, rebuilt: bool) -> None:
        """Drops frames of a stream that wait for an upstream connection, and frees the room that they take.

        ``rebuilt``: their DATA was made here.
        """
        retracted = [frame for frame in self.up if http2.stream_of(frame) == stream]
        size = sum(len(frame) - HEADER for frame in retracted if frame[KIND] == DATA)
        self.up[:] = [frame for frame in self.up if http2.stream_of(frame) != stream]
        if rebuilt:
            self.to_upstream.own(-size)
        else:
            self.to_upstream.room += size
            self.give_back(size)

    def drop_deferred(self, stream: int) -> None:
        ended = [frame for frame in self.deferred if http2.stream_of(frame) == stream]
        self.give_back(sum(len(frame) - HEADER for frame in ended))
        left = [frame for frame in self.deferred if http2.stream_of(frame) != stream]
        self.deferred.clear()
        self.deferred.extend(left)

    def finish(self, record: Record[CallPlan], reason: str) -> None:
        """Writes the audit line of a call that has ended."""
        if record.grpc_status is not None and not record.status:
            record.status = _OK
        record.finish(self.gateway, self._remote, reason)
        self.entry.count(record.bytes_in, record.bytes_out, record.plan.audit.caller.key)

    def respond(self, record: Record[CallPlan], stream: int, http: int, text: str, retry_after: int) -> None:
        """The whole response of a refused stream: a gRPC status, or ``http`` and a body if it was no call.

        A body for which the client has left no room is left out.
        """
        form, status, body = record.plan.form, record.grpc_status or 0, b""
        if form is None:
            fields = trailers_only(status, text, retry_after=retry_after)
        else:
            record.status = http
            if form is Form.JSON:
                body = error_body(text)
            if len(body) > min(self.to_client.room, self.to_client.initial.least):
                body = b""
            fields = refusal_over_http(http, len(body), status, text, retry_after=retry_after)
        block = write((*fields, id_field(record.id)))
        self.down.append(http2.headers(stream, block, 0 if body else END_STREAM))
        if body:
            self.to_client.own(len(body))
            record.bytes_out += len(body)
            self.down.append(http2.data(stream, body, end=True))

    def stop(self, record: Record[CallPlan], stream: int, code: Code) -> None:
        """Asks the client to send no more on a stream (RFC 9113 §8.1), unless it is no gRPC call.

        Of those clients some (curl 7.88) drop a response that is followed by a reset.
        """
        if code is not Code.NO_ERROR or record.plan.form is None:
            self.down.append(http2.reset(stream, code))

    def ended(self, record: Record[CallPlan], stream: int) -> None:
        """Later frames of a stream are dropped. The body of a request that is no call has room, up to a limit.

        Some clients (Java's, Node's) read a response only once they have sent all of the request.
        """
        self.ended_streams.remember(stream, 0 if record.plan.form is None else DROPPED)

    def refuse_stream(self, record: Record[CallPlan], stream: int, *, done: bool, code: Code | None = None) -> None:
        """Refuses a stream that never became a call: by a gRPC status, or by a reset with ``code`` alone."""
        plan = record.plan
        if code is None:
            decision = plan.decision
            record.grpc_status = grpc_status(decision)
            self.respond(record, stream, decision.status, decision.text or NO_METHOD, decision.retry_after)
            code = None if done else Code.NO_ERROR
        if code is not None:
            self.stop(record, stream, code)
            self.ended(record, stream)
        self.finish(record, "")
