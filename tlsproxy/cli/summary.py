"""Summary of a generation for people: listeners, upstream, callers, limits. Of keys it has the names alone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from tlsproxy.authz.access import EVERY
from tlsproxy.authz.keys import NEVER, Key
from tlsproxy.config.bundle import Bundle, BundleConfig
from tlsproxy.config.endpoints import UNIX, shown_url
from tlsproxy.config.grants import CollectionGrant, filter_of
from tlsproxy.config.limits import Quota
from tlsproxy.config.listeners import PROTOCOLS, balancers_of, listening, titles
from tlsproxy.config.model import AuditConfig, Config, Role
from tlsproxy.config.policy import confinement_text
from tlsproxy.config.queries import query_policy_of
from tlsproxy.config.shared import store_address
from tlsproxy.config.tokens import key_sources
from tlsproxy.config.upstream import UpstreamConfig, nodes_of
from tlsproxy.snapshot.generation import Generation
from tlsproxy.text import printable, utc_time
from tlsproxy.tls.certinfo import CertificateFacts


def summary(generation: Generation, bundle: Bundle | None = None) -> Iterator[str]:
    """``bundle`` is the configuration's, as it is kept."""
    material = generation.material
    yield from _pieces(generation)
    if bundle is not None and generation.config.bundle is not None:
        yield from _bundle(generation.config.bundle, bundle)
    yield from _certificate("certificate", material.leaf)
    for authority, anchor in zip(material.authorities, material.anchors.trusted.values(), strict=True):
        yield from _certificate("client CA", authority)
        yield from (f"  only       {confinement}" for confinement in material.anchors.confinements(anchor))
    for crl in material.crls:
        yield f"CRL of {crl.issuer}: {crl.count} revoked, next update {utc_time(crl.next_update)}"
    yield from _served(generation)
    yield from _callers(generation)
    yield from _limits(generation.config)


def _pieces(generation: Generation) -> Iterator[str]:
    """The files that `include` names, in the order in which they count."""
    if generation.config.include:
        files = generation.states.configuration.value.files
        yield f"includes: {', '.join(map(printable, files)) or 'no file: none matches'}"


def _bundle(settings: BundleConfig, bundle: Bundle) -> Iterator[str]:
    end = "never expires" if bundle.expires is None else f"expires {utc_time(bundle.expires)}"
    yield f"bundle of {shown_url(settings.url)}: version {bundle.version}, signed at {utc_time(bundle.created)}, {end}"
    yield f"  files      {', '.join(sorted(bundle.files))}"


def _served(generation: Generation) -> Iterator[str]:
    config = generation.config
    known = balancers_of(config)
    for entry in listening(config):
        through = map(str, known[entry.name] or ())
        yield f"listens on {entry.endpoint} for {titles(entry.protocols)}{_through(through)}"
    health = config.health
    if health.listen is not None:
        scheme = "" if health.listen.startswith(UNIX) else "https://" if health.tls else "http://"
        yield f"serves health checks on {scheme}{health.listen}"
    protocols = {protocol for entry in listening(config) for protocol in entry.protocols}
    drained = {node.name for node in generation.nodes if node.drained}
    nodes = nodes_of(config.upstream)
    for protocol in (one for one in PROTOCOLS if one in protocols):
        urls = ", ".join(getattr(node, protocol) + " (drained)" * (node.name in drained) for node in nodes)
        yield f"upstream for {titles((protocol,))}: {urls}, {_upstream_key(config.upstream)}"
    for listener in config.listeners:
        if listener.mode == "tcp":
            where = f"port {listener.port}" if listener.unix is None else f"{UNIX}{listener.unix}"
            yield f"upstream for TCP on {where}: {listener.upstream}, for {', '.join(listener.allow)}"
    yield f"audit log: {_audit(config.audit)}"
    yield f"admin server: {config.admin.listen or 'none'}"
    yield f"workers: {config.workers}"
    if config.shared.url is not None:
        yield f"shares limits and locks by {store_address(config.shared.url)}"


def _through(balancers: Iterable[str]) -> str:
    """The balancers of a listener, empty for none."""
    known = ", ".join(balancers)
    return f", through balancers of {known} alone (PROXY protocol)" if known else ""


def _upstream_key(upstream: UpstreamConfig) -> str:
    if upstream.api_key_file is not None:
        return f"with the key of {upstream.api_key_file}"
    return "without a key" if upstream.api_key is None else "with upstream.api_key"


def _audit(audit: AuditConfig) -> str:
    if not audit.enabled:
        return "none: no decision is recorded"
    full = {"refuse": "requests are refused", "block": "requests wait"}[audit.on_full]
    place = (
        "standard output" if audit.dir == "-" else f"{audit.dir}, {audit.rotation}, {audit.max_log_files} files kept"
    )
    return f"{place}; if it cannot be written, {full}"


def _callers(generation: Generation) -> Iterator[str]:
    config = generation.config
    if not config.service.verify_https_client_certificate:
        yield "client certificates are optional"
    yield f"keys: {', '.join(map(_key, generation.policy.keys.keys)) or 'none'}"
    yield f"tokens signed by: {', '.join(one.name for one in generation.policy.tokens.verifiers) or 'nobody'}"
    for source in key_sources(config):
        yield f"{source.shown}: not fetched by this command; until `run` has fetched it, its tokens are refused"
    for name, role in config.roles.items():
        yield f"role {name}: {_access(role)}{confinement_text(role)}{_queries(role)}; {_holders(config, name)}"
    for lock in generation.policy.locks.in_force(generation.built_at).values():
        yield f"locked: {printable(lock.name)}{'' if lock.until == NEVER else f', until {utc_time(lock.until)}'}"


def _key(key: Key) -> str:
    facts = [f"role {key.role}"] if key.role else []
    if key.expires != NEVER:
        facts.append(f"until {utc_time(key.expires)}")
    return f"{key.name} ({', '.join(facts)})" if facts else key.name


def _limits(config: Config) -> Iterator[str]:
    limits = config.limits
    uploads = f"{limits.max_upload_size_mb} MiB" if limits.max_upload_size_mb else "any size"
    yield (
        f"limits: {limits.connections} connections, {limits.connections_per_address} of one address; bodies of "
        f"{config.service.max_request_size_mb} MiB, uploads of {uploads}"
    )
    quotas = {"identity": limits.per_identity, "key": limits.per_key}
    quotas |= {f"holder of role {name}": role.limits.per_identity or Quota() for name, role in config.roles.items()}
    for name, quota in quotas.items():
        if quota != Quota():
            yield f"limits of each {name}: {_quota(quota)}"
    for name, role in config.roles.items():
        body = [] if role.limits.max_body_mb is None else [f"bodies of {role.limits.max_body_mb} MiB"]
        if found := ", ".join(filter(None, (_quota(role.limits), *body))):
            yield f"limits of role {name}: {found}"


def _quota(quota: Quota) -> str:
    parts = (
        (f"{{:g}} request{'s' * (quota.requests_per_second != 1)} per second", quota.requests_per_second),
        ("{} at once", quota.burst),
        ("{} under way", quota.concurrent_requests),
    )
    return ", ".join(text.format(value) for text, value in parts if value is not None)


def _holders(config: Config, role: str) -> str:
    rules = [rule.name for rule in config.identities if rule.role == role]
    keys = [f"key {key.name}" for key in config.keys if key.role == role]
    issuers = [f"confines tokens of {issuer.name}" for issuer in config.jwt_issuers if issuer.role == role]
    return ", ".join([f"given by {', '.join([*rules, *keys]) or 'nobody'}", *issuers])


def _certificate(label: str, facts: CertificateFacts) -> Iterator[str]:
    yield f"{label}: {facts.subject or '(empty subject)'}"
    names = [*(f"DNS:{name}" for name in facts.dns_names), *(f"IP:{ip}" for ip in facts.ips)]
    if names:
        yield f"  names      {', '.join(names)}"
    yield f"  valid      {utc_time(facts.not_before)} to {utc_time(facts.not_after)}"
    yield f"  SHA-256    {facts.sha256}"


def _access(role: Role) -> str:
    if isinstance(role.access, str):
        access = {"r": "reads everything (r)", "pr": "reads all points (pr)", "m": "everything (m)"}[role.access]
    else:
        access = ", ".join(map(_grant, role.access)) or "nothing"
    operations = filter_of(role.operations)
    return access if operations is EVERY else f"{access}; {operations}"


def _queries(role: Role) -> str:
    policy = query_policy_of(role.queries)
    return f" within {policy}" if policy else ""


def _grant(grant: CollectionGrant) -> str:
    operations = filter_of(grant.operations)
    mode = grant.access if operations is EVERY else f"{grant.access}; {operations}"
    return f"{grant.collection} ({mode})"
