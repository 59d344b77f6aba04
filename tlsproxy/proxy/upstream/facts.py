"""Facts about the upstream that a tenant's query depends on: its release, and the vectors of a collection.

The gateway asks over REST, for calls of gRPC too, and remembers the answers for :data:`REMEMBERED` seconds. A vector
that has no IDF is not believed to have none that long, but asked for with each request
(:func:`tlsproxy.qdrant.scoring.needs_corpus`).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from http import HTTPStatus
from typing import Final

from tlsproxy.errors import RequestError, UpstreamBroken
from tlsproxy.memo import Memo
from tlsproxy.proxy.core.gateway import Gateway
from tlsproxy.proxy.limits.fair_shares import Account
from tlsproxy.proxy.upstream.pool import Pool
from tlsproxy.proxy.upstream.subrequests import Questions, own_request, question_path
from tlsproxy.qdrant.scoring import Facts, described, release_in

REMEMBERED: Final = 10.0
MOST_REMEMBERED: Final = 1024
LARGEST_ANSWER: Final = 1 << 20
"""Bytes of a collection's description; a longer one counts as unknown."""

Told = Callable[[Facts | RequestError], None]
_Release = tuple[int, int] | None


class CollectionFacts:
    """Pending questions of one process, and a memo of their answers."""

    def __init__(self, gateway: Gateway, pool: Pool) -> None:
        self._gateway = gateway
        self._releases: Questions[int, _Release] = Questions(
            gateway,
            pool,
            lambda status, body: release_in(body) if status == HTTPStatus.OK else None,
            largest=LARGEST_ANSWER,
        )
        self._collections: Questions[tuple[int, str], bytes | RequestError] = Questions(
            gateway, pool, _description, largest=LARGEST_ANSWER
        )
        self._release: tuple[int, float, _Release] = (0, 0.0, None)
        self._known = Memo[tuple[int, str], tuple[float, Facts]](MOST_REMEMBERED)

    def known(self, collection: str) -> Facts | None:
        """From the memo; None where they are not in it."""
        until, facts = self._known.get((self._gateway.generation.number, collection), (0.0, None))
        return facts if time.monotonic() < until else None

    def ask(self, collection: str, account: Account, told: Told) -> None:
        """``told`` is called, later. Raises :class:`tlsproxy.errors.Overloaded`."""
        generation = self._gateway.generation
        number, until, release = self._release
        if number == generation.number and time.monotonic() < until:
            self._ask_collection(collection, account, told, release)
        else:
            asked = partial(self._release_received, generation.number, collection, account, told)
            self._releases.ask(generation.number, own_request("GET /"), account, asked)

    def _release_received(
        self, number: int, collection: str, account: Account, told: Told, release: _Release | RequestError
    ) -> None:
        try:
            if number != self._gateway.generation.number:  # it may be that of a former upstream
                self.ask(collection, account, told)
                return
            if isinstance(release, RequestError):
                raise release
            if release is not None:
                self._release = (number, time.monotonic() + REMEMBERED, release)
            self._ask_collection(collection, account, told, release)
        except RequestError as error:
            told(error)

    def _ask_collection(self, collection: str, account: Account, told: Told, release: _Release) -> None:
        generation = self._gateway.generation
        path = question_path(collection, "GET", "", "get_collection")
        if path is None:
            self._gateway.loop.call_soon(told, Facts(release))
            return
        key = (generation.number, collection)
        asked = partial(self._collection_received, key, told, release)
        self._collections.ask(key, own_request(f"GET {path}"), account, asked)

    def _collection_received(
        self, key: tuple[int, str], told: Told, release: _Release, answer: bytes | RequestError
    ) -> None:
        if isinstance(answer, RequestError):
            told(answer)
            return
        facts = described(release, answer)
        self._known.pop(key, None)
        if None not in (facts.release, facts.weighted, facts.quantized):
            self._known.remember(key, (time.monotonic() + REMEMBERED, facts.remembered()))
        told(facts)


def _description(status: int, body: bytes) -> bytes | RequestError:
    """The query will be told itself that there is no such collection."""
    if status == HTTPStatus.OK:
        return body
    return b"" if status == HTTPStatus.NOT_FOUND else UpstreamBroken("The upstream does not describe the collection")
