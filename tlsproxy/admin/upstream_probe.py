"""Questions of the gateway's own to its upstream: whether it answers, in the right protocol, and takes our API key.

REST is asked `GET /`, gRPC its health check, over a connection that is kept. Both are free of credentials in Qdrant, so
each new connection is first asked for the list of collections too, which is not: Qdrant reads its keys only when it
starts. What does not answer so is asked in other protocols, to tell what it is.
"""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from errno import EMFILE, ENFILE
from typing import TYPE_CHECKING, Any, Final

from tlsproxy.admin.probe_conversations import AGENT, GrpcConversation, ProbeSocket, RestConversation
from tlsproxy.admin.readiness import OK, Part
from tlsproxy.admin.upstream_findings import Finding, Found, Speech, found_instead, speech_of
from tlsproxy.config.model import HttpProtocol
from tlsproxy.errors import TlsproxyError
from tlsproxy.tls.client_context import ServerRefused
from tlsproxy.wire import http2

if TYPE_CHECKING:
    from tlsproxy.snapshot.nodes import Upstream

DEADLINE: Final = 3.0
"""Seconds for all of a question, its answer, and the search for another protocol."""
GREETED: Final = 0.5
"""Seconds for the answer to a greeting in another protocol."""
PATIENCE: Final = 1.0
"""Seconds that a caller waits for a running question; after that it is told the former answer, if there is one."""
REUSED: Final = 1.0
"""Seconds for which an answer is reused."""
LONGEST_PAUSE: Final = 4.0
"""Seconds between two questions to an upstream that fails: 1, 2, 4."""

_EXHAUSTED: Final = frozenset((EMFILE, ENFILE))
_NO_TLS: Final = frozenset(("not_tls", "closed"))
"""Reasons of a refusal by which a server may speak no TLS at all."""
_HTTP1: Final = b"GET / HTTP/1.1\r\nhost: localhost\r\nuser-agent: %b\r\nconnection: close\r\n\r\n" % AGENT
_HTTP2: Final = http2.PREFACE + http2.settings({})


@dataclass(frozen=True, slots=True)
class Target:
    """One API of a node, with the API key it asks for."""

    protocol: HttpProtocol
    upstream: Upstream
    key: str | None = field(repr=False)

    @property
    def url(self) -> str:
        return self.upstream.url

    @property
    def host(self) -> str:
        return self.upstream.authority.decode()

    def share_of(self, seconds: float) -> float:
        """Part of a deadline in which one of its addresses takes the connection, so that the next one gets its own."""
        return seconds / max(1, len(self.upstream.addresses))


class UpstreamProbe:
    """``target`` returns the present one; ``unreachable`` is called where none of its addresses takes a connection,
    ``answered`` with what was found of the present target.
    """

    def __init__(
        self,
        target: Callable[[], Target],
        unreachable: Callable[[], object] = lambda: None,
        answered: Callable[[Found], object] = lambda _found: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._target = target
        self._unreachable = unreachable
        self._answered = answered
        self._clock = clock
        self._asked: Target | None = None
        self._asking: asyncio.Task[None] | None = None
        self._conversation: RestConversation | GrpcConversation | None = None
        self._part, self._known = OK, False
        self._pause = 0.0
        self._due = float("-inf")
        self._doubted = False

    async def __call__(self) -> Part:
        target = self._target()
        if self._asked is None or target != self._asked or target.upstream.tls is not self._asked.upstream.tls:
            self.close()
            self._asked, self._due, self._pause = target, float("-inf"), 0.0
            self._part, self._known = Found(Finding.SILENT, f"{DEADLINE:g}").part(target.protocol, target.url), False
        if self._asking is None or self._asking.done():
            if self._clock() < self._due:
                return self._part
            self._asking = asyncio.create_task(self._ask(target))
        await asyncio.wait([self._asking], timeout=PATIENCE if self._known else DEADLINE)
        return self._part

    def doubt(self) -> None:
        """A request has failed: an answer from before counts no more."""
        self._doubted = True
        if self._part.good:
            self._due = float("-inf")

    def close(self) -> None:
        asking, self._asking = self._asking, None
        if asking is None or asking.done():
            self._hang_up()
            return
        conversation, self._conversation = self._conversation, None
        asking.cancel()
        if conversation is not None:  # once the loop no longer waits for its socket
            asking.add_done_callback(lambda _: conversation.socket.close())

    def _hang_up(self) -> None:
        if self._conversation is not None:
            self._conversation.socket.close()
            self._conversation = None

    async def _ask(self, target: Target) -> None:
        if self._doubted:  # its key may be another one by now
            self._hang_up()
        self._doubted = False
        found = await self._found(target)
        if found is not None:
            self._part, self._known = found.part(target.protocol, target.url), True
        self._pause = 0.0 if self._part.good else min(max(2 * self._pause, REUSED), LONGEST_PAUSE)
        self._due = self._clock() + max(self._pause, REUSED)
        if self._doubted and self._part.good:
            self._due = float("-inf")
        if found is not None and target == self._target():
            self._answered(found)
        if found is not None and found.finding is Finding.UNREACHABLE:
            self._unreachable()

    async def _found(self, target: Target) -> Found | None:
        """None without a descriptor to ask by."""
        if self._conversation is not None:
            try:
                async with asyncio.timeout(DEADLINE):
                    return await self._conversation.ask()
            except TimeoutError:
                self._hang_up()
                return Found(Finding.SILENT, f"{DEADLINE:g}")
            except (OSError, ValueError, EOFError, TlsproxyError):  # the upstream has ended it meanwhile, as it may
                self._hang_up()
        found, self._conversation = await asked(target)
        return found


async def found_about(targets: Sequence[Target]) -> list[tuple[Part, str]]:
    """A part of readiness for each target, asked once, and the version that a good one says."""
    answers = await asyncio.gather(*map(asked, targets))
    for _, conversation in answers:
        if conversation is not None:
            conversation.socket.close()
    exhausted = Found(Finding.UNREACHABLE, os.strerror(EMFILE))
    return [
        ((found or exhausted).part(target.protocol, target.url), found.version if found is not None else "")
        for target, (found, _) in zip(targets, answers, strict=True)
    ]


async def asked(target: Target) -> tuple[Found | None, RestConversation | GrpcConversation | None]:
    """The finding, and the connection if it may be asked again. None without a descriptor to ask by."""
    found: Found | None = Found(Finding.NO_ADDRESS)
    try:
        async with asyncio.timeout(DEADLINE):
            for address in target.upstream.addresses:
                share = target.share_of(DEADLINE)
                try:
                    async with asyncio.timeout(share if target.upstream.tls is None else share / 2):
                        sock = await _spoken_to(target, address)
                except ServerRefused as refusal:
                    found = Found(Finding.NO_TLS, f"{refusal} ({refusal.reason})")
                    return await _in_clear(target, address, found) if refusal.reason in _NO_TLS else found, None
                except TimeoutError:
                    found = await _in_clear(target, address, Found(Finding.SILENT, f"{DEADLINE:g}"))
                    continue
                except OSError as error:
                    if error.errno in _EXHAUSTED:
                        return None, None
                    # The text of asyncio ("Connect call failed") lacks the cause.
                    found = Found(Finding.UNREACHABLE, os.strerror(error.errno) if error.errno else str(error))
                    continue
                return await _asked_over(sock, target, address)
    except TimeoutError:
        return Found(Finding.SILENT, f"{DEADLINE:g}"), None
    return found, None


async def is_ready(target: Target, deadline: float) -> bool | None:
    """Whether a node takes requests now, by its own word. None without a descriptor to ask by.

    Raises TimeoutError where it has not said so in ``deadline`` seconds, and ServerRefused where TLS with it fails.
    """
    async with asyncio.timeout(deadline):
        return await _is_ready(target, target.share_of(deadline))


async def _is_ready(target: Target, share: float) -> bool | None:
    kind = RestConversation if target.protocol == "rest" else GrpcConversation
    refused: ServerRefused | None = None
    for address in target.upstream.addresses:
        try:
            async with asyncio.timeout(share):
                sock = await _spoken_to(target, address)
        except ServerRefused as refusal:
            refused = refusal
            continue
        except OSError as error:  # or it was too late
            if error.errno in _EXHAUSTED:
                return None
            continue
        conversation = kind(sock, target.host, target.key)
        try:
            return await conversation.is_ready()
        except ServerRefused:
            raise
        except (OSError, ValueError, EOFError, TlsproxyError):
            return False
        finally:
            conversation.socket.close()
    if refused is not None:
        raise refused
    return False


async def _spoken_to(target: Target, address: tuple[int, Any]) -> ProbeSocket:
    """A connection over which the target can be asked. Raises OSError."""
    sock = ProbeSocket(await _connected(address))
    try:
        if target.upstream.tls is not None:
            await sock.shake_hands(target.upstream.tls)
    except BaseException:
        sock.close()
        raise
    return sock


async def _asked_over(
    sock: ProbeSocket, target: Target, address: tuple[int, Any]
) -> tuple[Found, RestConversation | GrpcConversation | None]:
    kind = RestConversation if target.protocol == "rest" else GrpcConversation
    conversation = kind(sock, target.host, target.key)
    kept = False
    try:
        found = await conversation.ask()
        if found.finding is Finding.GOOD:
            if not conversation.usable:
                conversation.socket.close()
                conversation = kind(await _spoken_to(target, address), target.host, target.key)
            of_key = await conversation.ask_for_key()
            found = found if of_key.finding is Finding.GOOD else of_key
        kept = conversation.usable
    except ServerRefused as refusal:
        found = Found(Finding.NO_TLS, f"{refusal} ({refusal.reason})")
    except (OSError, ValueError, EOFError, TlsproxyError):
        heard = conversation.socket.heard
        if target.upstream.tls is None:
            found = await _otherwise(target.protocol, address, heard)
        else:
            found = found_instead(target.protocol, speech_of(heard)) if heard else Found(Finding.CLOSES_TLS)
    else:
        if found.finding is Finding.FAILS and target.upstream.tls is None:
            instead = await _otherwise(target.protocol, address, conversation.socket.heard)
            found = instead if instead.finding in {Finding.SPEAKS_TLS, Finding.OTHER_PORT} else found
    finally:
        if not kept:
            conversation.socket.close()
    return found, conversation if kept else None


async def _otherwise(protocol: HttpProtocol, address: tuple[int, Any], heard: bytes) -> Found:
    """The finding about a server that did not answer in our protocol. ``heard``: what it sent.

    TLS first: many servers tell a client in plain HTTP/1 that it should have spoken TLS.
    """
    speech = await _greeted(address, _client_hello())
    if speech is not Speech.TLS:
        speech = speech_of(heard)
    if speech is Speech.UNKNOWN:
        speech = await _greeted(address, _HTTP2 if protocol == "rest" else _HTTP1)
    return Found(Finding.CLOSES) if speech is Speech.UNKNOWN and not heard else found_instead(protocol, speech)


async def _in_clear(target: Target, address: tuple[int, Any], otherwise: Found) -> Found:
    """The finding about a server that does not answer to TLS: maybe it speaks HTTP in plaintext."""
    if target.upstream.tls is None:
        return otherwise
    for greeting in (_HTTP1, _HTTP2) if target.protocol == "rest" else (_HTTP2, _HTTP1):
        speech = await _greeted(address, greeting)
        if speech in {Speech.HTTP1, Speech.HTTP2}:
            return Found(Finding.SPEAKS_CLEAR, speech.value)
    return otherwise


async def _greeted(address: tuple[int, Any], greeting: bytes) -> Speech:
    """The protocol in which a server answers the greeting."""
    try:
        async with asyncio.timeout(GREETED):
            with await _connected(address) as sock:
                loop = asyncio.get_running_loop()
                await loop.sock_sendall(sock, greeting)
                return speech_of(await loop.sock_recv(sock, 4096))
    except OSError:  # or it was too late
        return Speech.UNKNOWN


def _client_hello() -> bytes:
    """The first message of a TLS handshake. Nothing is sent on after it, so nothing is trusted."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    outgoing = ssl.MemoryBIO()
    try:
        context.wrap_bio(ssl.MemoryBIO(), outgoing).do_handshake()
    except ssl.SSLWantReadError:
        return outgoing.read()
    raise RuntimeError("a handshake without a peer")


async def _connected(address: tuple[int, Any]) -> socket.socket:
    family, where = address
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, where[0] if family == socket.AF_UNIX else where)
    except BaseException:
        sock.close()
        raise
    return sock
