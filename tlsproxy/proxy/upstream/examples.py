"""Whether points are a tenant's by whose vectors it queries: asked of the upstream before the query goes there.

With the affinity of the query, so that both read from one replica. Nothing is remembered. Between question and query a
point may be deleted and made anew by another: the query then tells of the new one's vector. Over REST, for gRPC calls
too (:mod:`tlsproxy.qdrant.tenant_examples`).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from http import HTTPStatus
from typing import Final

from tlsproxy.authz.access import Decision
from tlsproxy.errors import RequestError, UpstreamBroken
from tlsproxy.proxy.core.gateway import Gateway
from tlsproxy.proxy.limits.fair_shares import Account
from tlsproxy.proxy.upstream.pool import Pool
from tlsproxy.proxy.upstream.subrequests import Subrequests, operation_path, own_request
from tlsproxy.qdrant.tenant_examples import Question, no_collection, refusal_by, refusal_in

LARGEST_ANSWER: Final = 1 << 20
"""Bytes: a thousand points without payload and vector."""

Verdict = Decision | RequestError | None
"""A refusal, or the error that prevented the check; None: all points are the tenant's."""
Callback = Callable[[Verdict], None]
_Answer = tuple[int, bytes]


class ExamplePoints:
    """Pending questions of one process."""

    def __init__(self, gateway: Gateway, pool: Pool) -> None:
        self._gateway = gateway
        self._subrequests: Subrequests[tuple[int, Question, bytes], _Answer] = Subrequests(
            gateway, pool, lambda status, body: (status, body), largest=LARGEST_ANSWER
        )

    def ask(self, questions: tuple[Question, ...], affinity: bytes, account: Account, callback: Callback) -> None:
        """Asks one question after the other, at least one; calls ``callback`` later, never at once.

        Raises :class:`tlsproxy.errors.Overloaded`.
        """
        question, *rest = questions
        path = operation_path(question.collection, "POST", "/points/query/batch", "query_batch")
        if path is None:
            self._gateway.loop.call_soon(callback, no_collection(question.collection))
            return
        answered = partial(self._answered, question, tuple(rest), affinity, account, callback)
        key = self._gateway.generation.number, question, affinity
        self._subrequests.ask(key, own_request(f"POST {path}", affinity, question.body), account, answered)

    def _answered(
        self,
        question: Question,
        rest: tuple[Question, ...],
        affinity: bytes,
        account: Account,
        callback: Callback,
        answer: _Answer | RequestError,
    ) -> None:
        verdict = answer if isinstance(answer, RequestError) else _verdict(question, *answer)
        if verdict is not None or not rest:
            callback(verdict)
            return
        try:
            self.ask(rest, affinity, account, callback)
        except RequestError as error:
            callback(error)


def _verdict(question: Question, status: int, body: bytes) -> Verdict:
    try:
        if status != HTTPStatus.OK:
            return refusal_by(status, body)
        if len(body) <= LARGEST_ANSWER:
            return refusal_in(body, question)
    except ValueError:
        pass
    return UpstreamBroken("The upstream did not say whether the points of this query are yours")
