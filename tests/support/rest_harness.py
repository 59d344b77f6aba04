"""A real RestConnection in memory, with the real pool behind it: nothing moves until a test says how far."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import re
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Final
from unittest.mock import MagicMock

import pytest

from support.h2_harness import Audit, MemoryStream, Uncounted
from support.h2_harness import Loop as SoonLoop
from support.relay_generation import KEYS
from support.site import Site
from tlsproxy.proxy.core.authorization import Standing
from tlsproxy.proxy.core.connection_manager import ConnectionManager
from tlsproxy.proxy.core.gateway import Gateway
from tlsproxy.proxy.core.record import Record
from tlsproxy.proxy.core.scheduler import Scheduler
from tlsproxy.proxy.limits.table import LimitTable
from tlsproxy.proxy.rest import audit_query, connection
from tlsproxy.proxy.rest.connection import RestConnection
from tlsproxy.proxy.transport.deadlines import NEVER, Deadlines
from tlsproxy.proxy.upstream import connection as upstream
from tlsproxy.proxy.upstream.upstreams import Upstreams
from tlsproxy.snapshot.files import read_inputs
from tlsproxy.snapshot.generation import Generation
from tlsproxy.snapshot.startup import first_generation

REQUEST_LINE: Final = re.compile(rb"[A-Z]+ /")


def rest_generation(site: Site, on_full: str = "refuse", upstream: str = "http://127.0.0.1:1") -> Generation:
    """Callers are told apart by a key of each request, as in ``KEYS``."""
    docs = [{"collection": "docs", "access": "rw"}]
    roles = {
        "plain": {"access": "m", "limits": {"concurrent_requests": 3}},
        "limited": {"access": docs, "limits": {"concurrent_requests": 2}},
        "tenant": {"access": docs, "filter": {"tenant": "acme"}},
    }
    keys = [{"name": name, "role": name, "sha256": hashlib.sha256(KEYS[name].encode()).hexdigest()} for name in roles]
    config = site.write_config(
        upstream,
        service={"verify_https_client_certificate": False},
        upstream={"rest": upstream, "max_connections": 2, "api_key": upstream},
        audit={"dir": "-", "on_full": on_full},
        roles=roles,
        identities=[],
        keys=keys,
    )
    return first_generation(config, {}, read_inputs(config, {}), {}).generation


class Loop(SoonLoop):
    """Timers run when :meth:`elapse` says that their time has come, and so does work in threads. ``ran`` is called
    after each callback.
    """

    def __init__(self) -> None:
        super().__init__()
        self.ran: Callable[[], None] = lambda: None
        self._later: list[tuple[Any, Callable[[], None]]] = []

    def call_later(self, _delay: float, callback: Callable[..., None], *args: Any) -> Any:
        handle = MagicMock(spec=asyncio.TimerHandle)
        self._later.append((handle, lambda: callback(*args)))
        return handle

    def in_thread(self, work: Callable[..., Any], *args: Any) -> Any:
        future: asyncio.Future[Any] = asyncio.Future(loop=MagicMock(spec=asyncio.AbstractEventLoop))
        future.set_result(work(*args))
        done = MagicMock()
        done.add_done_callback = lambda callback: self._later.append((MagicMock(), lambda: callback(future)))
        return done

    def run(self) -> bool:
        soon, self._soon = self._soon, []
        for handle, callback in soon:
            if not handle.cancelled():
                callback()
                self.ran()
        return bool(soon)

    def elapse(self) -> bool:
        later, self._later = self._later, []
        for handle, callback in later:
            if not handle.cancel.called:
                callback()
        return bool(later)


class Promises(Audit):
    """``promised``: lines that it has made room for and not got."""

    def __init__(self) -> None:
        super().__init__()
        self.promised = 0

    def take(self) -> bool:
        took = super().take()
        self.promised += took
        return took

    def put(self, line: str) -> None:
        self.promised -= 1
        super().put(line)

    def read(self, _query: object, _largest: int) -> list[bytes]:
        return []


class Stream(MemoryStream):
    """Tells of its end, from the loop. ``writes`` counts the writes that went out."""

    def __init__(self, handler: Any, loop: Loop) -> None:
        super().__init__(handler)
        self._loop = loop
        self.broken = False
        self.corked: list[bytes] | None = None
        self.deadline = NEVER
        self.writes = 0

    @property
    def unsent(self) -> bool:
        return self.stalled

    @staticmethod
    def takes() -> bool:
        return False

    def write(self, data: bytes) -> None:
        if self.corked is not None:
            self.corked.append(data)
        else:
            self.writes += 1
            super().write(data)

    def cork(self) -> None:
        self.corked = self.corked or []

    def uncork(self) -> None:
        corked, self.corked = self.corked, None
        if corked:
            self.write(b"".join(corked))

    def close(self, _linger: float) -> None:
        self.abort()

    def abort(self, error: Exception | None = None) -> None:
        if not self.closed:
            self.closed = True
            self._loop.call_soon(self.handler.connection_lost, error)

    def overdue(self) -> None:
        if not self.closed and self.deadline != NEVER:
            self.deadline = NEVER
            self.handler.deadline_passed()


class RestEnds:
    """``ups`` are the upstream connections that were made; ``records`` those of all requests that were taken up.

    ``places``: by what a request took, how often it was given back.
    """

    def __init__(self, generation: Generation) -> None:
        self.loop, self.audit = Loop(), Promises()
        with asyncio.Runner() as runner:
            self.gateway = runner.run(self._gateway(generation))
        self.gateway.loop = self.loop  # type: ignore[assignment]
        self.gateway.scheduler = Scheduler(self.loop)  # type: ignore[arg-type]
        self.ups: list[Stream] = []
        self.no_socket = False
        self.records: list[Record[Any]] = []
        self.upstreams = Upstreams(self.gateway)
        self.pool = self.upstreams.pool
        self.ended = 0

    async def _gateway(self, generation: Generation) -> Gateway:
        self.table = LimitTable.private()
        gateway = Gateway(generation, self.audit, Uncounted(), Deadlines(MagicMock()), lambda _event: None, self.table)
        self.manager = ConnectionManager(gateway, itertools.count(1))
        return gateway

    def connect(self, address: str = "127.0.0.1") -> Stream:
        stream = Stream(None, self.loop)
        entry = self.manager.enter("rest", address, Standing(self.gateway.generation, None, time.time()))

        def end() -> None:
            self.ended += 1
            self.manager.leave(entry)

        stream.handler = entry.session = RestConnection(self.gateway, self.upstreams, stream, entry, end)  # type: ignore[arg-type]
        return stream

    def dial(self, _loop: Any, addresses: Any, handler: Any, _deadlines: Any, _timeout: Any, _tls: None) -> Stream:
        if self.no_socket:
            raise OSError(24, "no descriptors are left")
        stream = Stream(handler, self.loop)
        stream.address, stream.write = addresses[0], partial(self._written, stream)  # type: ignore[method-assign]
        self.ups.append(stream)
        return stream

    def _written(self, stream: Stream, data: bytes) -> None:
        if REQUEST_LINE.match(data):
            present = self.gateway.generation
            assert stream.address in present.nodes[0].rest.addresses
            url = present.config.upstream.rest.encode()
            assert {b"host: " + url.removeprefix(b"http://"), b"api-key: " + url} <= set(data.split(b"\r\n"))
        Stream.write(stream, data)

    def publish(self, generation: Generation) -> None:
        self.manager.publish(generation)
        self.pool.review()

    def quiet(self) -> None:
        while self.loop.run():
            pass


def in_memory(ends: RestEnds) -> Iterator[None]:
    """Its upstream connections are memory, and its records are kept."""

    class Kept(Record[Any]):
        __slots__ = ()

        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            ends.records.append(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(upstream, "dial", ends.dial)
        patch.setattr(connection, "Record", Kept)
        patch.setattr(audit_query, "in_thread", ends.loop.in_thread)
        yield
