"""Names of a configuration → addresses, asked for with a deadline: a resolver that is down holds nothing up."""

from __future__ import annotations

import socket
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from tlsproxy.config.endpoints import is_address, upstream_endpoint
from tlsproxy.config.listeners import PROTOCOLS, listening, tunnels

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tlsproxy.config.model import Config

DEADLINE: Final = 1.0
"""Seconds for all names of a reload together. One that takes longer is known at the next attempt."""
AT_START: Final = 5.0
"""Seconds at the start, when there are no former addresses."""

Address: TypeAlias = tuple[int, tuple[Any, ...]]


@dataclass(frozen=True, slots=True)
class Resolved:
    """A name's addresses, in the order to try them. ``error`` says why there are none."""

    url: str
    addresses: tuple[Address, ...] = ()
    error: str = ""


def names_of(config: Config, started: Config) -> dict[str, str]:
    """What is dialled, by its place in the configuration: URLs. ``started`` says what has been bound.

    REST always: what a token depends on is asked there.
    """
    served = {"rest", *(protocol for listener in listening(started) for protocol in listener.protocols)}
    names = {f"upstream.{name}": getattr(config.upstream, name) for name in PROTOCOLS if name in served}
    return names | {
        tunnel_name(where): f"http://{one.upstream}" for where, one in tunnels(config, started.service.host).items()
    }


def tunnel_name(where: str) -> str:
    return f"listeners: {where}"


class NameResolver:
    """At most one question about each name is open at a time, since none can be taken back."""

    def __init__(self) -> None:
        self._open: dict[str, _Lookup] = {}

    def resolve(self, urls: Mapping[str, str], deadline: float) -> dict[str, Resolved]:
        """By the keys of ``urls``. Blocks for up to ``deadline`` seconds."""
        end = time.monotonic() + deadline
        asked = {url: self._ask(url) for url in urls.values()}
        for question in asked.values():
            question.done.wait(max(0.0, end - time.monotonic()))
        self._open = {url: question for url, question in asked.items() if not question.done.is_set()}
        late = f"has not been resolved within {deadline:g} s"
        return {
            name: asked[url].answer or Resolved(url, error=f"{upstream_endpoint(url).host} {late}")
            for name, url in urls.items()
        }

    def _ask(self, url: str) -> _Lookup:
        if (question := self._open.get(url)) is not None:
            return question
        question = _Lookup(url)
        if is_address(upstream_endpoint(url).host):
            question.ask()
        else:
            threading.Thread(target=question.ask, name=f"resolve {url}", daemon=True).start()
        return question


class _Lookup:
    def __init__(self, url: str) -> None:
        self._url = url
        self.answer: Resolved | None = None
        self.done = threading.Event()

    def ask(self) -> None:
        endpoint = upstream_endpoint(self._url)
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
