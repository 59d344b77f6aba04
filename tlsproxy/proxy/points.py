"""Whether a point exists that a token names (its `value_exists` claim): asked of the upstream for each request.

Nothing is remembered, as in Qdrant: who deletes the point and then uses the token is refused. Identical questions share
an answer as far as that stays true: a request joins a question that has not been sent yet, since the answer to one
that has been may be older than the request. So of each there are at most two, one that is under way and the next.
The caller's `x-qdrant-route-affinity` goes with the question, as in Qdrant, and is a part of what is identical.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from http import HTTPStatus
from typing import TYPE_CHECKING, Final
from urllib.parse import quote, urlsplit

import orjson

from tlsproxy.authz.access import Decision
from tlsproxy.authz.claims import ValueExists
from tlsproxy.authz.shares import Account
from tlsproxy.errors import BadRequest, Form, Overloaded, RequestError, UpstreamBroken
from tlsproxy.proxy.accounts import STORAGE_ERROR
from tlsproxy.proxy.gateway import Gateway
from tlsproxy.proxy.upstream import Upstream
from tlsproxy.qdrant.rest import recognise
from tlsproxy.tls.generation import Generation
from tlsproxy.wire.chunked import ChunkedBody
from tlsproxy.wire.fieldblock import Fields
from tlsproxy.wire.http1 import CHUNKED
from tlsproxy.wire.response import ResponseHead

if TYPE_CHECKING:
    from tlsproxy.proxy.pool import Pool

MOST_WAITING: Final = 4096
"""Requests that wait for one answer."""
LARGEST_ANSWER: Final = 1 << 16
"""Bytes: it holds one id, or the text of an error."""
LONGEST_TEXT: Final = 1024
"""Characters of an error that are handed on: they are in the audit line too."""

_AFFINITY: Final = b"x-qdrant-route-affinity"
_AFFINITY_VALUE: Final = re.compile(rb"[\x20-\x7e]{1,256}")
_TEXT: Final = "Invalid JWT, stateful validation failed"
_NO_COLLECTION: Final = Decision(
    allowed=False, reason="token_collection_missing", status=HTTPStatus.FORBIDDEN, text=_TEXT, form=Form.BARE
)
_NO_POINT: Final = Decision(
    allowed=False, reason="token_point_missing", status=HTTPStatus.UNAUTHORIZED, text=_TEXT, form=Form.BARE
)
_STORAGE_ERRORS: Final = frozenset((400, 403, 405, 408, 409, 429, 500, 503, 507))
"""The statuses of Qdrant's errors of storage (src/actix/helpers.rs) but for 404, which is a collection that is none."""

Verdict = Decision | RequestError | None
"""A refusal, or what kept us from knowing; None: the point exists."""
Told = Callable[[Verdict], None]
_Key = tuple[int, ValueExists, bytes]
"""The generation's number, what is asked, the affinity it is asked with."""


class Points:
    """The questions of one process that wait for an answer: of each, one that was asked and the next."""

    def __init__(self, gateway: Gateway, pool: Pool) -> None:
        self._gateway = gateway
        self._pool = pool
        self._asked: dict[_Key, _Question] = {}
        self._next: dict[_Key, _Question] = {}

    def ask(self, asked: ValueExists, fields: Fields, account: Account, told: Told) -> None:
        """``told`` is called, later. ``fields`` are the caller's; the connection is of the ``account`` that asks first.

        Raises :class:`Overloaded`.
        """
        generation = self._gateway.generation
        key = (generation.number, asked, _affinity(fields))
        question = self._asked.get(key)
        if question is not None and question.sent:
            question = self._next.get(key)
        if question is None:
            request = _request(generation, asked, key[2])
            if request is None:
                self._gateway.loop.call_soon(told, _NO_COLLECTION)
                return
            question = _Question(self._pool, account, request, partial(self._settle, key))
            if key in self._asked:
                self._next[key] = question
            else:
                question.ask()
                self._asked[key] = question
        if len(question.waiting) >= MOST_WAITING:
            raise Overloaded("Too many requests wait for the same answer of the upstream")
        question.waiting.append(told)

    def _settle(self, key: _Key, verdict: Verdict) -> None:
        waiting = self._asked.pop(key).waiting
        following = self._next.pop(key, None)
        if following is not None:
            self._asked[key] = following
            try:
                following.ask()
            except Overloaded as error:
                self._gateway.loop.call_soon(self._settle, key, error)
        for told in waiting:
            told(verdict)


def _affinity(fields: Fields) -> bytes:
    """The first value, as Qdrant reads it; empty where there is none, or none that is sent on with a question."""
    value = next((value for name, value in fields if name == _AFFINITY), b"")
    return value if _AFFINITY_VALUE.fullmatch(value) else b""


def _request(generation: Generation, asked: ValueExists, affinity: bytes) -> bytes | None:
    """None for a collection whose name could lead to another route."""
    path = f"/collections/{quote(asked.collection, safe='')}/points/scroll"
    try:
        recognised = recognise("POST", path)
    except BadRequest:
        return None
    if recognised.operation is None or recognised.operation.name != "scroll":
        return None
    key = generation.upstream_api_key
    return b"POST %b HTTP/1.1\r\nhost: %b\r\ncontent-type: application/json\r\ncontent-length: %d\r\n%b%b\r\n%b" % (
        recognised.target.path.encode(),
        urlsplit(generation.config.upstream.rest).netloc.encode(),
        len(asked.body),
        b"" if key is None else b"api-key: %b\r\n" % key.encode(),
        affinity and b"%b: %b\r\n" % (_AFFINITY, affinity),
        asked.body,
    )


class _Question:
    """One request of our own, as an upstream connection sees it (:class:`tlsproxy.proxy.upstream.Exchange`).

    ``sent``: the upstream may have answered by now.
    """

    waits_for_client = False

    def __init__(self, pool: Pool, account: Account, request: bytes, settle: Told) -> None:
        self.account = account
        self.waiting: list[Told] = []
        self.sent = False
        self._pool = pool
        self._request = request
        self._settle = settle
        self._again = True
        self._status = 0
        self._body = bytearray()
        self._chunks: ChunkedBody | None = None

    def request_sent(self) -> bool:
        return True

    def ask(self) -> None:
        upstream = self._pool.acquire(self)
        if upstream is not None:
            self.upstream_ready(upstream)

    def upstream_ready(self, upstream: Upstream) -> None:
        self.sent = True
        upstream.begin(self, self._request, to_head=False, whole=True)

    def interim(self, head: ResponseHead) -> None:
        """Says nothing that matters here."""

    def response_head(self, head: ResponseHead) -> None:
        self._status = head.status
        self._chunks = ChunkedBody(self._body) if head.length == CHUNKED else None

    def response_body(self, data: bytes) -> None:
        if len(self._body) > LARGEST_ANSWER:
            return
        if self._chunks is None:
            self._body += data
        elif data:
            self._chunks.feed(data)

    def response_done(self) -> None:
        self._settle(verdict_of(self._status, bytes(self._body)))

    def upstream_lost(self, error: RequestError, *, stale: bool, answered: bool) -> None:
        """A kept connection that ended is no answer: it is asked once more, on a new one."""
        if not stale or answered or not self._again:
            self._settle(error)
            return
        self._again = False
        try:
            upstream = self._pool.open_again(self)
        except RequestError as overloaded:
            self._settle(overloaded)
        else:
            self.upstream_ready(upstream)

    def give_way(self, error: RequestError) -> None:
        """It found no place to wait: it is at work once it has one."""
        self._pool.later(self._settle, error)

    def upstream_congested(self) -> None:
        """The request is small, and whole already."""

    def upstream_drained(self) -> None:
        """As above."""


def verdict_of(status: int, body: bytes) -> Verdict:
    """What Qdrant's answer to a scroll for one point means. Its errors are handed on, as text/plain, as it does."""
    if status == HTTPStatus.NOT_FOUND:
        return _NO_COLLECTION
    try:
        answer = orjson.loads(body) if len(body) <= LARGEST_ANSWER else None
    except ValueError:
        answer = None
    match status, answer:
        case HTTPStatus.OK, {"result": {"points": list(points)}}:
            return None if points else _NO_POINT
        case _, {"status": {"error": str(text)}} if status in _STORAGE_ERRORS:
            return Decision(
                allowed=False, reason=STORAGE_ERROR, status=status, text=text[:LONGEST_TEXT], form=Form.TEXT
            )
    return UpstreamBroken("The upstream could not say whether the point exists that the token requires")
