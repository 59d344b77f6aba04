"""Key sets by URL: the public keys of token issuers, fetched, judged, and kept until there are better ones.

A document counts once the reader of key files accepts it, and stays while fetches fail: an issuer's bad hour locks
nobody out. Nothing is decided or published here: documents go into the next generation, by a reload like any other.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final

from tlsproxy.config.endpoints import shown_url
from tlsproxy.config.model import Config
from tlsproxy.config.tokens import KeySource, key_set, key_sources
from tlsproxy.errors import MaterialError

DEADLINE: Final = 5.0
"""Seconds for a whole fetch. The start, and a reload that brings a new URL, wait that long and no longer."""
SIZE_LIMIT: Final = 256 << 10
RETRY: Final = 10.0
"""Seconds until the next try after one that failed, where `refresh` is not less."""
EARLY: Final = 60.0
"""Seconds from a fetch to the next, where `refresh` is more, once a token has named a key that nobody has."""
JITTER: Final = 0.1
"""Share of the interval by which fetches are spread, so that many gateways do not ask in step."""

_PIECE: Final = 16 << 10
_OK: Final = 200

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class _KeySetState:
    """``tried`` and ``spread`` are of the last fetch, ``error`` is empty where it succeeded.

    ``wanted``: since then a token has named a key that nobody has. ``tried`` is monotonic; ``fetched_at``, when
    ``document`` was last confirmed, is seconds since the epoch.
    """

    tried: float = 0.0
    spread: float = 1.0
    error: str = ""
    wanted: bool = False
    fetched_at: float | None = None
    document: bytes | None = field(default=None, repr=False)

    def due(self, refresh: float) -> float:
        after = self.spread * (min(refresh, RETRY) if self.error else refresh)
        return self.tried + (min(after, EARLY) if self.wanted else after)


class KeySets:
    """What has been fetched in the life of this process. For one event loop at a time."""

    def __init__(self) -> None:
        self._known: dict[KeySource, _KeySetState] = {}
        self._woken = asyncio.Event()

    async def of(self, config: Config) -> Mapping[KeySource, bytes]:
        """The configuration's documents. What was never tried is fetched first; what cannot be had is left out."""
        sources = key_sources(config)
        await self._fetch_all([source for source in sources if source not in self._known])
        found = {source: self._known[source].document for source in sources}
        return {source: document for source, document in found.items() if document is not None}

    def published(self, config: Config) -> None:
        """The configuration that serves is this one now, perhaps with other URLs and intervals.

        A URL that comes back later will be one that was never tried: what it held long ago must not count.
        """
        sources = key_sources(config)
        self._known = {source: known for source, known in self._known.items() if source in sources}
        self._woken.set()

    def key_missing(self) -> None:
        """A token names a key that no issuer has. Anybody may send one: it only makes the next fetch due earlier."""
        for known in self._known.values():
            if not known.wanted:
                known.wanted = True
                self._woken.set()

    async def run(self, config: Callable[[], Config], reload: Callable[[str], Awaitable[Any]]) -> None:
        """Refreshes what the configuration that serves names, and reloads where something has changed. Never ends."""
        while True:
            self._woken.clear()
            sources = key_sources(config())
            now = time.monotonic()
            due = [
                each for each, refresh in sources.items() if each not in self._known or self._due(each, refresh) <= now
            ]
            if await self._fetch_all(due):
                await reload("jwks")
                continue
            wait = min((self._due(each, refresh) for each, refresh in sources.items()), default=None)
            with suppress(TimeoutError):
                async with asyncio.timeout(None if wait is None else max(wait - time.monotonic(), 0)):
                    await self._woken.wait()

    def status(self, config: Config) -> list[dict[str, Any]]:
        """As JSON values. ``fetched_at`` is null, and ``error`` says why, where there are no keys."""
        entries = []
        for source in key_sources(config):
            known = self._known.get(source, _KeySetState())
            entries.append({"url": source.shown, "fetched_at": known.fetched_at, "error": known.error})
        return entries

    def _due(self, source: KeySource, refresh: float) -> float:
        return self._known[source].due(refresh)

    async def _fetch_all(self, sources: list[KeySource]) -> bool:
        """Whether any document is another than before."""
        return any(await asyncio.gather(*map(self._refresh, sources)))

    async def _refresh(self, source: KeySource) -> bool:
        known = self._known.setdefault(source, _KeySetState())
        before, error, known.wanted = known.document, "", False
        try:
            document = await fetch(source.url)
            key_set(source.shown, document, source.algorithm)
        except MaterialError as failure:
            error = str(failure)
        except Exception as failure:  # noqa: BLE001 - whatever a stranger's answer does to us, we go on serving
            error = f"{source.shown}: is not a key set that can be read ({type(failure).__name__})"
        else:
            known.document, known.fetched_at = document, time.time()
        known.tried = time.monotonic()
        known.spread = random.uniform(1 - JITTER, 1 + JITTER)  # noqa: S311 - spreads load, guards nothing
        if error != known.error:
            if error:
                _log.warning("%s; %s", error, "there are no keys yet" if before is None else "its former keys count")
            else:
                _log.info("%s: can be fetched again", source.shown)
        known.error = error
        return known.document != before


async def fetch(url: str) -> bytes:
    """The body of a 200: no redirect, content coding, cookie or proxy. Raises MaterialError."""
    # A quarter of a second at each start, for the few who have such a URL.
    import aiohttp  # noqa: PLC0415

    from tlsproxy.snapshot.http_resolver import HttpResolver  # noqa: PLC0415

    shown = shown_url(url)
    try:
        async with (
            asyncio.timeout(DEADLINE),
            aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(resolver=HttpResolver()),
                auto_decompress=False,
                cookie_jar=aiohttp.DummyCookieJar(),
            ) as session,
            session.get(
                url, allow_redirects=False, headers={"Accept": "application/json", "Accept-Encoding": "identity"}
            ) as response,
        ):
            if response.status != _OK:
                raise MaterialError(shown, f"cannot be fetched: the answer was {response.status}")
            document = bytearray()
            async for piece in response.content.iter_chunked(_PIECE):
                document += piece
                if len(document) > SIZE_LIMIT:
                    raise MaterialError(shown, f"has more than {SIZE_LIMIT} bytes; is it a key set?")
            return bytes(document)
    except TimeoutError:
        raise MaterialError(shown, f"cannot be fetched: no answer within {DEADLINE:g} s") from None
    except (aiohttp.ClientError, OSError, ValueError) as error:
        # The text of an error other than a socket's may have the whole URL (aiohttp.ClientResponseError, InvalidURL).
        cause = str(error) if isinstance(error, OSError) else type(error).__name__
        raise MaterialError(shown, f"cannot be fetched: {cause}") from None
