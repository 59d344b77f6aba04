"""The store: one connection, on which scripts run, each with a deadline.

Any failure ends the connection: whatever state the store or the way to it is in, the next one begins afresh, with the
password and the certificates of the generation in force.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from hashlib import sha1
from importlib import resources
from typing import TYPE_CHECKING, Any, Final, Self

from redis import exceptions
from redis.asyncio import Connection, SSLConnection, UnixDomainSocketConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from tlsproxy.config.endpoints import Endpoint
from tlsproxy.config.shared import StoreAddress
from tlsproxy.errors import FailureKind, MaterialError, TlsproxyError
from tlsproxy.text import printable
from tlsproxy.threads import in_thread
from tlsproxy.tls.client_context import ExpectedServer, client_tls, server_refused

if TYPE_CHECKING:
    from cryptography import x509

    from tlsproxy.snapshot.generation import Generation
    from tlsproxy.snapshot.states import InputState
    from tlsproxy.tls.owncert import OwnCertificate

CONNECT_TIMEOUT: Final = 2.0
"""Seconds to connect, and be let in."""
MAX_TEXT: Final = 200
"""Characters of the store's own words that are shown."""

_Connection = Connection | UnixDomainSocketConnection

_OUTCOMES: Final[tuple[tuple[type[Exception], str], ...]] = (
    (exceptions.BusyLoadingError, "loading"),
    (exceptions.AuthenticationError, "credentials"),
    (exceptions.AuthorizationError, "credentials"),
    (exceptions.NoPermissionError, "credentials"),
    (exceptions.ReadOnlyError, "read_only"),
    (exceptions.OutOfMemoryError, "full"),
    (exceptions.MasterDownError, "read_only"),
    (exceptions.AskError, "cluster"),
    (exceptions.ClusterDownError, "cluster"),
    (exceptions.ClusterCrossSlotError, "cluster"),
    (exceptions.TimeoutError, "timeout"),
    (exceptions.ConnectionError, "unreachable"),
)
_SAID: Final = {
    "BUSY ": "busy",
    "The user executing the script can't run this": "credentials",
    "Protocol error: unauthenticated": "credentials",
}
"""Begins of errors that have no class of their own."""
_ADVICE: Final = {
    "busy": "a script of another program holds it",
    "unreachable": "is the store running there, as shared.url says?",
    "credentials": "see shared.user and shared.password_file, and the store's ACL",
    "read_only": "shared.url names a replica: name the primary",
    "cluster": "shared.url names a node of a cluster: name a server of its own",
}


class StoreError(TlsproxyError):
    """The store gave no answer, or an error. ``outcome`` is a word for it, of those that docs/metrics.md has."""

    kind = FailureKind.ENVIRONMENT

    def __init__(self, outcome: str, text: str) -> None:
        advice = _ADVICE.get(outcome)
        super().__init__(f"{printable(text)[:MAX_TEXT].rstrip('.')}{f'; {advice}' if advice else ''}")
        self.outcome = outcome


@dataclass(frozen=True, slots=True)
class Script:
    text: str
    digest: str

    @classmethod
    def named(cls, name: str) -> Self:
        text = resources.files(__package__).joinpath(f"{name}.lua").read_text("utf-8")
        return cls(text, sha1(text.encode(), usedforsecurity=False).hexdigest())


@dataclass(frozen=True, slots=True)
class StoreAccess:
    """Proofs for the store, and of it, by a generation. ``trust`` are the CAs of its certificate."""

    user: str | None = None
    password: str | None = field(default=None, repr=False)
    trust: InputState[tuple[x509.Certificate, ...]] | None = None
    certificate: InputState[OwnCertificate] | None = None
    key_path: str = field(default="", compare=False)

    @classmethod
    def of(cls, generation: Generation) -> Self:
        shared, states = generation.config.shared, generation.states
        password = None if shared.password_file is None else states.secrets.get(shared.password_file)
        return cls(
            shared.user,
            None if password is None else password.value,
            None if shared.ca_cert is None else states.server_authorities[shared.ca_cert],
            None if shared.cert is None else states.client_certificates[shared.cert],
            str(shared.key),
        )


@dataclass(frozen=True, slots=True)
class _Link:
    """A connection that was let in, and what closes it."""

    connection: _Connection
    writer: asyncio.StreamWriter

    async def end(self) -> None:
        """At once: the library would wait for a TLS peer that does not answer, for up to half a minute."""
        self.writer.transport.abort()
        await self.connection.disconnect(nowait=True)
        with suppress(OSError):
            await self.writer.wait_closed()


class Store:
    """One store, connected to when first asked. ``timeout`` is seconds for an answer."""

    def __init__(self, address: StoreAddress, timeout: float, access: StoreAccess) -> None:
        self.address = address
        self._timeout, self._access = timeout, access
        self._link: _Link | None = None
        self._connecting: asyncio.Task[_Link] | None = None

    async def run(self, script: Script, keys: Sequence[str], values: Sequence[bytes | str | float]) -> Any:
        """Answer of a script. Raises StoreError."""
        connection, arguments = (await self.reach()).connection, (len(keys), *keys, *values)
        try:
            async with asyncio.timeout(self._timeout):
                try:
                    await connection.send_command("EVALSHA", script.digest, *arguments)
                    return await connection.read_response()
                except exceptions.NoScriptError:
                    await connection.send_command("EVAL", script.text, *arguments)
                    return await connection.read_response()
        except TimeoutError:
            await self.close()
            raise StoreError("timeout", f"no answer within {self._timeout:g} s") from None
        except (exceptions.RedisError, OSError) as error:
            await self.close()
            raise _failure(error) from None
        except asyncio.CancelledError:
            await self.close()
            raise

    async def reach(self) -> _Link:
        """Connects, unless it is connected. Raises StoreError."""
        if self._link is None:
            self._link = await self._connected()
        return self._link

    async def renew(self, access: StoreAccess) -> None:
        """Connect with other proofs from now on. The present connection serves until one of these is let in, unless it
        was let in by other CAs. Raises StoreError.
        """
        former, self._access = self._access, access
        if former.trust != access.trust:
            await self.close()
        link = await self._connected()
        present, self._link = self._link, link
        if present is not None:
            await present.end()

    @property
    def connected(self) -> bool:
        return self._link is not None

    async def close(self) -> None:
        """Returns when the loop has closed the connection too, after :data:`CONNECT_TIMEOUT` at most."""
        link, self._link = self._link, None
        connecting, self._connecting = self._connecting, None
        if link is not None:
            await link.end()
        if connecting is not None:
            with suppress(StoreError):
                await (await connecting).end()

    async def _connected(self) -> _Link:
        """A TLS handshake that is cancelled leaves uvloop a connection to its end, or an error in the log. So this one
        goes on, and :meth:`close` waits for it.
        """
        self._connecting = asyncio.create_task(self._connect())
        link = await asyncio.shield(self._connecting)
        self._connecting = None
        return link

    async def _connect(self) -> _Link:
        made: list[_Link] = []

        async def enter(connection: _Connection) -> None:
            made.append(_Link(connection, connection._writer))  # type: ignore[arg-type]  # noqa: SLF001 - see _Link.end
            await connection.on_connect()

        try:
            async with asyncio.timeout(CONNECT_TIMEOUT):
                connection = await in_thread(_connection, self.address, self._access, enter)
                await connection.connect()  # type: ignore[no-untyped-call]
        except MaterialError as error:
            failure = StoreError("files", str(error))
        except TimeoutError:
            failure = StoreError("timeout", f"no connection within {CONNECT_TIMEOUT:g} s")
        except (exceptions.RedisError, OSError) as error:
            failure = _failure(error)
        else:
            return made[0]
        for link in made:
            await link.end()
        raise failure


def _failure(error: Exception) -> StoreError:
    causes: list[BaseException] = [error]
    while (inner := causes[-1].__cause__ or causes[-1].__context__) is not None:
        causes.append(inner)
    refused = next((cause for cause in causes if isinstance(cause, ssl.SSLError)), None)
    if refused is not None:
        return StoreError("tls", str(server_refused(refused)))
    text = str(error)
    said = (outcome for begin, outcome in _SAID.items() if text.startswith(begin))
    known = (outcome for kind, outcome in _OUTCOMES if isinstance(error, kind))
    return StoreError(next(said, None) or next(known, "error"), text)


def _connection(
    address: StoreAddress, access: StoreAccess, enter: Callable[[Any], Coroutine[Any, Any, None]]
) -> _Connection:
    """Raises MaterialError."""
    options: dict[str, Any] = {
        "username": access.user,
        "password": access.password,
        "db": address.database,
        "protocol": 2,
        "retry": Retry(NoBackoff(), 0),
        "socket_timeout": None,
        "socket_connect_timeout": CONNECT_TIMEOUT,
        "driver_info": None,
        "redis_connect_func": enter,
    }
    if not isinstance(address.endpoint, Endpoint):
        return UnixDomainSocketConnection(path=address.endpoint, **options)
    host = address.endpoint.host
    options |= {"host": host, "port": address.endpoint.port, "socket_keepalive": True}
    if not address.tls:
        return Connection(**options)
    connection = SSLConnection(**options)
    tls = client_tls(
        () if access.trust is None else access.trust.value,
        server_name=host,
        expected=ExpectedServer(host),
        certificate=None if access.certificate is None else access.certificate.value,
        key_path=access.key_path,
    )
    connection.ssl_context.context = tls.context  # the library's own would trust the system's roots besides
    return connection
