"""Key sets by URL: public keys of token issuers, fetched, validated and cached.

A document counts once it parses as a key set, and stays while later fetches fail: an outage of the issuer locks nobody
out. New documents become part of the next generation, by a reload.
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
"""Seconds for a fetch. The start, and a reload with a new URL, wait at most that long."""
SIZE_LIMIT: Final = 256 << 10
RETRY: Final = 10.0
"""Seconds until the next attempt after a failed fetch, or `refresh` if that is less."""
EARLY_REFRESH: Final = 60.0
"""Seconds between fetches, or `refresh` if that is less, once a token has named an unknown key."""
JITTER: Final = 0.1
"""Share of the interval by which fetches vary, so that many gateways do not fetch in step."""

_PIECE: Final = 16 << 10
_OK: Final = 200

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class _KeySetState:
    """State of one URL. ``tried`` (monotonic) and ``spread`` are of the last fetch; ``error`` is "" if it succeeded.

    ``wanted``: a token has named an unknown key since. ``fetched_at`` is the last successful fetch, in seconds since
    the epoch.
    """

    tried: float = 0.0
    spread: float = 1.0
    error: str = ""
    wanted: bool = False
    fetched_at: float | None = None
    document: bytes | None = field(default=None, repr=False)

    def due(self, refresh: float) -> float:
        after = self.spread * (min(refresh, RETRY) if self.error else refresh)
        return self.tried + (min(after, EARLY_REFRESH) if self.wanted else after)


class KeySets:
    """Key sets that this process has fetched. For one event loop."""

    def __init__(self) -> None:
        self._sets: dict[KeySource, _KeySetState] = {}
        self._woken = asyncio.Event()

    async def of(self, config: Config) -> Mapping[KeySource, bytes]:
        """The configuration's documents. New URLs are fetched first; URLs without a document are left out."""
        sources = key_sources(config)
        await self._fetch_all([source for source in sources if source not in self._sets])
        found = {source: self._sets[source].document for source in sources}
        return {source: document for source, document in found.items() if document is not None}

    def published(self, config: Config) -> None:
        """Adopt the URLs and intervals of the configuration now in force.

        Removed URLs are forgotten: if one comes back later, its old document must not count.
        """
        sources = key_sources(config)
        self._sets = {source: current for source, current in self._sets.items() if source in sources}
        self._woken.set()

    def key_missing(self) -> None:
        """Note that a token names an unknown key. Anybody may send one, so it only brings the next fetch forward."""
        for current in self._sets.values():
            if not current.wanted:
                current.wanted = True
                self._woken.set()

    async def run(self, config: Callable[[], Config], reload: Callable[[str], Awaitable[Any]]) -> None:
        """Refresh the key sets of the configuration in force, and reload when one has changed. Never ends."""
        while True:
            self._woken.clear()
            sources = key_sources(config())
            now = time.monotonic()
            due = [
                each for each, refresh in sources.items() if each not in self._sets or self._due(each, refresh) <= now
            ]
            if await self._fetch_all(due):
                await reload("jwks")
                continue
            wait = min((self._due(each, refresh) for each, refresh in sources.items()), default=None)
            with suppress(TimeoutError):
                async with asyncio.timeout(None if wait is None else max(wait - time.monotonic(), 0)):
                    await self._woken.wait()

    def status(self, config: Config) -> list[dict[str, Any]]:
        """Status of each URL as JSON values. Without keys ``fetched_at`` is null and ``error`` is the reason."""
        entries = []
        for source in key_sources(config):
            current = self._sets.get(source, _KeySetState())
            entries.append({"url": source.shown, "fetched_at": current.fetched_at, "error": current.error})
        return entries

    def _due(self, source: KeySource, refresh: float) -> float:
        return self._sets[source].due(refresh)

    async def _fetch_all(self, sources: list[KeySource]) -> bool:
        """Fetch these. Whether any document has changed."""
        return any(await asyncio.gather(*map(self._refresh, sources)))

    async def _refresh(self, source: KeySource) -> bool:
        current = self._sets.setdefault(source, _KeySetState())
        before, error, current.wanted = current.document, "", False
        try:
            document = await fetch(source.url)
            key_set(source.shown, document, source.algorithm)
        except MaterialError as failure:
            error = str(failure)
        except Exception as failure:  # noqa: BLE001 - a strange answer must not end the refreshing
            error = f"{source.shown}: is not a key set that can be read ({type(failure).__name__})"
        else:
            current.document, current.fetched_at = document, time.time()
        current.tried = time.monotonic()
        current.spread = random.uniform(1 - JITTER, 1 + JITTER)  # noqa: S311 - spreads load, guards nothing
        if error != current.error:
            if error:
                _log.warning("%s; %s", error, "there are no keys yet" if before is None else "its former keys count")
            else:
                _log.info("%s: can be fetched again", source.shown)
        current.error = error
        return current.document != before


async def fetch(url: str) -> bytes:
    """The body of a 200 response, without redirects, content coding, cookies or proxy. Raises MaterialError."""
    # Imported late: it takes a quarter of a second, for a rare setting.
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
        # Texts of errors other than OSError may hold the whole URL (aiohttp.ClientResponseError, InvalidURL).
        cause = str(error) if isinstance(error, OSError) else type(error).__name__
        raise MaterialError(shown, f"cannot be fetched: {cause}") from None
