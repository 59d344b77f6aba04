"""Whether a point exists that a token names (its `value_exists` claim): asked of the upstream for each request.

Nothing is remembered, as in Qdrant: who deletes the point and then uses the token is refused. Identical questions share
an answer as far as that stays true (:mod:`tlsproxy.proxy.upstream.subrequests`). The head's `x-qdrant-route-affinity`
goes with the question, as in Qdrant, and is a part of what is identical.
"""

from __future__ import annotations

from collections.abc import Callable
from http import HTTPStatus
from typing import Final

import orjson

from tlsproxy.authz.access import Decision
from tlsproxy.authz.claims import ValueExists
from tlsproxy.errors import Form, RequestError, UpstreamBroken
from tlsproxy.proxy.core.gateway import Gateway
from tlsproxy.proxy.decision.attribution import STORAGE_ERROR
from tlsproxy.proxy.limits.fair_shares import Account
from tlsproxy.proxy.upstream.pool import Pool
from tlsproxy.proxy.upstream.subrequests import Subrequests, operation_path, own_request

LARGEST_ANSWER: Final = 1 << 16
"""Bytes: it holds one id, or the text of an error."""
LONGEST_TEXT: Final = 1024
"""Characters of an error that are handed on: they are in the audit line too."""

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
"""A refusal, or the error that prevented the check; None: the point exists."""
Callback = Callable[[Verdict], None]
_Key = tuple[int, ValueExists, bytes]
"""The generation's number, what is asked, the affinity it is asked with."""


class Points:
    """Pending questions of one process."""

    def __init__(self, gateway: Gateway, pool: Pool) -> None:
        self._gateway = gateway
        self._subrequests: Subrequests[_Key, Verdict] = Subrequests(gateway, pool, verdict_of, largest=LARGEST_ANSWER)

    def ask(self, asked: ValueExists, affinity: bytes, account: Account, callback: Callback) -> None:
        """Asks the upstream; calls ``callback`` later. ``affinity`` is that of the caller's request.

        The upstream connection counts for the ``account`` of the first caller. Raises Overloaded.
        """
        generation = self._gateway.generation
        path = operation_path(asked.collection, "POST", "/points/scroll", "scroll")
        if path is None:
            self._gateway.loop.call_soon(callback, _NO_COLLECTION)
            return
        request = own_request(f"POST {path}", affinity, asked.body)
        self._subrequests.ask((generation.number, asked, affinity), request, account, callback)


def verdict_of(status: int, body: bytes) -> Verdict:
    """Verdict by Qdrant's answer to a scroll for one point. Its errors are handed on as text/plain, as Qdrant does."""
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
