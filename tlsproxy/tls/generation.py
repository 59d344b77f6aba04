"""A generation: everything that a connection is accepted and decided by, as one immutable value.

It is read, checked, built and tried off the event loop, and published by one assignment of whoever owns the listener.
A build that fails raises and changes nothing: the generation in use goes on.
"""

from __future__ import annotations

import socket
import time
from dataclasses import dataclass, field
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from tlsproxy.config.ca_checks import findings
from tlsproxy.config.endpoints import is_address, upstream_endpoint
from tlsproxy.config.listeners import PROTOCOLS, TCP, bound, listening
from tlsproxy.config.listeners import tunnels as tunnels_of
from tlsproxy.config.loader import located
from tlsproxy.config.policy import policy_of
from tlsproxy.config.problems import ConfigError
from tlsproxy.config.secrets import resolve_keys, upstream_api_key
from tlsproxy.config.tokens import KeySource, key_sources, resolve_tokens
from tlsproxy.errors import MaterialError
from tlsproxy.tls.context import build_context, self_handshake
from tlsproxy.tls.files import read_inputs
from tlsproxy.tls.material import Material, load_material

if TYPE_CHECKING:
    import ssl
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from tlsproxy.authz.roles import Policy, Principal
    from tlsproxy.config.model import Config, ProtocolName, Protocols
    from tlsproxy.config.problems import Problem
    from tlsproxy.tls.chains import ChainCertificate
    from tlsproxy.tls.files import Inputs
    from tlsproxy.tls.peer import Peer

ALPN: Final[Mapping[ProtocolName, str]] = {"grpc": "h2", "rest": "http/1.1"}
"""By what name (RFC 7301) a client asks for a protocol. The first that it knows is taken: gRPC has no other way in."""
PRINCIPALS: Final = 4096
NEEDS_RESTART: Final = (
    "service.host",
    "service.http_port",
    "service.grpc_port",
    "listeners",
    "admin.listen",
    "audit.enabled",
    "audit.dir",
    "audit.rotation",
    "audit.max_log_files",
    "audit.on_full",
    "audit.queue_size",
    "audit.flush_interval",
    "logger",
    "workers",
)
"""What is bound or opened once, when the service starts. Of `listeners`, what :func:`bound` says."""

Address: TypeAlias = tuple[int, tuple[Any, ...]]


@dataclass(frozen=True, slots=True)
class Resolved:
    """A name's addresses, and what was wrong with finding them."""

    url: str
    addresses: tuple[Address, ...]
    warning: str = ""


@dataclass(frozen=True, slots=True)
class Tunnel:
    """Where the bytes of a listener of mode tcp go, and the roles whose holders may send some."""

    addresses: tuple[Address, ...]
    allow: frozenset[str]


@dataclass(frozen=True, slots=True)
class Settled:
    """What another process has settled for a build that is to have the same outcome here: names are not asked for anew.

    ``material`` is what serves here so far; ``tunnels`` are those of its outcome.
    """

    started: Config = field(repr=False)
    resolved: Mapping[str, Resolved] = field(repr=False)
    material: Material | None = field(default=None, repr=False)
    tunnels: Mapping[str, Tunnel] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Generation:
    """``number`` counts from 1; ``digest`` is over every input's bytes; ``built_at`` is seconds since the epoch.

    ``documents`` are the key sets that were fetched for it.
    ``started`` is the configuration that the process started with, and ``restart_needed`` names what has changed since
    in vain. ``contexts`` has one for each set of protocols that a listener serves. ``upstream_addresses`` are those of
    REST, and of gRPC where it is served: (family, sockaddr), in the order to try them.
    """

    number: int
    digest: str
    config: Config
    started: Config = field(repr=False)
    contexts: Mapping[Protocols, ssl.SSLContext] = field(repr=False)
    material: Material
    policy: Policy = field(repr=False)
    upstream_api_key: str | None = field(repr=False)
    upstream_addresses: Mapping[ProtocolName, tuple[Address, ...]]
    tunnels: Mapping[str, Tunnel]
    warnings: tuple[str, ...]
    unused: tuple[Problem, ...]
    restart_needed: tuple[str, ...]
    built_at: float
    documents: Mapping[KeySource, bytes] = field(default_factory=dict, repr=False)
    resolved: Mapping[str, Resolved] = field(default_factory=dict, repr=False)
    _principals: dict[tuple[str, ...], Principal] = field(default_factory=dict, repr=False, compare=False)

    def principal_of(self, peer: Peer | None, issuers: Sequence[ChainCertificate] = ()) -> Principal:
        """The same object each time for the same chain, so that it can be the key of a memo.

        ``issuers`` are those of the path that counts, by which one certificate may be several identities; without them
        the principal is that of the path which its handshake found.
        """
        key: tuple[str, ...] = ()
        above: Sequence[ChainCertificate] = ()
        if peer is not None:
            above = issuers or peer.chain.issuers
            key = (peer.identity.sha256, *(one.sha256 for one in above))
        principal = self._principals.get(key)
        if principal is None:
            anchors = [one.anchor for one in above if one.anchor is not None]
            identity = None if peer is None else self.material.anchors.identified(peer.identity, anchors)
            principal = self.policy.principal_of(identity)
            if len(self._principals) >= PRINCIPALS:
                del self._principals[next(iter(self._principals))]
            self._principals[key] = principal
        return principal

    def refusal_of(self, peer: Peer, now: float) -> str:
        """Why a handshake at ``now`` would not admit this client; "" if it would."""
        return self.material.trust.refusal_of(peer.chain, now)


def build(
    *,
    number: int,
    config_path: Path,
    environ: Mapping[str, str],
    previous: Generation | Settled | None,
    inputs: Inputs | None = None,
    documents: Mapping[KeySource, bytes] | None = None,
    now: float | None = None,
) -> Generation:
    """Read (unless ``inputs`` were read already), check, build and try out. Blocks: call it in a worker thread.

    ``documents`` are the key sets that have been fetched; None where nobody fetches any, so that none is missed.
    Raises ConfigError or MaterialError; UnstableInputs, a MaterialError, where the files are being written just now.
    """
    if inputs is None:
        inputs = read_inputs(config_path, environ)
    for failure in inputs.failures.values():
        raise failure.with_traceback(None)
    moment = time.time() if now is None else now
    loaded, files = inputs.loaded, inputs.files
    config = loaded.config
    material = load_material(config, files, now=moment, previous=previous.material if previous is not None else None)
    told = _of_cas(inputs, config_path, environ, material, previous)
    keys, tokens = resolve_keys(config, files.__getitem__), resolve_tokens(config, files.__getitem__, documents or {})
    started = previous.started if previous is not None else config
    # What is bound serves on, whatever a changed configuration says of listeners before the restart.
    served = {listener.protocols for listener in listening(started)}
    required = config.service.verify_https_client_certificate
    contexts = {
        # Who may connect to mode tcp is known by certificate alone.
        protocols: build_context(
            material, require_client_certificate=required or protocols == TCP, alpn=alpn_of(protocols)
        )
        for protocols in served
    }
    self_handshake(material, alpn=alpn_of(PROTOCOLS))
    # REST always: what a token depends on is asked there.
    needed = {"rest", *(protocol for protocols in served for protocol in protocols)}
    names: dict[str, str] = {
        f"upstream.{protocol}": getattr(config.upstream, protocol) for protocol in PROTOCOLS if protocol in needed
    }
    tunnels = tunnels_of(config, started.service.host)
    # One that the configuration names no more is bound until the restart, and serves on as it was.
    kept = tunnels_of(started, started.service.host).keys() - tunnels.keys() if previous is not None else set()
    names |= {f"listeners: {address}": f"http://{tunnel.upstream}" for address, tunnel in tunnels.items()}
    resolved = {name: _resolve(config_path, name, url, previous) for name, url in names.items()}
    return Generation(
        number=number,
        digest=inputs.digest,
        config=config,
        started=started,
        contexts=contexts,
        material=material,
        policy=policy_of(config, keys, tokens),
        upstream_api_key=upstream_api_key(config, files.__getitem__),
        upstream_addresses={
            protocol: resolved[f"upstream.{protocol}"].addresses for protocol in PROTOCOLS if protocol in needed
        },
        tunnels={
            address: Tunnel(resolved[f"listeners: {address}"].addresses, frozenset(tunnel.allow))
            for address, tunnel in tunnels.items()
        }
        | {address: previous.tunnels[address] for address in kept if previous is not None},
        resolved=resolved,
        warnings=(
            *map(str, loaded.warnings),
            *inputs.warnings,
            *material.warnings,
            *map(str, told),
            *(one.warning for one in resolved.values() if one.warning),
            *(
                f"{source.shown}: its keys have not been fetched yet: the tokens that they verify are refused"
                for source in key_sources(config)
                if documents is not None and source not in documents
            ),
        ),
        unused=loaded.unused,
        restart_needed=restart_needed(config, started),
        built_at=moment,
        documents=documents or {},
    )


def _of_cas(
    inputs: Inputs,
    config_path: Path,
    environ: Mapping[str, str],
    material: Material,
    previous: Generation | Settled | None,
) -> tuple[Problem, ...]:
    """Warnings about the CAs that the configuration names. Raises ConfigError where a constraint names none.

    That must not keep a CA from being taken away: the constraint may stay where no CA has come since it was accepted.
    What another process has settled is not judged again.
    """
    if isinstance(previous, Settled):
        return ()
    config = inputs.loaded.config
    accepted = (
        previous is not None
        and previous.config.tls.ca_constraints == config.tls.ca_constraints
        and set(previous.material.configured).issuperset(material.configured)
    )
    found = list(findings(config, material.anchors, material.configured, constraints_accepted=accepted))
    problems = located(inputs.files[config_path], config_path, environ, found)
    if wrong := [problem for problem, finding in zip(problems, found, strict=True) if not finding.warning]:
        raise ConfigError(wrong)
    return problems


def restart_needed(config: Config, started: Config) -> tuple[str, ...]:
    """The settings of ``config`` that do not count yet in a process that started with the other."""
    return tuple(name for name in NEEDS_RESTART if _opened(config, name) != _opened(started, name))


def _opened(config: Config, name: str) -> object:
    return bound(config) if name == "listeners" else attrgetter(name)(config)


def alpn_of(protocols: Protocols) -> tuple[str, ...]:
    """What a listener of these protocols agrees to, the preferred one first."""
    return tuple(name for protocol, name in ALPN.items() if protocol in protocols)


def _resolve(config_path: Path, name: str, url: str, previous: Generation | Settled | None) -> Resolved:
    """A resolver that is down must not keep a new certificate from being served: the addresses in use stay then."""
    if isinstance(previous, Settled):
        return previous.resolved[name]
    endpoint = upstream_endpoint(url)
    flags = socket.AI_NUMERICHOST if is_address(endpoint.host) else 0
    try:
        found = socket.getaddrinfo(endpoint.host, endpoint.port, type=socket.SOCK_STREAM, flags=flags)
    except OSError as error:
        text = f"{name}: {endpoint.host} cannot be resolved ({error.strerror})"
        former = previous.resolved.get(name) if previous is not None else None
        if former is None or former.url != url:
            raise MaterialError(str(config_path), text) from None
        return Resolved(url, former.addresses, f"{text}; its former addresses are used")
    return Resolved(url, tuple(dict.fromkeys((int(family), address) for family, _, _, _, address in found)))
