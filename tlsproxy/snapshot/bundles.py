"""Configuration bundles by URL: fetched, verified, tried as a whole, and kept on disk.

A bundle that is newer than the one that serves, and without a fault, is written to `bundle.cache`, which is an input
like any other file. Any other one leaves that file, and so the configuration, as it is.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import time
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from tlsproxy.config.bundle import BEGIN, MAX_BUNDLE, Bundle, opened
from tlsproxy.config.endpoints import shown_url
from tlsproxy.config.loader import bundle_settings
from tlsproxy.errors import FailureKind, MaterialError, TlsproxyError
from tlsproxy.snapshot import bounded_io
from tlsproxy.snapshot.config_files import KEY_LIMIT
from tlsproxy.snapshot.files import read_inputs, read_main_file
from tlsproxy.snapshot.generation import propose
from tlsproxy.snapshot.jwks import DEADLINE, JITTER, RETRY, fetch_changed
from tlsproxy.snapshot.reading import read_file
from tlsproxy.snapshot.validation import InputReading
from tlsproxy.text import utc_time
from tlsproxy.threads import in_thread

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from tlsproxy.config.bundle import BundleConfig
    from tlsproxy.config.model import Config
    from tlsproxy.snapshot.generation import Generation

_MODE: Final = 0o600
_ENVIRONMENT: Final = (OSError, RuntimeError, MemoryError)
"""Errors without a descriptor, a thread or memory."""

_log = logging.getLogger(__name__)


class Bundles:
    """The bundle that this process's configuration names. ``current`` is the last good one, which is in its cache.

    ``error`` is that of the last fetch, "" for none; ``fetched_at`` is the last good fetch, in seconds since the epoch.
    For one event loop.
    """

    def __init__(self, config_path: Path, environ: Mapping[str, str]) -> None:
        self._config_path = config_path
        self._environ = environ
        self._lock = asyncio.Lock()
        self._woken = asyncio.Event()
        self._etag = ""
        self._document = b""
        self._settings: BundleConfig | None = None
        self._tried = 0.0
        self._spread = 1.0
        self._fetched_at: float | None = None
        self._error = ""
        self.current: Bundle | None = None

    async def first(self) -> str:
        """Fetch before the start. Returns a warning, if the bundle that was kept has to serve; "" for none.

        Raises MaterialError without any bundle, where a retry may succeed, and without a key.
        """
        try:
            settings = await self._named(None)
        except TlsproxyError:
            return ""  # reported by the reading of all inputs
        if settings is None:
            return ""
        await in_thread(_keys, settings)  # of the machine, which a retry does not mend
        self._error = error = await self._refreshed(settings, None)
        if error and self.current is None:
            text = f"{error}; and there is no earlier one in {settings.cache}"
            raise MaterialError("bundle", text, FailureKind.ENVIRONMENT)
        return error and f"{error}; the earlier bundle in {settings.cache} serves"

    async def prepare(self, generation: Generation, *, asked: bool) -> None:
        """Fetch before a reload, if it is asked for or the configuration names another bundle than before."""
        if asked or await self._wanted(generation) != self._settings:
            await self.refresh(generation)

    async def refresh(self, generation: Generation) -> bool:
        """Fetch now. Whether there is a new bundle on disk."""
        settings, before = await self._wanted(generation), self.current
        if settings is None:
            return False
        error, former = await self._refreshed(settings, generation), self._error
        self._error = error
        if error and error != former:
            _log.warning("%s", self._consequence)
        elif former and not error:
            _log.info("%s: can be fetched again", shown_url(settings.url))
        if self.current == before or self.current is None:
            return False
        _log.info("%s: version %d, signed at %s", shown_url(settings.url), *_edition(self.current))
        return True

    async def run(self, generation: Callable[[], Generation], reload: Callable[[str], Awaitable[Any]]) -> None:
        """Refresh the bundle that the configuration names, and reload when it has changed. Never ends."""
        while True:
            self._woken.clear()
            settings = await self._wanted(generation())
            if settings is None:
                self._settings, self.current, self._error, self._fetched_at = None, None, "", None
            wait = None if settings is None else self._due(settings) - time.monotonic()
            if wait is not None and wait <= 0:
                if await self.refresh(generation()):
                    await reload("bundle")
                continue
            with suppress(TimeoutError):
                async with asyncio.timeout(wait):
                    await self._woken.wait()

    def published(self) -> None:
        """Note that another configuration may be in force."""
        self._woken.set()

    def status(self) -> dict[str, Any] | None:
        """The bundle as JSON values; None without one."""
        settings, bundle = self._settings, self.current
        if settings is None:
            return None
        return {
            "url": shown_url(settings.url),
            "version": None if bundle is None else bundle.version,
            "key": None if bundle is None else bundle.key,
            "created": None if bundle is None else bundle.created,
            "expires": None if bundle is None else bundle.expires,
            "fetched_at": self._fetched_at,
            "error": self._error,
        }

    def warnings(self) -> tuple[str, ...]:
        """The error of the last fetch, if there is one."""
        return (self._consequence,) if self._error else ()

    @property
    def _consequence(self) -> str:
        return f"{self._error}; {'there is none yet' if self.current is None else 'the former bundle serves'}"

    def _due(self, settings: BundleConfig) -> float:
        if settings != self._settings:
            return 0.0
        return self._tried + self._spread * (min(settings.refresh, RETRY) if self._error else settings.refresh)

    async def _named(self, serving: Config | None) -> BundleConfig | None:
        """`bundle` in the main file, whatever else is wrong with it. Raises TlsproxyError if it cannot be read."""
        return await in_thread(self._named_now, serving)

    def _named_now(self, serving: Config | None) -> BundleConfig | None:
        """In a thread: a main file may have thousands of rules."""
        return bundle_settings(read_main_file(self._config_path, serving), self._config_path, self._environ)

    async def _wanted(self, generation: Generation) -> BundleConfig | None:
        """That one: a configuration that names another bundle cannot be published without it. Else the one in force."""
        try:
            return await self._named(generation.config) or generation.config.bundle
        except (TlsproxyError, *_ENVIRONMENT):
            return generation.config.bundle

    async def _refreshed(self, settings: BundleConfig, serving: Generation | None) -> str:
        """Fetch and keep it. Returns the error, "" for none."""
        async with self._lock:
            if self._settings != settings:
                self._etag, self.current = "", None
            self._settings = settings
            shown = shown_url(settings.url)
            try:
                keys = await in_thread(_keys, settings)
                kept = await in_thread(_kept, settings, keys)
                # A cache that is lost while it serves lets no older bundle in.
                former = self.current = kept or self.current
                if former is None:
                    await in_thread(bounded_io.answer, settings.cache, partial(_check_free, settings.cache), DEADLINE)
                document, etag = await fetch_changed(settings.url, settings, MAX_BUNDLE, self._document, self._etag)
                found = await in_thread(opened, shown, document, keys)
                now = time.time()
                if found != kept:
                    found.check_newer(shown, now, former)
                    await in_thread(self._try, document, found, serving, now)
                    await in_thread(
                        bounded_io.answer, settings.cache, partial(_keep, settings.cache, document), DEADLINE
                    )
                    self.current = found
                self._document, self._etag, self._fetched_at = document, etag, now
            except Exception as error:  # noqa: BLE001 - nothing may end the refreshing for good
                self._etag = ""
                if isinstance(error, TlsproxyError):
                    return str(error)
                if not isinstance(error, _ENVIRONMENT):
                    _log.critical("a defect in fetching a bundle", exc_info=error)
                return f"{shown}: cannot be fetched now: {type(error).__name__}: {error}"
            finally:
                self._tried = time.monotonic()
                self._spread = random.uniform(1 - JITTER, 1 + JITTER)  # noqa: S311 - spreads load, guards nothing
            return ""

    def _try(self, document: bytes, found: Bundle, serving: Generation | None, now: float) -> None:
        """Judge the configuration with this bundle. Raises TlsproxyError for a fault of the bundle's."""
        inputs = read_inputs(self._config_path, self._environ, candidate=document)
        started = None if serving is None else serving.started
        reading = InputReading(self._config_path, self._environ, inputs, {}, {}, started)
        faults = propose(reading, serving, now).faults
        broken = [
            fault.text
            for subject, fault in faults.items()
            if subject.kind == "configuration" or inputs.config_files.holds(Path(subject.name))
        ]
        if broken:
            raise MaterialError(f"version {found.version} of the bundle", "\n".join(broken))


def _edition(bundle: Bundle) -> tuple[int, str]:
    return bundle.version, utc_time(bundle.created)


def _keys(settings: BundleConfig) -> list[tuple[str, bytes]]:
    return [(str(path), _content(path, KEY_LIMIT)) for path in settings.keys]


def _kept(settings: BundleConfig, keys: list[tuple[str, bytes]]) -> Bundle | None:
    """The bundle in the cache; None if there is none that can be used."""
    try:
        return opened(str(settings.cache), _content(settings.cache, MAX_BUNDLE), keys)
    except MaterialError:
        return None


def _check_free(path: Path) -> None:
    """Check that the cache is no file of something else, which a bundle would overwrite. Raises MaterialError."""
    try:
        with path.open("rb") as file:
            begin = file.read(len(BEGIN))
    except FileNotFoundError:
        return
    except OSError as error:
        raise MaterialError(str(path), f"cannot be read: {error.strerror}", FailureKind.ENVIRONMENT) from None
    if begin not in (b"", BEGIN):
        text = "holds something else than a bundle, which is not overwritten: remove it, or correct bundle.cache"
        raise MaterialError(str(path), text)


def _content(path: Path, limit: int) -> bytes:
    return bounded_io.answer(path, partial(read_file, path, limit), DEADLINE)


def _keep(path: Path, document: bytes) -> None:
    """Write it whole or not at all. Raises MaterialError."""
    scratch = path.with_name(f".{path.name}.new")
    try:
        scratch.unlink(missing_ok=True)
        with os.fdopen(os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL, _MODE), "wb") as file:
            file.write(document)
            file.flush()
            os.fsync(file.fileno())
        scratch.replace(path)
    except OSError as error:
        raise MaterialError(str(path), f"cannot be written: {error.strerror}", FailureKind.ENVIRONMENT) from None
