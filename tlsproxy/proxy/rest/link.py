"""Client connection as its exchanges see it: callbacks, and the parts that every exchange gets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from tlsproxy.errors import RequestError
from tlsproxy.proxy.core.connection_manager import Entry
from tlsproxy.proxy.core.gateway import Gateway
from tlsproxy.proxy.decision.request_plan import Plan
from tlsproxy.proxy.transport.tls import TlsStream
from tlsproxy.proxy.upstream.upstreams import Upstreams


@dataclass(frozen=True, slots=True, eq=False)
class ClientLink:
    """One for each connection, without a reference to it: a cycle would wait for the garbage collector.

    ``tail``: last lines of each request head that goes upstream.
    """

    gateway: Gateway
    upstreams: Upstreams
    entry: Entry
    stream: TlsStream
    tail: bytes


class ExchangeHandler(Protocol):
    """Callbacks of an exchange, allowed at any time, also while the connection is about to make it.

    ``close``: the connection ends with this response. ``advance``: more of the received data may be wanted by now.
    ``present``: decides the request by the current generation before anything else is done with it. ``planned``: plan
    that its head has now. ``exchange_settled``: the response is the plan's own answer or refusal.
    """

    close: bool
    link: ClientLink

    def advance(self) -> None: ...
    def present(self) -> None: ...
    def planned(self, now: float) -> Plan: ...
    def reading_changed(self) -> None: ...
    def exchange_done(self) -> None: ...
    def exchange_settled(self) -> None: ...
    def exchange_failed(self, error: RequestError) -> None: ...
    def exchange_cut(self, reason: str) -> None: ...
