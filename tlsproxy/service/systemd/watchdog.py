"""The watchdog: notifies systemd as long as our own listeners answer.

A gateway's probe is a client without a certificate. Its handshake must end in the alert certificate_required (RFC 8446
§6.2) where one is required, and must finish elsewhere. It depends on the accept loop, the event loop and the TLS layer,
as every client does: when one of them is stuck, systemd gets no notification and restarts the service.
"""

from __future__ import annotations

import asyncio
import faulthandler
import logging
import os
import socket
import ssl
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any, Final

from tlsproxy.config.networks import unix_peer
from tlsproxy.proxy.frontend.listener import address_of
from tlsproxy.service.systemd.notify import Notifier

_PROBES: Final = 3
"""Probes within WatchdogSec, so that one may fail or be late."""
_LOOPBACK: Final = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - loopback reaches a wildcard

_log = logging.getLogger(__name__)

Ask = Callable[[socket.socket], Awaitable[str]]
Announce = Callable[[tuple[str, int] | None], Awaitable[None]]
"""Announces a probe's address to the data path, and then None when it has ended."""


def _reached(sock: socket.socket) -> Any:
    """The address to connect to: a wildcard is reached at loopback."""
    address = sock.getsockname()
    return (_LOOPBACK.get(address[0], address[0]), *address[1:]) if isinstance(address, tuple) else address


class Watchdog:
    """``ask`` talks to a listener over a connection, and returns what is wrong with it, "" for nothing."""

    def __init__(self, notifier: Notifier, listening: Sequence[socket.socket], ask: Ask, announce: Announce) -> None:
        self._notifier = notifier
        self._targets = [(address_of(sock), sock.family, _reached(sock)) for sock in listening]
        self._ask = ask
        self._announce = announce
        self._interval = notifier.watchdog / _PROBES

    async def run(self) -> None:
        """Probe until cancelled; not at all without WatchdogSec."""
        if self._interval:
            faulthandler.enable()  # systemd ends a stalled process by SIGABRT: the journal then has its stacks
        while self._interval:
            if await self.probe():
                self._notifier.alive()
            await asyncio.sleep(self._interval)

    async def probe(self) -> bool:
        """Whether every listener answered as expected. The log has the answer of one that did not."""
        for address, family, target in self._targets:
            try:
                async with asyncio.timeout(self._interval):
                    wrong = await self._asked(family, target)
            except OSError as error:
                _log.error("the watchdog is not fed: %s: %s", address, str(error) or "no answer in time")
                return False
            if wrong:
                _log.error("the watchdog is not fed: %s %s", address, wrong)
                return False
        return True

    async def _asked(self, family: int, target: Any) -> str:
        with socket.socket(family, socket.SOCK_STREAM) as sock:
            sock.setblocking(False)
            if family == socket.AF_UNIX:
                await self._announce((unix_peer(os.geteuid()), os.getpid()))
            else:
                sock.bind((target[0], 0, *target[2:]))
                await self._announce(sock.getsockname()[:2])
            try:
                await asyncio.get_running_loop().sock_connect(sock, target)
                return await self._ask(sock)
            finally:
                await self._announce(None)


class HandshakeQuestion:
    """A TLS handshake without a certificate. ``required`` returns whether it must be refused now."""

    def __init__(self, required: Callable[[], bool]) -> None:
        self._required = required
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        # Nothing is verified: the server is this very service.
        self._context.check_hostname = False
        self._context.verify_mode = ssl.CERT_NONE
        self._context.minimum_version = ssl.TLSVersion.TLSv1_3

    async def ask(self, sock: socket.socket) -> str:
        refused = await self._refused(sock)
        if refused is self._required():
            return ""
        return f"{'refused' if refused else 'accepted'} a client without a certificate"

    async def _refused(self, sock: socket.socket) -> bool:
        """Whether the handshake was refused for lack of a certificate; False if it finished."""
        loop = asyncio.get_running_loop()
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        tls = self._context.wrap_bio(incoming, outgoing)
        step: Callable[[], object] = tls.do_handshake
        while True:
            try:
                if step() is None:
                    # The client finishes before the server has its certificate (RFC 8446 §2), so the answer follows.
                    step = partial(tls.read, 1)
                    continue
            except ssl.SSLWantReadError:
                await loop.sock_sendall(sock, outgoing.read())
                data = await loop.sock_recv(sock, 65_536)
                incoming.write(data) if data else incoming.write_eof()
            except ssl.SSLError as error:
                if error.reason == "TLSV13_ALERT_CERTIFICATE_REQUIRED":
                    return True
                raise
            else:
                return False
