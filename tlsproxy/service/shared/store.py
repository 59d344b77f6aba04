"""The store: one connection, on which scripts run, each with a deadline.

Any failure ends the connection: whatever state the store or the way to it is in, the next one begins afresh. Passwords
and certificates are read for each, so that renewed ones need nothing else.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha1
from importlib import resources
from typing import Any, Final, Self

from redis import exceptions
from redis.asyncio import Connection, SSLConnection, UnixDomainSocketConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from tlsproxy.config.endpoints import Endpoint
from tlsproxy.config.secrets import secret_in
from tlsproxy.config.shared import SharedConfig, StoreAddress, store_address
from tlsproxy.errors import FailureKind, MaterialError, TlsproxyError
from tlsproxy.snapshot.reading import read_argument
from tlsproxy.text import printable
from tlsproxy.threads import in_thread

CONNECT_TIMEOUT: Final = 2.0
"""Seconds to read the files, connect, and be let in."""
MAX_TEXT: Final = 200
"""Characters of the store's own words that are shown."""
_LARGEST_FILE: Final = 1 << 20

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
_ADVICE: Final = {
    "credentials": "see shared.user and shared.password_file, and the store's ACL",
    "read_only": "shared.url names a replica: name the primary",
    "cluster": "shared.url names a node of a cluster: name a server of its own",
}


class StoreError(TlsproxyError):
    """The store gave no answer, or an error. ``outcome`` is a word for it, one of :data:`OUTCOMES`."""

    kind = FailureKind.ENVIRONMENT

    def __init__(self, outcome: str, text: str) -> None:
        advice = _ADVICE.get(outcome)
        super().__init__(f"{printable(text)[:MAX_TEXT]}{f'; {advice}' if advice else ''}")
        self.outcome = outcome


OUTCOMES: Final = (
    *dict.fromkeys(outcome for _, outcome in _OUTCOMES),
    "tls",
    "files",
    "error",
)


@dataclass(frozen=True, slots=True)
class Script:
    text: str
    digest: str

    @classmethod
    def named(cls, name: str) -> Self:
        text = resources.files(__package__).joinpath(f"{name}.lua").read_text("utf-8")
        return cls(text, sha1(text.encode(), usedforsecurity=False).hexdigest())


class Store:
    """One store, connected to when first asked."""

    def __init__(self, config: SharedConfig) -> None:
        """``config`` has a URL that was checked."""
        self._config = config
        self.address = store_address(config.url or "")
        self._connection: _Connection | None = None

    async def run(self, script: Script, keys: Sequence[str], values: Sequence[bytes | str | float]) -> Any:
        """Answer of a script. Raises StoreError."""
        connection, arguments = self._connection or await self._connected(), (len(keys), *keys, *values)
        try:
            async with asyncio.timeout(self._config.timeout):
                try:
                    await connection.send_command("EVALSHA", script.digest, *arguments)
                    return await connection.read_response()
                except exceptions.NoScriptError:
                    await connection.send_command("EVAL", script.text, *arguments)
                    return await connection.read_response()
        except TimeoutError:
            await self.close()
            raise StoreError("timeout", f"no answer within {self._config.timeout:g} s") from None
        except (exceptions.RedisError, OSError) as error:
            await self.close()
            raise _failure(error) from None
        except asyncio.CancelledError:
            await self.close()
            raise

    async def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.disconnect(nowait=True)

    async def _connected(self) -> _Connection:
        connection: _Connection | None = None
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT):
                connection = await in_thread(_connection, self._config, self.address)
                await connection.connect()  # type: ignore[no-untyped-call]
                self._connection = connection
        except MaterialError as error:
            raise StoreError("files", str(error)) from None
        except TimeoutError:
            raise StoreError("timeout", f"no connection within {CONNECT_TIMEOUT:g} s") from None
        except (exceptions.RedisError, OSError) as error:
            raise _failure(error) from None
        finally:
            if self._connection is None and connection is not None:
                await connection.disconnect(nowait=True)
        return connection


def _failure(error: Exception) -> StoreError:
    causes: list[BaseException] = [error]
    while (inner := causes[-1].__cause__ or causes[-1].__context__) is not None:
        causes.append(inner)
    if any(isinstance(cause, ssl.SSLError) for cause in causes):
        return StoreError("tls", str(error))
    return StoreError(next((outcome for kind, outcome in _OUTCOMES if isinstance(error, kind)), "error"), str(error))


def _connection(config: SharedConfig, address: StoreAddress) -> _Connection:
    """Blocks while it reads files. Raises MaterialError."""
    path = config.password_file
    options: dict[str, Any] = {
        "username": config.user,
        "password": None if path is None else secret_in(path, read_argument(path, _LARGEST_FILE)),
        "db": address.database,
        "protocol": 2,
        "retry": Retry(NoBackoff(), 0),
        "socket_timeout": None,
        "socket_connect_timeout": CONNECT_TIMEOUT,
        "driver_info": None,
    }
    if not isinstance(address.endpoint, Endpoint):
        return UnixDomainSocketConnection(path=address.endpoint, **options)
    options |= {"host": address.endpoint.host, "port": address.endpoint.port, "socket_keepalive": True}
    if not address.tls:
        return Connection(**options)
    connection = SSLConnection(**options)
    connection.ssl_context.context = _context(config)  # the library's own would trust the system's roots besides
    return connection


def _context(config: SharedConfig) -> ssl.SSLContext:
    """Raises MaterialError."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    path = config.ca_cert
    try:
        context.load_verify_locations(path)
        if config.cert is not None:
            path = config.cert
            context.load_cert_chain(config.cert, config.key, password="")
    except (OSError, ValueError) as error:
        raise MaterialError(str(path), f"cannot be used for the store: {error}") from None
    return context
