"""The configuration model of client mode, and its parsing. It reads no file."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import BeforeValidator, Field, StrictFloat, ValidationError

from tlsproxy.config.callers import Section
from tlsproxy.config.descriptions import NEEDS_RESTART
from tlsproxy.config.endpoints import Endpoint, UnixSocket, check_host, listen_endpoint, tcp_endpoint
from tlsproxy.config.environment import overlay
from tlsproxy.config.findings import Finding
from tlsproxy.config.limits import Count, Seconds
from tlsproxy.config.listeners import TCP, Listening
from tlsproxy.config.loader import drop_null, problem_of, resolve_paths
from tlsproxy.config.model import Logger, upper
from tlsproxy.config.positions import dotted, read_tree
from tlsproxy.config.problems import ConfigError, Problem
from tlsproxy.config.shape import disclosed
from tlsproxy.config.upstream_tls import UpstreamTls
from tlsproxy.config.upstream_tls_checks import section_findings

NO_ALPN: Final = "none"
_USUAL_MODE: Final = "0600"


class ConnectListener(Section):
    """An address for clients on this machine, and the servers that their connections go to."""

    listen: Annotated[str, NEEDS_RESTART]
    """`127.0.0.1:6333`, `"[::1]:6333"`, `unix:/path` or `unix:@name`. Whoever can connect there acts with the client
    certificate, so no address of a network is allowed."""
    unix_mode: Annotated[Literal["0600", "0660", "0666"], NEEDS_RESTART] = _USUAL_MODE
    """Mode of a unix socket at a path, in quotes. 0600: only tlsproxy's own user may connect. 0660: its group too.
    0666: everybody who may enter the directory."""
    targets: tuple[str, ...]
    """Servers as `host:port`, in the order to try. One that failed is tried last, for 1 s at first and up to 60 s."""
    alpn: Literal["h2", "http/1.1", "none"] = NO_ALPN
    """Protocol to announce to the server: `h2` for gRPC, `http/1.1` for REST, `none` for a listener of `mode: tcp`."""

    @property
    def listening(self) -> Listening:
        """The address, named by `listen`."""
        return Listening(listen_endpoint(self.listen), TCP, ("listeners",), self.listen, int(self.unix_mode, 8))


class ConnectTls(UpstreamTls):
    """Our client certificate, and the server that must be at the other end. Changed files take effect at once: new
    connections use them.
    """

    poll_interval: Seconds = 10.0
    """Seconds between two readings of the files; notifications make changes prompt."""
    read_timeout: Seconds = 5.0
    """Seconds for a file system to answer."""
    settle_time: Annotated[StrictFloat, Field(ge=0, le=3600)] = 5.0
    """Seconds for which `cert` and `key` may not belong together while they are replaced, before that is an error."""


class ConnectLimits(Section):
    """Limits of connections."""

    max_connections: Count = 1000
    """Most connections at a time, of all listeners. More are closed at once."""
    connect_timeout: Seconds = 5.0
    """Seconds for a TCP connection to one address of a target; the next address, or target, is tried after it."""
    handshake_timeout: Seconds = 10.0
    """Seconds for the TLS handshake there."""
    idle_timeout: Seconds = 3600.0
    """Seconds without a byte in either direction, or in which one side takes none, after which a connection is cut."""
    drain_timeout: Seconds = 30.0
    """Seconds for connections to end after SIGTERM, and for those to a server that is a target no more, or would not be
    accepted any more. Those that are quiet, with an answer as the last that came, are ended before."""


class ConnectHealth(Section):
    """Health checks and metrics."""

    listen: Annotated[str | None, NEEDS_RESTART] = None
    """`host:port`, `unix:/path` (mode 0666) or `unix:@name`, for `/livez`, `/readyz`, `/metrics` and nothing else,
    without authentication; null for no such listener."""


class ConnectConfig(Section):
    """The configuration of `tlsproxy connect`."""

    listeners: tuple[ConnectListener, ...]
    """Addresses to listen on, each with its targets."""
    tls: ConnectTls
    limits: ConnectLimits = ConnectLimits()
    health: ConnectHealth = ConnectHealth()
    resolve_interval: Annotated[StrictFloat, Field(ge=1, le=86400)] = 30.0
    """Seconds after which the names of targets are resolved again; also at once, but at most every second, where a
    connection fails. While a name does not resolve, its former addresses serve."""
    log_level: Annotated[Literal["DEBUG", "INFO", "WARN", "ERROR"], BeforeValidator(upper)] = "INFO"
    """DEBUG, INFO, WARN or ERROR."""
    logger: Annotated[Logger, NEEDS_RESTART] = Logger()


@dataclass(frozen=True, slots=True)
class Loaded:
    """A configuration with the ``warnings`` on it."""

    config: ConnectConfig
    warnings: tuple[Problem, ...]


def parse(data: bytes, path: Path, environ: Mapping[str, str]) -> Loaded:
    """Parse and check a configuration. Raises ConfigError with all problems. Paths are relative to ``path``'s."""
    tree = read_tree(data, str(path), partial(disclosed, root=ConnectConfig))
    overlaid = overlay(tree, environ, ConnectConfig)
    drop_null(tree, ConnectConfig)
    base = path.absolute().parent
    problems = [
        *tree.problems,
        *overlaid.problems,
        *resolve_paths(tree, lambda _where: base, environ, ConnectConfig),
    ]
    try:
        config = ConnectConfig.model_validate(tree.root)
    except ValidationError as error:
        details = error.errors(include_url=False, include_input=False)
        problems += [problem_of(tree, detail, ConnectConfig) for detail in details]
    else:
        problems += [tree.position(each.path).problem(each.path, each.text) for each in _findings(config)]
    if problems:
        raise ConfigError(sorted(problems, key=lambda problem: (problem.line, problem.column)))
    return Loaded(config, tuple(overlaid.warnings))


def _findings(config: ConnectConfig) -> Iterator[Finding]:
    taken: list[tuple[Endpoint | UnixSocket, str]] = []
    if not config.listeners:
        yield Finding(("listeners",), "one is needed: {listen: 127.0.0.1:6333, targets: [gateway.example.org:6333]}")
    for index, listener in enumerate(config.listeners):
        before = [each.listen for each in config.listeners[:index]]
        yield from _listen_findings(index, listener, before, taken)
    for index, listener in enumerate(config.listeners):
        yield from _target_findings(index, listener, taken)
    yield from section_findings(("tls",), config.tls)
    if config.health.listen is not None:
        yield from _taken(("health", "listen"), config.health.listen, taken)


def _listen_findings(
    index: int, listener: ConnectListener, before: Collection[str], taken: list[tuple[Endpoint | UnixSocket, str]]
) -> Iterator[Finding]:
    path = ("listeners", index, "listen")
    found = list(_taken(path, listener.listen, taken))
    if listener.listen in before:
        found = [Finding(path, "another listener has this address")]
    yield from found
    if found:
        return
    endpoint = listener.listening.endpoint
    if not endpoint.loopback:
        text = (
            "can be reached from the network, and whoever reaches it would act with our client certificate: listen on"
            " 127.0.0.1, [::1] or a unix socket"
        )
        yield Finding(path, text)
    if listener.unix_mode != _USUAL_MODE and not (isinstance(endpoint, UnixSocket) and not endpoint.abstract):
        yield Finding(("listeners", index, "unix_mode"), "only a unix socket at a path has a mode: leave this out")


def _taken(
    path: tuple[str | int, ...], listen: str, taken: list[tuple[Endpoint | UnixSocket, str]]
) -> Iterator[Finding]:
    """Findings on an address, which is ``taken`` then."""
    try:
        endpoint = listen_endpoint(listen)
    except ValueError as error:
        yield Finding(path, str(error))
        return
    for other, place in taken:
        if other.overlaps(endpoint):
            yield Finding(path, f"{endpoint} is taken: {place} listens on {other}")
            return
    taken.append((endpoint, dotted(path)))


def _target_findings(
    index: int, listener: ConnectListener, taken: Collection[tuple[Endpoint | UnixSocket, str]]
) -> Iterator[Finding]:
    if not listener.targets:
        yield Finding(("listeners", index, "targets"), "one is needed: [gateway.example.org:6333]")
    for place, target in enumerate(listener.targets):
        path = ("listeners", index, "targets", place)
        try:
            endpoint = tcp_endpoint(target)
        except ValueError as error:
            yield Finding(path, str(error))
            continue
        if isinstance(endpoint, UnixSocket):
            yield Finding(path, "a unix socket is reached in plaintext: host:port of a TLS server is expected")
            continue
        try:
            check_host(endpoint.host)
        except ValueError as error:
            yield Finding(path, str(error))
        if own := next((where for each, where in taken if _leads_to(endpoint, each)), None):
            yield Finding(path, f"{own} listens there: connections would lead back to us without end")
        if target in listener.targets[:place]:
            yield Finding(path, "is named twice")


def _leads_to(target: Endpoint, own: Endpoint | UnixSocket) -> bool:
    """Whether a connection to the target would be one to an address of ours."""
    if isinstance(own, UnixSocket) or not own.loopback:  # one that is not is a mistake of its own
        return False
    return own.port == target.port and (own.bound == target.bound or target.wildcard)
