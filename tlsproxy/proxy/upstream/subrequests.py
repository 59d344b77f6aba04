"""The gateway's own requests to the upstream, needed to decide requests of clients.

Callers with the same key share a request that has not been sent yet. One that has been sent is not joined: its answer
may be older than the caller's request. So each key has at most two: the current request and the next.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Final, Generic, TypeVar
from urllib.parse import quote

from tlsproxy.errors import BadRequest, Overloaded, RequestError
from tlsproxy.proxy.core.gateway import Gateway
from tlsproxy.proxy.decision.affinity import HEADER as AFFINITY
from tlsproxy.proxy.limits.fair_shares import Account
from tlsproxy.proxy.upstream.collected_response import CollectedResponse
from tlsproxy.proxy.upstream.connection import UpstreamConnection
from tlsproxy.proxy.upstream.pool import Pool
from tlsproxy.qdrant.router import recognise
from tlsproxy.snapshot.generation import Generation
from tlsproxy.wire.http1_response import ResponseHead

MOST_WAITING: Final = 4096
"""Callers that wait for one answer."""

K = TypeVar("K")
V = TypeVar("V")
Request = Callable[[Generation, bytes], bytes]
"""Bytes of a request to a host, built when it is sent, under the generation that is current then."""


class Subrequests(Generic[K, V]):
    """Pending requests of one kind by key: the current one and the next.

    ``read`` makes the result of a response's status and body. Little more than ``largest`` bytes of a body are kept.
    """

    def __init__(self, gateway: Gateway, pool: Pool, read: Callable[[int, bytes], V], *, largest: int) -> None:
        self._gateway = gateway
        self._pool = pool
        self._read = read
        self._largest = largest
        self._current: dict[K, _Subrequest[V]] = {}
        self._next: dict[K, _Subrequest[V]] = {}

    def ask(self, key: K, request: Request, account: Account, callback: Callable[[V | RequestError], None]) -> None:
        """Sends ``request``, or joins one with the same ``key``; calls ``callback`` later, never at once.

        The upstream connection counts for the account of the first caller. Raises :class:`Overloaded`.
        """
        subrequest = self._current.get(key)
        if subrequest is not None and subrequest.sent:
            subrequest = self._next.get(key)
        if subrequest is None:
            settle = partial(self._settle, key)
            subrequest = _Subrequest(self._gateway, self._pool, account, request, self._read, self._largest, settle)
            if key in self._current:
                self._next[key] = subrequest
            else:
                subrequest.ask()
                self._current[key] = subrequest
        if len(subrequest.waiting) >= MOST_WAITING:
            raise Overloaded("Too many requests wait for the same answer of the upstream")
        subrequest.waiting.append(callback)

    def _settle(self, key: K, answer: V | RequestError) -> None:
        waiting = self._current.pop(key).waiting
        following = self._next.pop(key, None)
        if following is not None:
            self._current[key] = following
            try:
                following.ask()
            except RequestError as error:
                self._gateway.loop.call_soon(self._settle, key, error)
        for callback in waiting:
            callback(answer)


def operation_path(collection: str, method: str, suffix: str, operation: str) -> str | None:
    """Path of an operation on a collection. None: the name would lead to another route.

    Example: `GET /collections/..` names no collection `..`.
    """
    try:
        recognised = recognise(method, f"/collections/{quote(collection, safe='')}{suffix}")
    except BadRequest:
        return None
    if recognised.operation is None or recognised.operation.name != operation:
        return None
    return recognised.target.path


def own_request(line: str, affinity: bytes = b"", body: bytes = b"") -> Request:
    """A request with the gateway's own credentials. ``line``: method and path. ``affinity``: the client's request's."""

    def request_bytes(generation: Generation, host: bytes) -> bytes:
        key = generation.upstream_api_key
        return b"%b HTTP/1.1\r\nhost: %b\r\n%b%b%b\r\n%b" % (
            line.encode(),
            host,
            body and b"content-type: application/json\r\ncontent-length: %d\r\n" % len(body),
            b"" if key is None else b"api-key: %b\r\n" % key.encode(),
            affinity and b"%b: %b\r\n" % (AFFINITY, affinity),
            body,
        )

    return request_bytes


class _Subrequest(Generic[V]):
    """One such request (:class:`tlsproxy.proxy.upstream.connection.UpstreamRequest`) and its ``waiting`` callbacks.

    ``sent``: the upstream may have answered by now.
    """

    waits_for_client = False
    repeatable = True

    def __init__(
        self,
        gateway: Gateway,
        pool: Pool,
        account: Account,
        request: Request,
        read: Callable[[int, bytes], V],
        largest: int,
        settle: Callable[[V | RequestError], None],
    ) -> None:
        self.account = account
        self.waiting: list[Callable[[V | RequestError], None]] = []
        self.sent = False
        self._gateway = gateway
        self._pool = pool
        self._request = request
        self._read = read
        self._largest = largest
        self._settle = settle
        self._upstream: UpstreamConnection | None = None
        self._response = CollectedResponse()

    def request_sent(self) -> bool:
        return True

    def later(self, go_on: Callable[[], None]) -> None:
        """Continues at once, without a turn: little of a response is kept, so it costs no client much time."""
        self._pool.later(go_on)

    def ask(self) -> None:
        upstream = self._pool.acquire(self)
        if upstream is not None:
            self.upstream_ready(upstream)

    def upstream_ready(self, upstream: UpstreamConnection) -> None:
        self.sent = True
        self._upstream = upstream
        request = self._request(self._gateway.generation, upstream.node.node.rest.authority)
        upstream.begin(self, request, to_head=False, whole=True)

    def interim(self, head: ResponseHead) -> None:
        """Ignored: the final response follows."""

    def response_head(self, head: ResponseHead) -> None:
        self._response.begin(head)

    def response_body(self, data: bytes) -> None:
        if len(self._response.content) <= self._largest:
            self._response.feed(data)

    def response_done(self) -> None:
        head, content = self._response.whole()
        self._settle(self._read(head.status, bytes(content)))

    def upstream_lost(self, error: RequestError, *, stale: bool, answered: bool) -> None:
        """Sends the request once more, on a new connection, as far as :meth:`Pool.send_again` does."""
        lost, self._upstream = self._upstream, None
        try:
            again = lost is not None and not answered and self._pool.send_again(self, lost, stale=stale)
        except RequestError as failure:
            self._settle(failure)
            return
        if not again:
            self._settle(error)

    def give_way(self, error: RequestError) -> None:
        """Fails later, never inside :meth:`ask`: the request lost its place or its wait for one."""
        self._pool.later(self._settle, error)

    def upstream_congested(self) -> None:
        """Ignored: the request is small and written whole."""

    def upstream_drained(self) -> None:
        """Ignored, as above."""
