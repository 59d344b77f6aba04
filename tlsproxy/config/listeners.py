"""Listening addresses of `service` and `listeners`, and their checks.

Names are not resolved: two names of one address are noticed when the second is bound.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from tlsproxy.config.endpoints import (
    UNIX,
    Endpoint,
    UnixSocket,
    admin_endpoint,
    check_host,
    named_socket,
    tcp_endpoint,
    upstream_url,
)
from tlsproxy.config.findings import Finding
from tlsproxy.config.identity_checks import role_findings
from tlsproxy.config.model import Config, HttpProtocol, ListenerConfig, ProtocolName, Protocols
from tlsproxy.config.networks import UNIX as UNIX_PEERS
from tlsproxy.config.networks import Network, findings
from tlsproxy.config.positions import Path, Tree, dotted
from tlsproxy.config.proxy_protocol import ANYBODY, ProxyProtocol, balancers
from tlsproxy.config.queries import query_policy_of
from tlsproxy.config.upstream import UpstreamConfig, urls_of

PROTOCOLS: Final[tuple[HttpProtocol, ...]] = ("rest", "grpc")
ALPN: Final[Mapping[ProtocolName, str]] = {"rest": "http/1.1", "grpc": "h2"}
"""ALPN names (RFC 7301), preferred first: a gRPC client offers h2 alone, a client of REST often both."""
TCP: Final[Protocols] = ("tcp",)
HEALTH: Final[Protocols] = ()
"""Stands for the health listener among TLS contexts: it asks for no client certificate."""
_USUAL_MODE: Final = ListenerConfig().unix_mode
_PLACES: Final = 'an absolute path or an abstract name is expected: /run/tlsproxy/rest.sock, "@tlsproxy"'
_TITLES: Final = {"rest": "REST", "grpc": "gRPC", "tcp": "TCP"}


@dataclass(frozen=True, slots=True)
class Listening:
    """An address to listen on, by the key ``path``. ``protocols`` are in the order of ``PROTOCOLS``.

    ``name`` is the same for the same listener of another configuration: the address, or the key of `service`. ``mode``
    is that of a unix socket at a path.
    """

    endpoint: Endpoint | UnixSocket
    protocols: Protocols
    path: Path
    name: str
    mode: int = 0


def listening(config: Config) -> Iterator[Listening]:
    service = config.service
    of_service: tuple[tuple[str, HttpProtocol], ...] = (("http_port", "rest"), ("grpc_port", "grpc"))
    for key, protocol in of_service:
        port = getattr(service, key)
        if port is not None:
            yield Listening(Endpoint(service.host, port), (protocol,), ("service", key), f"service.{key}")
    seen: Counter[Endpoint | UnixSocket] = Counter()
    for index, listener in enumerate(config.listeners):
        protocols = tuple(protocol for protocol in PROTOCOLS if protocol in listener.protocols)
        endpoint = endpoint_of(listener, service.host)
        seen[endpoint] += 1
        name = f"{endpoint} ({seen[endpoint]})"  # several at port 0 differ by their order alone
        served = TCP if listener.mode == "tcp" else protocols
        yield Listening(endpoint, served, ("listeners", index), name, int(listener.unix_mode, 8))


def endpoint_of(listener: ListenerConfig, host: str) -> Endpoint | UnixSocket:
    """Address of an entry of `listeners`; ``host`` is the default host."""
    if listener.unix is not None:
        return UnixSocket(listener.unix)
    return Endpoint(listener.host or host, listener.port or 0)


def balancers_of(config: Config) -> dict[str, tuple[Network, ...] | None]:
    """Networks of the balancers that speak the PROXY protocol, by the names of listeners; None where none does."""
    settings = [entry.proxy_protocol for entry in config.listeners]
    return {
        one.name: balancers(config.service.proxy_protocol if one.path[0] == "service" else settings[int(one.path[1])])
        for one in listening(config)
    }


def tunnels(config: Config, host: str) -> dict[str, ListenerConfig]:
    """Listeners of mode tcp by their configured address; ``host`` is the default host."""
    return {str(endpoint_of(entry, host)): entry for entry in config.listeners if entry.mode == "tcp"}


def titles(protocols: Protocols) -> str:
    """A text of protocols: `REST and gRPC`."""
    return " and ".join(_TITLES[protocol] for protocol in protocols)


def shown(protocols: Protocols, address: str) -> str:
    """A listener's URL; of one on a unix socket its address."""
    if address.startswith(UNIX):
        return address
    return f"{'tls' if protocols == TCP else 'https'}://{address}"


def places(config: Config, _tree: Tree) -> Iterator[Finding]:
    """Check that each listener has either a port or a unix socket."""
    for index, listener in enumerate(config.listeners):
        path: Path = ("listeners", index)
        if listener.unix is None:
            if listener.port is None:
                yield Finding(path, "port is missing: a port, or `unix:` for a unix socket")
            if listener.unix_mode != _USUAL_MODE:
                yield Finding((*path, "unix_mode"), "unix is missing: this listener has no unix socket")
            continue
        try:
            named_socket(listener.unix, _PLACES)
        except ValueError as error:
            yield Finding((*path, "unix"), str(error))
        for key in ("host", "port"):
            if getattr(listener, key) is not None:
                yield Finding((*path, key), "`unix` stands in place of host and port: leave one of them out")
        if listener.unix.startswith("@") and listener.unix_mode != _USUAL_MODE:
            text = "an abstract socket has no mode: whoever is in the network namespace may connect; use a path"
            yield Finding((*path, "unix_mode"), text)


def repeated(config: Config, _tree: Tree) -> Iterator[Finding]:
    for index, listener in enumerate(config.listeners):
        if len(set(listener.protocols)) < len(listener.protocols):
            yield Finding(("listeners", index, "protocols"), "a protocol is named twice")


def modes(config: Config, _tree: Tree) -> Iterator[Finding]:
    """Check for missing and meaningless keys of each mode."""
    for index, listener in enumerate(config.listeners):
        path: Path = ("listeners", index)
        if listener.mode == "http":
            if not listener.protocols:
                yield Finding(path, "protocols is missing: rest, grpc or both (or mode: tcp)")
            if listener.upstream is not None or listener.allow:
                yield Finding(path, "upstream and allow are for mode: tcp; what a request may do is its role's")
            continue
        if listener.protocols:
            yield Finding((*path, "protocols"), "mode: tcp relays bytes, of whatever protocol: leave protocols out")
        if not listener.allow:
            yield Finding(path, "allow is missing: without a role in it nobody may connect")
        try:
            tcp_endpoint(listener.upstream or "")
        except ValueError as error:
            if listener.upstream:
                yield Finding((*path, "upstream"), str(error))
            else:
                yield Finding(path, f"upstream is missing: {error}")
    if len(tunnels(config, config.service.host)) < sum(entry.mode == "tcp" for entry in config.listeners):
        yield Finding(("listeners",), "two listeners of mode tcp have the same address")


def tcp_roles(config: Config, _tree: Tree) -> Iterator[Finding]:
    roles: list[tuple[Path, str]] = [
        (("listeners", index, "allow", place), role)
        for index, listener in enumerate(config.listeners)
        for place, role in enumerate(listener.allow)
    ]
    yield from role_findings(roles, config)
    for path, name in roles:
        role = config.roles.get(name)
        if role is not None and (role.filter or query_policy_of(role.queries)):
            yield Finding(path, "its `filter` and `queries` hold nothing here: bytes are relayed unread", warning=True)


def proxy_protocol(config: Config, _tree: Tree) -> Iterator[Finding]:
    for index, listener in enumerate(config.listeners):
        if listener.mode == "http" and listener.send_proxy_protocol is not None:
            text = "for mode: tcp; over HTTP the upstream is told the client's address in X-Forwarded-For"
            yield Finding(("listeners", index, "send_proxy_protocol"), text)
    settings: list[tuple[Path, ProxyProtocol | None, bool]] = [
        (("service",), config.service.proxy_protocol, False),
        (("health",), config.health.proxy_protocol, (config.health.listen or "").startswith(UNIX)),
    ]
    settings += (
        (("listeners", index), entry.proxy_protocol, entry.unix is not None)
        for index, entry in enumerate(config.listeners)
    )
    for path, setting, unix in settings:
        if setting is None:
            continue
        where: Path = (*path, "proxy_protocol", "from")
        known = getattr(setting, "from")
        yield from findings(where, known, ANYBODY)
        for place, text in enumerate(known):
            if unix and text != UNIX_PEERS:
                yield Finding((*where, place), f"nobody reaches a unix socket from a network: write {UNIX_PEERS}")
            elif not unix and text == UNIX_PEERS:
                yield Finding((*where, place), "no unix socket: name the balancers' addresses or networks")


def hosts(config: Config, _tree: Tree) -> Iterator[Finding]:
    given: list[tuple[Path, str]] = [(("service", "host"), config.service.host)]
    given += (
        (("listeners", index, "host"), listener.host)
        for index, listener in enumerate(config.listeners)
        if listener.host is not None
    )
    for path, host in given:
        try:
            check_host(host)
        except ValueError as error:
            yield Finding(path, str(error))


def addresses(config: Config, tree: Tree) -> Iterator[Finding]:
    earlier: list[Listening] = []
    for entry in listening(config):
        taken = next((other for other in earlier if other.endpoint.overlaps(entry.endpoint)), None)
        if taken is not None:
            yield Finding(entry.path, f"{entry.endpoint} is taken: {dotted(taken.path)} listens on {taken.endpoint}")
        earlier.append(entry)
    if not earlier and not tree.get(("listeners",)):
        yield Finding(("service", "http_port"), "nothing is served: set http_port, grpc_port or listeners")


def loop(config: Config, _tree: Tree) -> Iterator[Finding]:
    for path, url in urls_of(config.upstream):
        upstream = _readable(url)
        if upstream is not None and any(_reaches(upstream, entry.endpoint) for entry in listening(config)):
            other = "another port" if isinstance(upstream, Endpoint) else "another socket"
            text = f"{upstream} is where tlsproxy itself listens: let Qdrant listen on {other}"
            yield Finding(path, text)


def _readable(url: str) -> Endpoint | UnixSocket | None:
    """The endpoint; None for one that the check of `upstream` reports."""
    try:
        return upstream_url(url).endpoint
    except ValueError:
        return None


def _reaches(upstream: Endpoint | UnixSocket, own: Endpoint | UnixSocket) -> bool:
    if isinstance(upstream, UnixSocket) or isinstance(own, UnixSocket):
        return upstream == own
    here = upstream.loopback and (own.loopback or own.wildcard)
    return upstream.port == own.port and (upstream == own or here)


def grpc_upstream(config: Config, tree: Tree) -> Iterator[Finding]:
    """Check that gRPC goes to the same Qdrant as REST: `grpc` is set unless `rest` is the default."""
    default, upstream = UpstreamConfig(), config.upstream
    served = next((entry for entry in listening(config) if "grpc" in entry.protocols), None)
    if served is None:
        return
    none = "or serve none (service.grpc_port: null)"
    for index, node in enumerate(upstream.nodes):
        if node.grpc is None:
            text = f"grpc is missing: {dotted(served.path)} serves gRPC; write the gRPC API of this node, {none}"
            yield Finding(("upstream", "nodes", index), text)
    if upstream.nodes or tree.get(("upstream", "grpc")) is not None:
        return
    if _readable(upstream.rest) not in {None, upstream_url(default.rest).endpoint}:
        text = (
            f"{dotted(served.path)} serves gRPC, and upstream.rest is not its default: write the gRPC API of the same "
            f"Qdrant (grpc: {default.grpc}), {none}"
        )
        yield Finding(("upstream", "grpc"), text)


def messages(config: Config, _tree: Tree) -> Iterator[Finding]:
    limits = config.limits
    if limits.inspection_memory_mb < limits.max_message_size_mb and any(
        "grpc" in entry.protocols for entry in listening(config)
    ):
        text = f"less than limits.max_message_size_mb ({limits.max_message_size_mb}): such a message is never read"
        yield Finding(("limits", "inspection_memory_mb"), text)


def admin(config: Config, _tree: Tree) -> Iterator[Finding]:
    if config.admin.listen is None:
        return
    try:
        endpoint = admin_endpoint(config.admin.listen)
    except ValueError as error:
        yield Finding(("admin", "listen"), str(error))
        return
    for entry in listening(config):
        if isinstance(endpoint, UnixSocket) or isinstance(entry.endpoint, UnixSocket):
            same = "socket" if endpoint == entry.endpoint else ""
        else:
            same = "port" if endpoint.port and endpoint.port == entry.endpoint.port else ""
        if same:
            yield Finding(("admin", "listen"), f"{dotted(entry.path)} is the same {same}")
