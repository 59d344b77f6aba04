"""SETTINGS of a gRPC connection's two ends, from one to the other (RFC 9113 §6.5).

The client is told the upstream's within the gateway's limits, an upstream the client's. Acknowledgements go from end to
end, so that neither side is held to a smaller window before it knows of it: a smaller one of the client's is told to
the upstream first, and acknowledged once the upstream has acknowledged it; a larger one is told after that.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from tlsproxy.proxy.grpc.call import Call
from tlsproxy.proxy.grpc.messages import MAX_FIRST_WINDOW
from tlsproxy.proxy.grpc.relay import Relay
from tlsproxy.wire import http2
from tlsproxy.wire.flow_control import InitialWindow
from tlsproxy.wire.http2 import FIRST_WINDOW, MAX_STREAM, MAX_WINDOW, TABLE, Code, Http2Error, Setting

_DEFAULTS: Final[dict[int, int]] = {
    Setting.INITIAL_WINDOW_SIZE: FIRST_WINDOW,
    Setting.MAX_CONCURRENT_STREAMS: MAX_STREAM,
}
"""SETTINGS of an upstream that has sent no others."""
_OWN: Final = object()
_MEASURED: Final = object()


class SettingsExchange:
    """``formers`` are the exchanges with former upstreams, which the client is not told of.

    ``unacknowledged`` are the SETTINGS that the client has not acknowledged: the gateway's own, those of an upstream
    whose windows are measured here, and those that their upstream waits to hear of, by its window.
    ``from_client``: the client's that upstreams are told, but for its initial window of streams, of which the upstream
    has heard ``told_window``. ``max_streams`` and ``max_head_size``, the gateway's, outlast publications.
    """

    __slots__ = (
        "_first_window",
        "_measured_up_to",
        "_streams_told",
        "_upstream_streams",
        "formers",
        "from_client",
        "max_head_size",
        "max_streams",
        "relay",
        "told_window",
        "unacknowledged",
    )

    def __init__(self, relay: Relay[Call]) -> None:
        self.relay = relay
        self.formers: list[SettingsExchange] = []
        self.unacknowledged: deque[object] = deque([_OWN])
        self.from_client: dict[int, int] = {}
        self.told_window = InitialWindow()
        self.max_streams, self.max_head_size = relay.limits.max_streams, relay.limits.max_head_size
        self._first_window = FIRST_WINDOW  # of a stream, as the client was told last
        self._streams_told, self._upstream_streams = self.max_streams, MAX_STREAM
        self._measured_up_to = MAX_STREAM
        # A server's first frame (RFC 9113 §3.4). The upstream's own may come after an answer of ours.
        first: dict[int, int] = {
            Setting.MAX_CONCURRENT_STREAMS: self.max_streams,
            Setting.MAX_HEADER_LIST_SIZE: self.max_head_size,
        }
        relay.down.append(http2.settings(first))

    # The upstream's, to the client

    def from_upstream(self, values: dict[int, int], *, first: bool) -> bytes:
        """The client's share of an upstream's SETTINGS. ``first``: they are the connection's first."""
        if self.relay.measured:
            return self._of_measured(values, first=first)
        self.relay.to_upstream.initial.offer(values.get(Setting.INITIAL_WINDOW_SIZE))
        self.unacknowledged.append(self.relay.to_upstream)
        return self._restated(values)

    def _restated(self, values: dict[int, int]) -> bytes:
        """The upstream's SETTINGS as the client is told them, within our limits.

        Not its HEADER_TABLE_SIZE: the client's field blocks are read here, and the upstream never sees its table.
        """
        told = http2.kept(values, (Setting.INITIAL_WINDOW_SIZE,))
        if Setting.MAX_CONCURRENT_STREAMS in values:
            self._upstream_streams = values[Setting.MAX_CONCURRENT_STREAMS]
            told[Setting.MAX_CONCURRENT_STREAMS] = self._streams_told = self._streams_allowed
        first = told.get(Setting.INITIAL_WINDOW_SIZE)
        if first is None:
            return http2.settings(told)
        if self.formers:  # on whose streams more may have been granted
            told[Setting.INITIAL_WINDOW_SIZE] = first = min(first, MAX_FIRST_WINDOW)
        more, self._first_window = first - self._first_window, first
        return http2.settings(told) + b"".join(former.lead(more) for former in self.formers)

    def _of_measured(self, values: dict[int, int], *, first: bool) -> bytes:
        """The same where DATA is measured here, so that they need not wait for the client's acknowledgement.

        Its streams have windows by the present upstream's, whose ``first`` ones take the place of a former one's. Those
        of a former upstream it is not told, but it may use what they grant.
        """
        relay = self.relay
        initial = relay.to_upstream.initial
        before = initial.latest
        initial.offer(values.get(Setting.INITIAL_WINDOW_SIZE))
        relay.acknowledge()
        relay.proceed()
        relay.session.unblock()
        if relay.former:
            return self.lead(before - initial.latest)
        self.unacknowledged.append(_MEASURED)
        return self._restated(_DEFAULTS | values if first else values)

    def lead(self, more: int) -> bytes:
        """The client has heard of ``more`` room on all of its streams than the former upstream gives.

        Where that is less, it is granted the rest.
        """
        frames = b""
        for call in self.relay.calls.values():
            call.client_lead += more
            if call.client_lead < 0:
                frames += http2.window_update(call.stream, -call.client_lead)
                call.client_lead = 0
        return frames

    def begin_anew(self, acknowledged: int) -> None:
        """Before another upstream is dialled; so many acknowledgements of the client's waited for the former one.

        A client without room on its streams could not say what is to be dialled for. One that has more keeps it: if the
        next upstream gives as much, it is no further than the former one lets it.
        """
        for _ in range(acknowledged):
            self.unacknowledged.popleft()
        self._measured_up_to = MAX_STREAM  # whatever it has yet to acknowledge of the former one's
        self.unacknowledged = deque(_OWN if told is _MEASURED else told for told in (*self.unacknowledged, _OWN))
        first = max(self._first_window, FIRST_WINDOW)
        self.relay.down.append(self._restated({**_DEFAULTS, Setting.INITIAL_WINDOW_SIZE: first}))

    @property
    def still_measured(self) -> bool:
        """Whether a stream may still be under windows that the client had of a former upstream."""
        relay = self.relay
        earliest = min(relay.calls, default=MAX_STREAM)
        return bool(relay.deferred) or _MEASURED in self.unacknowledged or earliest <= self._measured_up_to

    def acknowledged(self) -> None:
        """The client has heard of the earliest SETTINGS that it has not acknowledged; else it acknowledges nothing."""
        relay = self.relay
        told = self.unacknowledged.popleft() if self.unacknowledged else None
        if told is _MEASURED:
            self._measured_up_to = relay.last_stream
        elif told is relay.to_upstream:
            relay.up.append(http2.SETTINGS_ACK)
            relay.to_upstream.initial.settle()
            relay.proceed()

    # Streams

    @property
    def calls_at_formers(self) -> int:
        return sum(len(former.relay.calls) for former in self.formers)

    @property
    def _streams_allowed(self) -> int:
        """The most streams that the client may open: those at former upstreams are none of the present one's."""
        return min(self.max_streams, self._upstream_streams + self.calls_at_formers)

    def limit_streams(self) -> None:
        """Tells the client where calls at a former upstream have ended."""
        if self._streams_allowed != self._streams_told:
            self.unacknowledged.append(_OWN)
            self.relay.down.append(self._restated({Setting.MAX_CONCURRENT_STREAMS: self._upstream_streams}))

    # The client's, to upstreams

    def client_settings(self, values: dict[int, int]) -> None:
        """SETTINGS of the client. Raises Http2Error."""
        every = (self, *self.formers)
        if values.get(Setting.HEADER_TABLE_SIZE, TABLE) < TABLE:
            for each in every:
                each.relay.restates = True
        first = values.get(Setting.INITIAL_WINDOW_SIZE)
        if first is not None:
            calls = (call for each in every for call in each.relay.calls.values())
            if any(first + call.room_given > MAX_WINDOW for call in calls):  # RFC 9113 §6.9.2
                raise Http2Error(Code.FLOW_CONTROL_ERROR, "a stream's window of more than 2^31-1")
        self.relay.to_client.initial.offer(first)
        told = http2.kept(values, (Setting.MAX_HEADER_LIST_SIZE,))
        self.from_client |= told
        for each in self._senders:
            each.tell(told)

    @property
    def _client_window(self) -> int:
        """The client's initial window of streams as an upstream is told it."""
        return min(self.relay.to_client.initial.least, MAX_FIRST_WINDOW)

    @property
    def _senders(self) -> list[SettingsExchange]:
        """Those whose upstream may send to the client."""
        return [self, *self.formers] if self.relay.reached else self.formers

    def greeting(self) -> bytes:
        """The beginning of an upstream connection: what its client has said of itself by now."""
        told = {Setting.HEADER_TABLE_SIZE: 0, Setting.ENABLE_PUSH: 0} | self.from_client
        first = self._client_window
        self.told_window = InitialWindow(first)
        if first != FIRST_WINDOW:
            told[Setting.INITIAL_WINDOW_SIZE] = first
        room = self.relay.to_client.begin(FIRST_WINDOW)
        return http2.PREFACE + http2.settings(told) + http2.window_update(0, room)

    def tell(self, values: dict[int, int]) -> None:
        if values and self.relay.reached:
            self.told_window.offer(values.get(Setting.INITIAL_WINDOW_SIZE))
            self.relay.up.append(http2.settings(values))

    def _tell_window(self) -> None:
        for each in self._senders:
            if self._client_window != each.told_window.latest:
                each.tell({Setting.INITIAL_WINDOW_SIZE: self._client_window})

    def upstream_acknowledged(self) -> None:
        """The upstream has acknowledged SETTINGS of the client's."""
        if self.relay.former:
            self.relay.down.append(http2.SETTINGS_ACK)  # once what was sent before it has gone on
        else:
            self.told_window.settle()
            self.agree()

    def agree(self) -> None:
        """Acknowledges the client's SETTINGS, as far as no upstream may send more than they allow."""
        relay = self.relay
        initial = relay.to_client.initial
        self._tell_window()
        while initial.may_settle(max((each.told_window.most for each in self._senders), default=0)):
            relay.down.append(http2.SETTINGS_ACK)
            initial.settle()
            self._tell_window()
        relay.proceed()
        for former in list(self.formers):
            former.relay.proceed()
            former.relay.session.settle()
