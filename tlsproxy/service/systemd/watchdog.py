"""The watchdog: systemd hears that we are alive as long as our own listeners really answer a TLS handshake.

A probe is a client without a certificate. Where one is required the handshake must end in the alert that says so
(RFC 8446 §6.2, certificate_required), elsewhere it must be finished. It waits as any client does: for the accept loop,
the event loop and the TLS layer. When they stop, it gets no answer, systemd hears nothing, and starts us anew.
"""

from __future__ import annotations

import asyncio
import faulthandler
import logging
import socket
import ssl
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any, Final

from tlsproxy.service.systemd.notify import Notifier

_OFTEN: Final = 3
"""Probes for each time that systemd would wait: one may fail or come late."""
_LOOPBACK: Final = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - what reaches a wildcard

_log = logging.getLogger(__name__)

Announce = Callable[[tuple[str, int] | None], Awaitable[None]]
"""Tells whoever accepts on these sockets from which address a probe is about to come, and then that it has ended."""


class Watchdog:
    """``required`` says whether a handshake without a certificate must be refused now."""

    def __init__(
        self, notifier: Notifier, listening: Sequence[socket.socket], required: Callable[[], bool], announce: Announce
    ) -> None:
        self._notifier = notifier
        self._targets = [(sock.family, sock.getsockname()) for sock in listening]
        self._required = required
        self._announce = announce
        self._every = notifier.watchdog / _OFTEN
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        # It is told nothing and believes nothing: the socket that it asks is our own.
        self._context.check_hostname = False
        self._context.verify_mode = ssl.CERT_NONE
        self._context.minimum_version = ssl.TLSVersion.TLSv1_3

    async def run(self) -> None:
        """Until cancelled; not at all where systemd asked for none."""
        if self._every:
            faulthandler.enable()  # it ends what has stalled by SIGABRT: the journal has the stacks then
        while self._every:
            if await self.probe():
                self._notifier.alive()
            await asyncio.sleep(self._every)

    async def probe(self) -> bool:
        """Whether every listener answered as it should. Where one did not, the log says what it did."""
        for family, address in self._targets:
            host, port, *rest = address
            target = (_LOOPBACK.get(host, host), port, *rest)
            try:
                async with asyncio.timeout(self._every):
                    refused = await self._refused(family, target)
            except OSError as error:
                _log.error("the watchdog is not fed: %s:%d: %s", *target[:2], str(error) or "no answer in time")
                return False
            if refused is not self._required():
                told = "refused" if refused else "accepted"
                _log.error("the watchdog is not fed: %s:%d %s a client without a certificate", *target[:2], told)
                return False
        return True

    async def _refused(self, family: int, target: tuple[Any, ...]) -> bool:
        """Whether a certificate was asked for in vain; False for a handshake that was finished and ended well."""
        with socket.socket(family, socket.SOCK_STREAM) as sock:
            sock.setblocking(False)
            sock.bind((target[0], 0, *target[2:]))
            await self._announce(sock.getsockname()[:2])
            try:
                await asyncio.get_running_loop().sock_connect(sock, target)
                return await self._handshake(sock)
            finally:
                await self._announce(None)

    async def _handshake(self, sock: socket.socket) -> bool:
        loop = asyncio.get_running_loop()
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        tls = self._context.wrap_bio(incoming, outgoing)
        step: Callable[[], object] = tls.do_handshake
        while True:
            try:
                if step() is None:
                    # We are done before the server has seen our certificate (RFC 8446 §2): its answer is yet to come.
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
