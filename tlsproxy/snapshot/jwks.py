"""Key sets by URL: public keys of token issuers, fetched, validated and cached.

A document counts once it parses as a key set, and stays while later fetches fail: an outage of the issuer locks nobody
out. New documents become part of the next generation, by a reload. An OpenID configuration is fetched before its key
set, each time; while it cannot be used, the keys are fetched from where it said last, so that one that is withdrawn
goes.
"""

from __future__ import annotations

import asyncio
import logging
import random
import ssl
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final, Literal, Protocol, TypeVar
from urllib.parse import urlsplit

from cryptography.hazmat.primitives.serialization import Encoding

from tlsproxy.config.discovery import OpenIdConfiguration, openid_configuration
from tlsproxy.config.endpoints import WEB_PORTS, shown_url
from tlsproxy.config.model import Config
from tlsproxy.config.secrets import secret_in
from tlsproxy.config.tokens import KeySource, key_set, key_sources
from tlsproxy.errors import MaterialError
from tlsproxy.snapshot import bounded_io
from tlsproxy.snapshot.reading import PEM_LIMIT, SECRET_LIMIT, read_file
from tlsproxy.threads import in_thread
from tlsproxy.tls.trust import load_authorities

T = TypeVar("T")

DEADLINE: Final = 5.0
"""Seconds for a document, and for each file that its fetch needs. The start, and a reload with a new URL, wait that
long; for an OpenID configuration and its key set twice that."""
SIZE_LIMIT: Final = 256 << 10
RETRY: Final = 10.0
"""Seconds until the next attempt after a failed fetch, or `refresh` if that is less."""
EARLY_REFRESH: Final = 60.0
"""Seconds between fetches, or `refresh` if that is less, once a token has named an unknown key."""
JITTER: Final = 0.1
"""Share of the interval by which fetches vary, so that many gateways do not fetch in step."""

_PIECE: Final = 16 << 10
_OK: Final = 200
_NOT_MODIFIED: Final = 304
_LONGEST_ETAG: Final = 256

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class _KeySetState:
    """State of one URL. ``tried`` (monotonic) and ``spread`` are of the last fetch; ``error`` is "" if it succeeded.

    ``wanted``: a token has named an unknown key since. ``fetched_at`` is the last successful fetch of a key set, in
    seconds since the epoch. ``openid`` is the last good OpenID configuration, where the URL is of one.
    """

    tried: float = 0.0
    spread: float = 1.0
    error: str = ""
    wanted: bool = False
    fetched_at: float | None = None
    openid: OpenIdConfiguration | None = None
    document: bytes | None = field(default=None, repr=False)

    def due(self, refresh: float) -> float:
        after = self.spread * (min(refresh, RETRY) if self.error else refresh)
        return self.tried + (min(after, EARLY_REFRESH) if self.wanted else after)


@dataclass(frozen=True, slots=True)
class Fetched:
    """Outcome of a fetch: ``document`` is a good key set, None if there is none; ``error`` is "" for none."""

    openid: OpenIdConfiguration | None
    document: bytes | None = field(repr=False)
    error: str


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
        """Status of each URL as JSON values. Without keys ``fetched_at`` is null and ``error`` is the reason.

        ``keys_url`` is what an OpenID configuration names; null for the URL of a key set.
        """
        entries = []
        for source in key_sources(config):
            current = self._sets.get(source, _KeySetState())
            keys_url = None if current.openid is None else shown_url(current.openid.keys_url)
            told = {"url": source.shown, "keys_url": keys_url}
            entries.append({**told, "fetched_at": current.fetched_at, "error": current.error})
        return entries

    def warnings(self, config: Config) -> tuple[str, ...]:
        """Warnings on OpenID configurations."""
        found = ((source, self._sets.get(source, _KeySetState()).openid) for source in key_sources(config))
        warned = ((source, "" if openid is None else openid.warning(source.algorithm)) for source, openid in found)
        return tuple(f"{source.shown}: {text}" for source, text in warned if text)

    def _due(self, source: KeySource, refresh: float) -> float:
        return self._sets[source].due(refresh)

    async def _fetch_all(self, sources: list[KeySource]) -> bool:
        """Fetch these. Whether any document has changed."""
        return any(await asyncio.gather(*map(self._refresh, sources)))

    async def _refresh(self, source: KeySource) -> bool:
        current = self._sets.setdefault(source, _KeySetState())
        before, current.wanted = current.document, False
        found = await fetched(source, current.openid)
        current.openid = found.openid
        if found.document is not None:
            current.document, current.fetched_at = found.document, time.time()
        current.tried = time.monotonic()
        current.spread = random.uniform(1 - JITTER, 1 + JITTER)  # noqa: S311 - spreads load, guards nothing
        if found.error and found.error != current.error:
            _log.warning("%s; %s", found.error, _consequence(current, found))
        elif current.error and not found.error:
            _log.info("%s: can be fetched again", source.shown)
        current.error = found.error
        return current.document != before


def _consequence(current: _KeySetState, found: Fetched) -> str:
    if found.document is not None and found.openid is not None:
        return f"its keys are still fetched from {shown_url(found.openid.keys_url)}"
    return "there are no keys yet" if current.document is None else "its former keys count"


async def fetched(source: KeySource, former: OpenIdConfiguration | None = None) -> Fetched:
    """Fetch a key set; ``former`` is the last good OpenID configuration. Raises nothing."""
    url, openid, errors = source.url, former, []
    if source.issuer:
        answer = await _judged(url, source, partial(openid_configuration, issuer=source.issuer))
        if isinstance(answer, str):
            errors.append(answer)
        else:
            openid = answer
        if openid is None:
            return Fetched(None, None, errors[0])
        url = openid.keys_url
    document = await _judged(url, source, partial(_key_set, algorithm=source.algorithm))
    if isinstance(document, str):
        return Fetched(openid, None, "; ".join([*errors, document]))
    return Fetched(openid, document, "; ".join(errors))


async def fetched_from(sources: Iterable[KeySource]) -> dict[KeySource, Fetched]:
    """Outcomes of a fetch of each."""
    listed = list(sources)
    return dict(zip(listed, await asyncio.gather(*map(fetched, listed)), strict=True))


def _key_set(name: str, data: bytes, algorithm: str) -> bytes:
    """The document itself, once its keys can be used."""
    key_set(name, data, algorithm)
    return data


async def _judged(url: str, source: KeySource, judge: Callable[[str, bytes], T]) -> T | str:
    """What ``judge`` makes of the URL's document, or the error."""
    shown = shown_url(url)
    try:
        return await in_thread(judge, shown, await fetch(url, source))
    except MaterialError as failure:
        return str(failure)
    except Exception as failure:  # noqa: BLE001 - a strange answer must not end the refreshing
        return f"{shown}: is no document that can be read ({type(failure).__name__})"


class Source(Protocol):
    """Files of a fetch, and the URL of the server that the bearer token is for."""

    @property
    def url(self) -> str: ...
    @property
    def ca_cert(self) -> Path | None: ...
    @property
    def bearer_token_file(self) -> Path | None: ...


async def fetch(url: str, source: Source | None = None) -> bytes:
    """The document of a URL, as by :func:`fetch_changed`."""
    document, _ = await fetch_changed(url, source, SIZE_LIMIT, b"")
    return document


async def fetch_changed(
    url: str, source: Source | None, limit: int, former: bytes, etag: str = ""
) -> tuple[bytes, str]:
    """The body of a 200 response and its ETag, without redirects, content coding, cookies or proxy.

    ``former`` is the document if the server says that it still has the one of ``etag``. With the CAs of ``source``, and
    its bearer token if the URL is of its server. Raises MaterialError.
    """
    # Imported late: it takes a quarter of a second, for a rare setting.
    import aiohttp  # noqa: PLC0415

    from tlsproxy.snapshot.http_connector import HttpConnector  # noqa: PLC0415

    shown = shown_url(url)
    headers = {"Accept": "application/json", "Accept-Encoding": "identity"}
    if etag:
        headers["If-None-Match"] = etag
    context: ssl.SSLContext | Literal[True] = True
    if source is not None and source.ca_cert is not None:
        context = await in_thread(_trusting, source.ca_cert)
    if source is not None and source.bearer_token_file is not None and _server(url) == _server(source.url):
        headers["Authorization"] = f"Bearer {await in_thread(_bearer_token, source.bearer_token_file)}"
    connector = HttpConnector(context)
    try:
        async with (
            asyncio.timeout(DEADLINE),
            aiohttp.ClientSession(
                connector=connector, auto_decompress=False, cookie_jar=aiohttp.DummyCookieJar()
            ) as session,
            session.get(url, allow_redirects=False, headers=headers) as response,
        ):
            if etag and response.status == _NOT_MODIFIED:
                return former, etag
            if response.status != _OK:
                raise MaterialError(shown, f"cannot be fetched: the answer was {response.status}")
            document = bytearray()
            async for piece in response.content.iter_chunked(_PIECE):
                document += piece
                if len(document) > limit:
                    raise MaterialError(shown, f"has more than {limit} bytes; is it the right document?")
            return bytes(document), response.headers.get("ETag", "")[:_LONGEST_ETAG]
    except TimeoutError:
        raise MaterialError(shown, f"cannot be fetched: no answer within {DEADLINE:g} s") from None
    except (aiohttp.ClientError, OSError, ValueError) as error:
        # Texts of errors other than OSError may hold the whole URL (aiohttp.ClientResponseError, InvalidURL).
        cause = str(error) if isinstance(error, OSError) else type(error).__name__
        raise MaterialError(shown, f"cannot be fetched: {cause}") from None
    finally:
        connector.abort()


def fetch_faults(source: Source) -> Iterator[str]:
    """Reasons why the files of a fetch cannot be used. Blocks."""
    for path, use in ((source.ca_cert, _trusting), (source.bearer_token_file, _bearer_token)):
        try:
            if path is not None:
                use(path)
        except MaterialError as error:
            yield str(error)


def _trusting(path: Path) -> ssl.SSLContext:
    """A client's context that trusts the CAs of a file alone. Blocks. Raises MaterialError."""
    authorities = load_authorities(str(path), _content(path, PEM_LIMIT))
    return ssl.create_default_context(cadata=b"".join(each.public_bytes(Encoding.DER) for each in authorities))


def _bearer_token(path: Path) -> str:
    return secret_in(path, _content(path, SECRET_LIMIT))


def _content(path: Path, limit: int) -> bytes:
    return bounded_io.answer(path, partial(read_file, path, limit), DEADLINE)


def _server(url: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port or WEB_PORTS[parts.scheme]
