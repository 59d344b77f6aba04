"""Facts about the upstream that a tenant's query depends on: its release, and the vectors of a collection.

The gateway asks over REST, for gRPC calls too, and remembers the answers for :data:`REMEMBERED` seconds. That a vector
has no IDF is not remembered: each request asks again, since one may be added at any time
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
from tlsproxy.proxy.upstream.subrequests import Subrequests, operation_path, own_request
from tlsproxy.qdrant.scoring import Facts, described, release_in

REMEMBERED: Final = 10.0
MOST_REMEMBERED: Final = 1024
LARGEST_ANSWER: Final = 1 << 20
"""Bytes of a collection's description; a longer one counts as unknown."""

Callback = Callable[[Facts | RequestError], None]
_Release = tuple[int, int] | None


class CollectionFacts:
    """Facts of one process: pending requests, and a memo of their answers."""

    def __init__(self, gateway: Gateway, pool: Pool) -> None:
        self._gateway = gateway
        self._releases: Subrequests[int, _Release] = Subrequests(
            gateway,
            pool,
            lambda status, body: release_in(body) if status == HTTPStatus.OK else None,
            largest=LARGEST_ANSWER,
        )
        self._collections: Subrequests[tuple[int, str], bytes | RequestError] = Subrequests(
            gateway, pool, _description, largest=LARGEST_ANSWER
        )
        self._release: tuple[int, float, _Release] = (0, 0.0, None)
        self._known = Memo[tuple[int, str], tuple[float, Facts]](MOST_REMEMBERED)

    def known(self, collection: str) -> Facts | None:
        """Remembered facts, or None."""
        until, facts = self._known.get((self._gateway.generation.number, collection), (0.0, None))
        return facts if time.monotonic() < until else None

    def ask(self, collection: str, account: Account, callback: Callback) -> None:
        """Asks the upstream; calls ``callback`` later, never at once. Raises :class:`tlsproxy.errors.Overloaded`."""
        generation = self._gateway.generation
        number, until, release = self._release
        if number == generation.number and time.monotonic() < until:
            self._ask_collection(collection, account, callback, release)
        else:
            received = partial(self._release_received, generation.number, collection, account, callback)
            self._releases.ask(generation.number, own_request("GET /"), account, received)

    def _release_received(
        self, number: int, collection: str, account: Account, callback: Callback, release: _Release | RequestError
    ) -> None:
        try:
            if number != self._gateway.generation.number:  # maybe a former upstream's release
                self.ask(collection, account, callback)
                return
            if isinstance(release, RequestError):
                callback(release)
                return
            if release is not None:
                self._release = (number, time.monotonic() + REMEMBERED, release)
            self._ask_collection(collection, account, callback, release)
        except RequestError as error:
            callback(error)

    def _ask_collection(self, collection: str, account: Account, callback: Callback, release: _Release) -> None:
        generation = self._gateway.generation
        path = operation_path(collection, "GET", "", "get_collection")
        if path is None:
            self._gateway.loop.call_soon(callback, Facts(release))
            return
        key = (generation.number, collection)
        received = partial(self._collection_received, key, callback, release)
        self._collections.ask(key, own_request(f"GET {path}"), account, received)

    def _collection_received(
        self, key: tuple[int, str], callback: Callback, release: _Release, answer: bytes | RequestError
    ) -> None:
        if isinstance(answer, RequestError):
            callback(answer)
            return
        facts = described(release, answer)
        self._known.pop(key, None)
        if None not in (facts.release, facts.weighted, facts.quantized):
            self._known.remember(key, (time.monotonic() + REMEMBERED, facts.remembered()))
        callback(facts)


def _description(status: int, body: bytes) -> bytes | RequestError:
    """Description of a collection; empty for a missing one: Qdrant answers the query itself with 404."""
    if status == HTTPStatus.OK:
        return body
    return b"" if status == HTTPStatus.NOT_FOUND else UpstreamBroken("The upstream does not describe the collection")
