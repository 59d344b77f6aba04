"""A generation: one immutable value of all that connections are accepted and decided by.

It is validated, assembled and tried off the event loop, and published by one assignment. A failure changes nothing: the
generation in force stays.
"""

from __future__ import annotations

import hashlib
import ssl
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final

from tlsproxy.config.ca_checks import warnings as ca_warnings
from tlsproxy.config.endpoints import upstream_url
from tlsproxy.config.listeners import ALPN, HEALTH, PROTOCOLS, TCP, listening
from tlsproxy.config.listeners import tunnels as tunnels_of
from tlsproxy.config.loader import located
from tlsproxy.config.pieces import unpacked
from tlsproxy.config.policy import locks_of, policy_of
from tlsproxy.config.secrets import known_keys, short_keys, upstream_api_key
from tlsproxy.config.shape import restart_settings
from tlsproxy.config.tokens import resolve_tokens
from tlsproxy.errors import MaterialError
from tlsproxy.memo import Memo
from tlsproxy.snapshot.name_resolution import tunnel_name
from tlsproxy.snapshot.nodes import Node, Upstream, drained_by, nodes_in
from tlsproxy.snapshot.server_tls import ServerTls
from tlsproxy.snapshot.validation import InputReading, ServingInputs, judge
from tlsproxy.threads import free_in_parts
from tlsproxy.tls.chains import defect_of
from tlsproxy.tls.client_trial import refusal_of_authority
from tlsproxy.tls.context import build_context, refusal_by_clients, self_handshake, server_context
from tlsproxy.tls.material import Material, crl_policy, material_of
from tlsproxy.tls.trust import NO_TRUST, Trust

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from tlsproxy.authz.roles import Policy, Principal
    from tlsproxy.config.locks import LockFile
    from tlsproxy.config.model import Config, HttpProtocol, Protocols
    from tlsproxy.config.problems import Problem
    from tlsproxy.snapshot.states import Fault, Input, InputState, States
    from tlsproxy.tls.chains import ChainCertificate
    from tlsproxy.tls.client_context import ClientTls
    from tlsproxy.tls.owncert import OwnCertificate
    from tlsproxy.tls.peer import Peer
    from tlsproxy.tls.trust import ChainVerdict

PRINCIPALS: Final = 4096
TRIED: Final = 64
"""Most CAs in a trial with a client certificate of theirs: one takes a millisecond."""


@dataclass(frozen=True, slots=True)
class Tunnel:
    """Upstream of a listener of mode tcp, and the roles that may connect. ``announced``: the upstream gets a header of
    the PROXY protocol.
    """

    upstream: Upstream
    allow: frozenset[str]
    announced: bool


@dataclass(frozen=True, slots=True, weakref_slot=True)
class Generation:
    """``number`` counts from 1; ``digest`` is over all input states; ``built_at`` is seconds since the epoch.

    ``started`` is the configuration at the process's start; ``restart_needed`` names changed settings that wait for the
    next one. ``contexts`` has an SSLContext for each set of protocols of a listener, and for ``HEALTH`` if that one
    has TLS. ``nodes`` are those of Qdrant, at least one.
    ``unfit`` are those ``warnings`` that trials found: CAs whose clients are refused, a chain that clients refuse.
    """

    number: int
    digest: str
    states: States = field(repr=False)
    config: Config
    started: Config = field(repr=False)
    contexts: Mapping[Protocols, ssl.SSLContext] = field(repr=False)
    material: Material
    policy: Policy = field(repr=False)
    upstream_api_key: str | None = field(repr=False)
    nodes: tuple[Node, ...]
    tunnels: Mapping[str, Tunnel]
    warnings: tuple[str, ...]
    unfit: tuple[str, ...]
    unused: tuple[Problem, ...]
    restart_needed: tuple[str, ...]
    built_at: float
    _server_tls: Mapping[tuple[object, ...], ClientTls] = field(repr=False, compare=False)
    _principals: Memo[tuple[str, ...], Principal] = field(repr=False, compare=False)

    def __post_init__(self) -> None:
        crls = self.states.crls.values()
        of_crls = (part for state in crls for part in (*state.value, *state.data))
        free_in_parts(self, (*self.policy.parts(), *self.states.locks.value.locks, *of_crls, *crls))

    @property
    def protocols(self) -> tuple[HttpProtocol, ...]:
        """Protocols that the nodes are asked in: REST always, and gRPC if it is served."""
        return tuple(protocol for protocol in PROTOCOLS if protocol != "grpc" or self.nodes[0].grpc is not None)

    @property
    def config_sha256(self) -> str:
        """SHA-256 (hex) of the configuration's files in force, as `cat FILES | sha256sum` prints it."""
        data, pieces = unpacked(self.states.configuration.data)
        return hashlib.sha256(b"".join([data, *(piece.data for piece in pieces)])).hexdigest()

    def principal_of(self, peer: Peer | None, issuers: Sequence[ChainCertificate] = ()) -> Principal:
        """The principal of a client, the same object for the same chain, so that memos can use it as a key.

        ``issuers`` is the path that counts now, without it the handshake's: below another CA the same certificate may
        be another identity.
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
            self._principals.remember(key, principal)
        return principal

    def verdict_of(self, peer: Peer, now: float) -> ChainVerdict:
        """Whether a handshake at ``now`` (seconds since the epoch) would admit this client."""
        return self.material.trust.verdict_of(peer.chain, now)


@dataclass(frozen=True, slots=True)
class Proposal:
    """A generation to publish, with the faults of files that it leaves out.

    ``generation`` is the one in force if no state differs, and None if a needed state is missing.
    """

    generation: Generation | None
    states: States | None
    faults: Mapping[Input, Fault]


def propose(
    reading: InputReading,
    former: Generation | None,
    now: float,
    *,
    states: States | None = None,
    faults: Mapping[Input, Fault] | None = None,
) -> Proposal:
    """Validate, assemble and try. Blocks: call it in a worker thread.

    ``states`` and ``faults`` are those of the previous proposal: its states equal those of ``former``, and know what
    was read for them last. Raises ConfigError without a former configuration to fall back on, MaterialError if OpenSSL
    does not accept states that are valid each for itself.
    """
    serving = None
    if former is not None:
        known = replace(states or former.states, locks=former.states.locks)
        serving = ServingInputs(known, former.material.trust, former.material.sent)
    config = reading.inputs.loaded.config

    def handshake(server: OwnCertificate) -> None:
        self_handshake(material_of(config.tls, server, NO_TRUST), alpn=alpn_of(PROTOCOLS))

    judgement = judge(reading, serving, faults or {}, now, handshake)
    best = judgement.states
    if best is None:
        return Proposal(None, None, judgement.faults)
    if former is not None and best == former.states:
        return Proposal(former, best, judgement.faults)
    generation = assemble(
        best,
        number=former.number + 1 if former is not None else 1,
        config_path=reading.config_path,
        environ=reading.environ,
        started=reading.started or config,
        former=former,
        tunnels=former.tunnels if former is not None else {},
        now=now,
    )
    return Proposal(generation, best, judgement.faults)


def assemble(  # noqa: PLR0913 - the dependencies of a generation, by name
    states: States,
    *,
    number: int,
    config_path: Path,
    environ: Mapping[str, str],
    started: Config,
    former: Generation | None,
    tunnels: Mapping[str, Tunnel],
    now: float,
) -> Generation:
    """A generation of these states, which shares unchanged parts with the ``former`` one.

    ``tunnels`` are the present ones. Raises MaterialError if OpenSSL does not accept the states.
    """
    loaded = states.configuration.value
    config = loaded.config
    data, pieces = unpacked(states.configuration.data)
    material = _material(states, former)
    policy = _policy(states, former)
    findings = (
        *short_keys(config, _secrets(states)),
        *ca_warnings(config, material.anchors, material.configured),
    )
    contexts = _contexts(config, started, material, former)
    if former is not None and contexts is former.contexts:
        unfit = former.unfit
    else:
        unfit = (*_unverifiable(material), *_unfit(next(iter(contexts.values())), material.trust, now))
    server_tls = ServerTls(states, {} if former is None else former._server_tls)  # noqa: SLF001 - of its own kind
    shared = former is not None and policy is former.policy and material.anchors is former.material.anchors
    return Generation(
        number=number,
        digest=states.digest,
        states=states,
        config=config,
        started=started,
        contexts=contexts,
        material=material,
        policy=policy,
        upstream_api_key=upstream_api_key(config, _secrets(states)),
        nodes=drained_by(nodes_in(config, states.names, server_tls), config, states.locks.value),
        tunnels=_tunnels(states, started, tunnels, server_tls),
        warnings=(
            *map(str, loaded.warnings),
            *map(str, located(data, config_path, environ, findings, pieces)),
            *_removed_crls(material, former),
            *unfit,
        ),
        unfit=unfit,
        unused=loaded.unused,
        restart_needed=restart_needed(config, started),
        built_at=now,
        _server_tls=server_tls.made,
        _principals=former._principals if former is not None and shared else Memo(PRINCIPALS),  # noqa: SLF001 - of its own kind
    )


def with_locks(generation: Generation, locks: InputState[LockFile], number: int) -> Generation:
    """The same generation with another lock file: its locks, and the nodes that it drains. Blocks for as long as the
    rules take to be indexed.
    """
    states = replace(generation.states, locks=locks)
    policy = generation.policy.with_locks(locks_of(generation.config, locks.value))
    nodes = drained_by(generation.nodes, generation.config, locks.value)
    return replace(generation, number=number, digest=states.digest, states=states, policy=policy, nodes=nodes)


def _material(states: States, former: Generation | None) -> Material:
    """TLS material; unchanged trust is shared, since CRLs may be large."""
    tls = states.configuration.value.config.tls
    policy = crl_policy(tls)
    trust = None
    if former is not None:
        before, was, trusted = former.states, former.config.tls, former.material.trust
        same = (before.authorities, before.crls, was.ca_cert) == (states.authorities, states.crls, tls.ca_cert)
        if same and trusted.policy == policy:
            trust = trusted
            named = ("cert", "key", "ca_constraints")
            if before.server == states.server and all(getattr(was, name) == getattr(tls, name) for name in named):
                return former.material
    if trust is None and states.authorities is not None:
        crls = [crl for state in states.crls.values() for crl in state.value]
        trust = Trust.of(str(tls.ca_cert), states.authorities.value, crls, policy)
    return material_of(tls, states.server.value, trust or NO_TRUST)


def _policy(states: States, former: Generation | None) -> Policy:
    if former is not None and all(
        getattr(states, name) == getattr(former.states, name)
        for name in ("configuration", "secrets", "public_keys", "documents")
    ):
        if states.locks == former.states.locks:
            return former.policy
        return former.policy.with_locks(locks_of(states.configuration.value.config, states.locks.value))
    config, secrets = states.configuration.value.config, _secrets(states)

    def read(path: Path) -> bytes | None:
        state = states.public_keys.get(path)
        return secrets(path) if state is None else state.data[0]

    keys, tokens = known_keys(config, secrets), resolve_tokens(config, read, states.documents)
    return policy_of(config, keys, tokens, locks_of(config, states.locks.value))


def _secrets(states: States) -> Callable[[Path], bytes | None]:
    return lambda path: states.secrets[path].data[0] if path in states.secrets else None


def _contexts(
    config: Config, started: Config, material: Material, former: Generation | None
) -> Mapping[Protocols, ssl.SSLContext]:
    """SSLContexts of the bound listeners: changed listeners take effect at the restart.

    A context never changes once it is made, so generations may share it.
    """
    required = config.service.verify_https_client_certificate
    if (
        former is not None
        and former.config.service.verify_https_client_certificate == required
        and former.material.same_tls(material)
    ):
        return former.contexts
    contexts = {
        # In mode tcp a role comes from a certificate alone.
        protocols: build_context(
            material, require_client_certificate=required or protocols == TCP, alpn=alpn_of(protocols)
        )
        for protocols in {listener.protocols for listener in listening(started)}
    }
    if started.health.listen is not None and started.health.tls:
        contexts[HEALTH] = server_context(material, alpn_of(("rest",)))
    return contexts


def _unverifiable(material: Material) -> Iterator[str]:
    if refusal := refusal_by_clients(material):
        yield f"{material.cert_path}: clients refuse the chain ({refusal}); have it issued anew"


def _unfit(context: ssl.SSLContext, trust: Trust, now: float) -> Iterator[str]:
    """Warnings on CAs in force whose client certificates the context refuses, though no check of ours says why.

    Raises MaterialError if it admits a forged one.
    """
    if context.verify_mode is ssl.CERT_NONE:
        return
    for authority in trust.authorities[:TRIED]:
        name = authority.subject.rfc4514_string()
        try:
            reason = "" if defect_of(authority) else refusal_of_authority(context, authority, now)
        except ssl.SSLError as error:
            raise MaterialError(trust.path, f"a trial with a client of {name} failed: {error}") from None
        if reason:
            yield f"{trust.path}: every client of {name} is refused: {reason}"


def _tunnels(
    states: States, started: Config, former: Mapping[str, Tunnel], server_tls: ServerTls
) -> Mapping[str, Tunnel]:
    """Tunnels by address. One that the configuration has lost is bound until the restart, and stays as it was."""
    host, tunnels = started.service.host, {}
    for where, one in tunnels_of(states.configuration.value.config, host).items():
        resolved = states.names[tunnel_name(where)]
        tls = server_tls.of(one.upstream_tls, upstream_url(resolved.url), "")
        upstream = Upstream.of(resolved, tls)
        tunnels[where] = Tunnel(upstream, frozenset(one.allow), one.send_proxy_protocol is not None)
    still_bound = tunnels_of(started, host).keys() & former.keys() - tunnels.keys()
    return tunnels | {where: former[where] for where in still_bound}


def _removed_crls(material: Material, former: Generation | None) -> Iterator[str]:
    """Warnings on removed CRLs: perhaps intended, so not refused."""
    present = {crl.issuer for crl in material.crls}
    for issuer in dict.fromkeys(crl.issuer for crl in former.material.crls) if former is not None else ():
        if issuer not in present:
            yield f"there is no CRL of {issuer} any more"


def restart_needed(config: Config, started: Config) -> tuple[str, ...]:
    """Settings of ``config`` that differ from ``started`` and wait for a restart."""
    opened = restart_settings(started)
    return tuple(name for name, value in restart_settings(config).items() if value != opened[name])


def alpn_of(protocols: Protocols) -> tuple[str, ...]:
    """ALPN names of a listener of these protocols, preferred first."""
    return tuple(name for protocol, name in ALPN.items() if protocol in protocols)
