"""Requests of the gateway's own to the upstream, whose answers decide about requests of clients.

Identical questions share an answer as far as it stays true: a request joins a question that has not been sent yet,
since the answer to one that has been may be older than the request. So of each there are at most two, one that is under
way and the next.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Final, Generic, TypeVar
from urllib.parse import quote, urlsplit

from tlsproxy.errors import BadRequest, Overloaded, RequestError
from tlsproxy.proxy.core.gateway import Gateway
from tlsproxy.proxy.limits.fair_shares import Account
from tlsproxy.proxy.upstream.collected_response import CollectedResponse
from tlsproxy.proxy.upstream.connection import UpstreamConnection
from tlsproxy.proxy.upstream.pool import Pool
from tlsproxy.qdrant.router import recognise
from tlsproxy.snapshot.generation import Generation
from tlsproxy.wire.http1_response import ResponseHead

MOST_WAITING: Final = 4096
"""Requests that wait for one answer."""

K = TypeVar("K")
V = TypeVar("V")
Request = Callable[[Generation], bytes]
"""The bytes of a request to the upstream of a generation: that which is current when it is sent."""


class Questions(Generic[K, V]):
    """Questions of one kind that wait for an answer: of each, one that was asked and the next.

    ``read`` makes something of an answer, of its status and its body, of which little more than ``largest`` bytes are
    kept.
    """

    def __init__(self, gateway: Gateway, pool: Pool, read: Callable[[int, bytes], V], *, largest: int) -> None:
        self._gateway = gateway
        self._pool = pool
        self._read = read
        self._largest = largest
        self._asked: dict[K, _Question[V]] = {}
        self._next: dict[K, _Question[V]] = {}

    def ask(self, key: K, request: Request, account: Account, told: Callable[[V | RequestError], None]) -> None:
        """``told`` is called, later. ``key`` stands for the request; the connection is of the account that asks first.

        Raises :class:`Overloaded`.
        """
        question = self._asked.get(key)
        if question is not None and question.sent:
            question = self._next.get(key)
        if question is None:
            settle = partial(self._settle, key)
            question = _Question(self._gateway, self._pool, account, request, self._read, self._largest, settle)
            if key in self._asked:
                self._next[key] = question
            else:
                question.ask()
                self._asked[key] = question
        if len(question.waiting) >= MOST_WAITING:
            raise Overloaded("Too many requests wait for the same answer of the upstream")
        question.waiting.append(told)

    def _settle(self, key: K, answer: V | RequestError) -> None:
        waiting = self._asked.pop(key).waiting
        following = self._next.pop(key, None)
        if following is not None:
            self._asked[key] = following
            try:
                following.ask()
            except Overloaded as error:
                self._gateway.loop.call_soon(self._settle, key, error)
        for told in waiting:
            told(answer)


def question_path(collection: str, method: str, suffix: str, operation: str) -> str | None:
    """The path of this operation on a collection. None where the collection's name would lead to another route."""
    try:
        recognised = recognise(method, f"/collections/{quote(collection, safe='')}{suffix}")
    except BadRequest:
        return None
    if recognised.operation is None or recognised.operation.name != operation:
        return None
    return recognised.target.path


def own_request(line: str, fields: bytes = b"", body: bytes = b"") -> Request:
    """A request with the gateway's own credentials. ``line``: method and path."""

    def made(generation: Generation) -> bytes:
        key = generation.upstream_api_key
        return b"%b HTTP/1.1\r\nhost: %b\r\n%b%b%b\r\n%b" % (
            line.encode(),
            urlsplit(generation.config.upstream.rest).netloc.encode(),
            body and b"content-type: application/json\r\ncontent-length: %d\r\n" % len(body),
            b"" if key is None else b"api-key: %b\r\n" % key.encode(),
            fields,
            body,
        )

    return made


class _Question(Generic[V]):
    """One request, as an upstream connection sees it (:class:`tlsproxy.proxy.upstream.connection.UpstreamRequest`).

    ``sent``: the upstream may have answered by now.
    """

    waits_for_client = False

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
        self._again = True
        self._response = CollectedResponse()

    def request_sent(self) -> bool:
        return True

    def later(self, go_on: Callable[[], None]) -> None:
        """Nobody's turn: the question is the gateway's own, and what is kept of an answer is small."""
        self._pool.later(go_on)

    def ask(self) -> None:
        upstream = self._pool.acquire(self)
        if upstream is not None:
            self.upstream_ready(upstream)

    def upstream_ready(self, upstream: UpstreamConnection) -> None:
        self.sent = True
        upstream.begin(self, self._request(self._gateway.generation), to_head=False, whole=True)

    def interim(self, head: ResponseHead) -> None:
        """Says nothing that matters here."""

    def response_head(self, head: ResponseHead) -> None:
        self._response.begin(head)

    def response_body(self, data: bytes) -> None:
        if len(self._response.content) <= self._largest:
            self._response.feed(data)

    def response_done(self) -> None:
        head, content = self._response.whole()
        self._settle(self._read(head.status, bytes(content)))

    def upstream_lost(self, error: RequestError, *, stale: bool, answered: bool) -> None:
        """A kept connection that ended is no answer: it is asked once more, on a new one."""
        if not stale or answered or not self._again:
            self._settle(error)
            return
        self._again = False
        try:
            self._pool.dial_again(self)
        except RequestError as overloaded:
            self._settle(overloaded)

    def give_way(self, error: RequestError) -> None:
        """It found no place to wait: it is at work once it has one."""
        self._pool.later(self._settle, error)

    def upstream_congested(self) -> None:
        """The request is small, and whole already."""

    def upstream_drained(self) -> None:
        """As above."""
