"""Resolution of the configuration's names, with a deadline: a resolver that is down holds nothing up."""

from __future__ import annotations

import socket
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from tlsproxy.config.endpoints import UNIX, UnixSocket, is_address, upstream_url
from tlsproxy.config.listeners import PROTOCOLS, listening, tunnels
from tlsproxy.config.upstream import nodes_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tlsproxy.config.model import Config, HttpProtocol

DEADLINE: Final = 1.0
"""Seconds for all names of a reload together. A later answer is there at the next attempt."""
START_DEADLINE: Final = 5.0
"""Seconds at the start, where there are no former addresses."""

Address: TypeAlias = tuple[int, tuple[Any, ...]]
"""(family, sockaddr), as getaddrinfo gives them; of a unix socket the path, in a tuple too."""


@dataclass(frozen=True, slots=True)
class Resolved:
    """Addresses of a name, in the order to try; ``error`` is the reason if there are none."""

    url: str
    addresses: tuple[Address, ...] = ()
    error: str = ""


def names_of(config: Config, started: Config) -> dict[str, str]:
    """URLs to dial, by configuration key; ``started`` has the bound listeners.

    The REST API of each node is always among them: the `value_exists` condition of a token is checked there.
    """
    served = {"rest", *(protocol for listener in listening(started) for protocol in listener.protocols)}
    names = {
        node_name(config, node.name, protocol): url
        for node in nodes_of(config.upstream)
        for protocol in PROTOCOLS
        if protocol in served and (url := getattr(node, protocol)) is not None
    }
    return names | {
        tunnel_name(where): _url_of(one.upstream or "", tls=one.upstream_tls is not None)
        for where, one in tunnels(config, started.service.host).items()
    }


def node_name(config: Config, name: str, protocol: HttpProtocol) -> str:
    """Key of a node's API: `upstream.rest`, of several nodes `upstream.nodes.NAME.rest`."""
    return f"upstream.nodes.{name}.{protocol}" if config.upstream.nodes else f"upstream.{protocol}"


def _url_of(upstream: str, *, tls: bool) -> str:
    """URL of the upstream of a listener of mode tcp."""
    return upstream if upstream.startswith(UNIX) else f"{'https' if tls else 'http'}://{upstream}"


def is_fixed(url: str) -> bool:
    """Whether a URL has an address, so that there is nothing to resolve."""
    endpoint = upstream_url(url).endpoint
    return isinstance(endpoint, UnixSocket) or is_address(endpoint.host)


def tunnel_name(where: str) -> str:
    return f"listeners: {where}"


class NameResolver:
    """At most one lookup of each name runs at a time, since none can be cancelled."""

    def __init__(self) -> None:
        self._pending: dict[str, _Lookup] = {}

    def resolve(self, urls: Mapping[str, str], deadline: float) -> dict[str, Resolved]:
        """Addresses by the keys of ``urls``. Blocks for up to ``deadline`` seconds."""
        end = time.monotonic() + deadline
        lookups = {url: self._look_up(url) for url in urls.values()}
        for lookup in lookups.values():
            lookup.done.wait(max(0.0, end - time.monotonic()))
        self._pending = {url: lookup for url, lookup in lookups.items() if not lookup.done.is_set()}
        late = f"has not been resolved within {deadline:g} s"
        return {
            name: lookups[url].answer or Resolved(url, error=f"{upstream_url(url).endpoint} {late}")
            for name, url in urls.items()
        }

    def _look_up(self, url: str) -> _Lookup:
        if (lookup := self._pending.get(url)) is not None:
            return lookup
        lookup = _Lookup(url)
        if is_fixed(url):
            lookup.run()
        else:
            threading.Thread(target=lookup.run, name=f"resolve {url}", daemon=True).start()
        return lookup


class _Lookup:
    def __init__(self, url: str) -> None:
        self._url = url
        self.answer: Resolved | None = None
        self.done = threading.Event()

    def run(self) -> None:
        endpoint = upstream_url(self._url).endpoint
        if isinstance(endpoint, UnixSocket):
            self.answer = Resolved(self._url, ((int(socket.AF_UNIX), (endpoint.sockaddr,)),))
            self.done.set()
            return
        flags = socket.AI_NUMERICHOST if is_address(endpoint.host) else 0
        try:
            found = socket.getaddrinfo(endpoint.host, endpoint.port, type=socket.SOCK_STREAM, flags=flags)
        except (OSError, UnicodeError) as error:
            reason = getattr(error, "strerror", None) or error
            self.answer = Resolved(self._url, error=f"{endpoint.host} cannot be resolved ({reason})")
        else:
            addresses = dict.fromkeys((int(family), address) for family, _, _, _, address in found)
            self.answer = Resolved(self._url, tuple(addresses))
        finally:
            self.done.set()
