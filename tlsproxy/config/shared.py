"""The section `shared`: its model and its address (:mod:`tlsproxy.config.model`)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final
from urllib.parse import unquote, urlsplit

from pydantic import Field, StrictFloat, StrictInt

from tlsproxy.config.callers import Label, Section
from tlsproxy.config.descriptions import NEEDS_RESTART
from tlsproxy.config.endpoints import Endpoint
from tlsproxy.config.upstream_tls import UpstreamTls

PORT: Final = 6379
"""The store's usual port."""
_FORM: Final = "redis://host:port, rediss://host:port (TLS) or unix:/path is expected"


class SharedConfig(Section):
    """A store (Valkey or Redis) by which several gateways keep limits as one: rates, concurrent requests, failed
    authentications, locks. Changed files are reloaded: the gateway connects anew with them.
    """

    url: Annotated[str | None, NEEDS_RESTART] = None
    """`rediss://host:port` (TLS), `redis://host:port`, either with `/NUMBER` for a database other than 0, or
    `unix:/path`; null: this gateway shares nothing. Needs the extra `shared`. One server, no Redis Cluster."""
    user: str | None = None
    """User name for the store; null for its default user."""
    password_file: Path | None = None
    """File that holds the password for the store, or `credential:NAME`."""
    ca_cert: Path | None = None
    """PEM file: the CAs of the store's certificate. Required for `rediss://`. The system's roots are never used."""
    cert: Path | None = None
    """PEM file: the client certificate for the store, then its intermediates."""
    key: Path | None = None
    """PEM file: the private key of `cert`."""
    prefix: Annotated[Label, NEEDS_RESTART] = "tlsproxy"
    """Begin of all keys in the store, `PREFIX:…`. Gateways with the same prefix are one."""
    gateways: Annotated[StrictInt, Field(ge=1, le=10_000), NEEDS_RESTART] = 2
    """Number of gateways to assume until the store has told it: each limit is divided by it while the store is away.
    Afterwards the last known number counts."""
    timeout: Annotated[StrictFloat, Field(ge=0.01, le=10), NEEDS_RESTART] = 0.25
    """Seconds for an answer of the store; without one it counts as away."""

    @property
    def used(self) -> bool:
        return self.url is not None

    @property
    def tls(self) -> UpstreamTls | None:
        """The section of TLS with the store."""
        return None if self.ca_cert is None else UpstreamTls(ca_cert=self.ca_cert, cert=self.cert, key=self.key)


@dataclass(frozen=True, slots=True)
class StoreAddress:
    """``endpoint`` is a path for a unix socket."""

    endpoint: Endpoint | str
    tls: bool
    database: int

    def __str__(self) -> str:
        scheme = "unix:" if isinstance(self.endpoint, str) else "rediss://" if self.tls else "redis://"
        return f"{scheme}{self.endpoint}{f'/{self.database}' if self.database else ''}"


def store_address(url: str) -> StoreAddress:
    """Raises ValueError, whose text never has the URL: it may hold a password."""
    if url.startswith("unix:/") and not url.startswith("unix://"):
        return StoreAddress(url.removeprefix("unix:"), tls=False, database=0)
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        raise ValueError(f"not a URL: {_FORM}") from None
    if parts.scheme not in {"redis", "rediss"} or not host:
        raise ValueError(_FORM)
    if "@" in parts.netloc:
        raise ValueError("a user or password in the URL is not supported: see shared.user and shared.password_file")
    database = unquote(parts.path).removeprefix("/")
    if parts.query or parts.fragment or not (not database or (database.isascii() and database.isdigit())):
        raise ValueError("only the number of a database may follow: rediss://host:port/1")
    return StoreAddress(Endpoint(host, port or PORT), parts.scheme == "rediss", int(database or 0))
