"""Checks over several keys of a configuration, as a table with the sections that each reads.

A check is skipped if one of its sections is invalid in itself, so that a mistake is reported once. One that checks
items of a list runs on the valid items, so that a mistake hides no other: after a misspelt key in the first role the
second role is still checked. Roles and identities: :mod:`tlsproxy.config.identity_checks`, rules with claims:
:mod:`tlsproxy.config.claim_checks`; keys and tokens:
:mod:`tlsproxy.config.credential_checks`; listeners: :mod:`tlsproxy.config.listeners`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from collections.abc import Set as AbstractSet
from typing import Final

from tlsproxy.config import ca_checks, claim_checks, health, listeners, shared_checks, upstream_tls_checks
from tlsproxy.config import credential_checks as credentials
from tlsproxy.config.endpoints import check_key_set_url, check_origin, upstream_url
from tlsproxy.config.findings import Finding
from tlsproxy.config.identity_checks import matches, names, nobody, role_use, roles
from tlsproxy.config.limits import Quota
from tlsproxy.config.model import Config
from tlsproxy.config.pieces import include_entries, pattern_fault
from tlsproxy.config.policy import matcher_of
from tlsproxy.config.positions import Path, Tree
from tlsproxy.config.upstream import urls_of

QDRANT_IDLE_TIMEOUT: Final = 5.0
"""Seconds after which Qdrant closes an idle connection (actix keep-alive)."""

Check = Callable[[Config, Tree], Iterator[Finding]]


def findings(config: Config, tree: Tree, failed: AbstractSet[str], partial: AbstractSet[str]) -> Iterator[Finding]:
    """Findings of all checks.

    ``failed`` sections of ``config`` are defaults; ``partial`` ones have their valid items.
    """
    for reads, check in _CHECKS:
        if (failed - partial if check in _ITEM_BY_ITEM else failed).isdisjoint(reads):
            yield from check(config, tree)


def _include(config: Config, _tree: Tree) -> Iterator[Finding]:
    for path, entry in include_entries(config.include):
        if text := pattern_fault(entry):
            yield Finding(path, text)


def _bundle(config: Config, _tree: Tree) -> Iterator[Finding]:
    if config.bundle is None:
        return
    try:
        check_key_set_url(config.bundle.url)
    except ValueError as error:
        yield Finding(("bundle", "url"), str(error))
    if not config.bundle.keys:
        yield Finding(
            ("bundle", "public_key"), "a bundle is trusted by its key: name one, `tlsproxy bundle keygen` makes it"
        )


def _tls(config: Config, _tree: Tree) -> Iterator[Finding]:
    if not config.service.enable_tls:
        text = "tlsproxy terminates TLS: set it to true here, and to false in the Qdrant behind it"
        yield Finding(("service", "enable_tls"), text)
    if config.tls.ca_cert is None:
        where = ("service", "verify_https_client_certificate")
        if config.service.verify_https_client_certificate:
            yield Finding(where, "tls.ca_cert is needed to verify client certificates: set it, or set this to false")
        elif any(matcher_of(rule.match).conditions for rule in config.identities):
            yield Finding(("identities",), "tls.ca_cert is needed: without it no client certificate can be verified")
        for index, listener in enumerate(config.listeners):
            if listener.mode == "tcp":
                yield Finding(("listeners", index), "tls.ca_cert is needed: mode tcp lets in by certificate alone")


def _origins(config: Config, _tree: Tree) -> Iterator[Finding]:
    service = config.service
    for index, origin in enumerate(service.allowed_origins):
        path: Path = ("service", "allowed_origins", index)
        try:
            check_origin(origin)
        except ValueError as error:
            yield Finding(path, str(error))
        else:
            if origin.startswith("http:"):
                yield Finding(path, "a page over plain http can be anybody's on its way", warning=True)
    if service.allowed_origins and not service.enable_cors:
        text = "its pages can send requests and read no answer: enable_cors is false"
        yield Finding(("service", "allowed_origins"), text, warning=True)


def _crl(config: Config, _tree: Tree) -> Iterator[Finding]:
    if config.tls.crl and config.tls.ca_cert is None:
        yield Finding(("tls", "crl"), "tls.ca_cert is needed: a CRL is signed by one of its CAs")


def _upstream(config: Config, _tree: Tree) -> Iterator[Finding]:
    for path, url in urls_of(config.upstream):
        try:
            parsed = upstream_url(url)
        except ValueError as error:
            yield Finding(path, str(error))
        else:
            if parsed.tls and config.upstream.tls is None:
                yield Finding(path, "upstream.tls is missing: name the CAs that verify the server (ca_cert: ca.pem)")
            elif not parsed.tls and not parsed.endpoint.loopback:
                yield Finding(path, "not on loopback: requests and data cross a network in plaintext", warning=True)
    if config.upstream.idle_timeout >= QDRANT_IDLE_TIMEOUT:
        text = f"must be less than {QDRANT_IDLE_TIMEOUT:g} s, after which Qdrant closes an idle connection"
        yield Finding(("upstream", "idle_timeout"), text)


def _nodes(config: Config, _tree: Tree) -> Iterator[Finding]:
    upstream = config.upstream
    if not upstream.nodes:
        return
    for key in ("rest", "grpc"):
        if key in upstream.model_fields_set:
            yield Finding(("upstream", key), "`nodes` names each node with its `rest` and `grpc`: leave this out")
    names: set[str] = set()
    for index, node in enumerate(upstream.nodes):
        if node.name in names:
            yield Finding(("upstream", "nodes", index, "name"), f"{node.name} is another node's name: choose another")
        names.add(node.name)
    for protocol in listeners.PROTOCOLS:
        first: dict[str, str] = {}
        for index, node in enumerate(upstream.nodes):
            url = getattr(node, protocol)
            if url is not None and first.setdefault(url, node.name) != node.name:
                text = f"{first[url]} has this address too: they are one node under two names"
                yield Finding(("upstream", "nodes", index, protocol), text, warning=True)
    if all(node.drain for node in upstream.nodes):
        yield Finding(("upstream", "nodes"), "every node is drained: set drain to false for one, or nothing is served")


def _waits(config: Config, _tree: Tree) -> Iterator[Finding]:
    limits, usual = config.limits, config.upstream.response_timeout
    if "max_response_timeout" in limits.model_fields_set and limits.max_response_timeout < usual:
        text = f"less than upstream.response_timeout ({usual:g} s), which every request has: no client gets longer"
        yield Finding(("limits", "max_response_timeout"), text, warning=True)


def _inspection(config: Config, _tree: Tree) -> Iterator[Finding]:
    if config.limits.inspection_memory_mb < config.service.max_request_size_mb:
        text = (
            f"less than service.max_request_size_mb ({config.service.max_request_size_mb}): such a body is never read"
        )
        yield Finding(("limits", "inspection_memory_mb"), text)


def _bursts(config: Config, _tree: Tree) -> Iterator[Finding]:
    quotas: list[tuple[Path, Quota | None]] = [
        (("limits", "per_identity"), config.limits.per_identity),
        (("limits", "per_key"), config.limits.per_key),
        (("limits", "per_address", "unidentified"), config.limits.per_address.unidentified),
    ]
    for name, role in config.roles.items():
        quotas.append((("roles", name, "limits"), role.limits))
        quotas.append((("roles", name, "limits", "per_identity"), role.limits.per_identity))
    own = config.limits.per_address
    if own.burst is not None and own.handshakes_per_second is None:
        yield Finding(("limits", "per_address", "burst"), "handshakes_per_second is needed: a burst comes above it")
    for path, quota in quotas:
        if quota is not None and quota.burst is not None and quota.requests_per_second is None:
            yield Finding((*path, "burst"), "requests_per_second is needed: a burst is what may come above it")


def _logger(config: Config, _tree: Tree) -> Iterator[Finding]:
    if config.logger.output == "stdout" and config.audit.enabled and config.audit.dir == "-":
        yield Finding(("logger", "output"), "standard output is the audit log's (audit.dir): log to stderr")


_CHECKS: Final[tuple[tuple[frozenset[str], Check], ...]] = (
    (frozenset({"include"}), _include),
    (frozenset({"bundle"}), _bundle),
    (frozenset({"service", "tls", "identities"}), _tls),
    (frozenset({"service"}), _origins),
    (frozenset({"tls"}), _crl),
    (frozenset({"tls"}), ca_checks.constraints),
    (frozenset({"service"}), credentials.service_keys),
    (frozenset({"service"}), credentials.tokens),
    (frozenset({"upstream"}), credentials.upstream_key),
    (frozenset({"keys", "tls"}), credentials.named_keys),
    (frozenset({"keys", "roles"}), credentials.key_roles),
    (frozenset({"jwt_issuers"}), credentials.issuers),
    (frozenset({"jwt_issuers", "roles"}), credentials.issuer_roles),
    (frozenset({"revoked"}), credentials.revoked),
    (frozenset({"revoked", "keys", "jwt_issuers"}), credentials.revoked_keys),
    (frozenset({"upstream"}), _upstream),
    (frozenset({"upstream"}), _nodes),
    (frozenset({"upstream"}), upstream_tls_checks.used),
    (frozenset({"upstream", "listeners", "shared"}), upstream_tls_checks.sections),
    (frozenset({"upstream", "limits"}), _waits),
    (frozenset({"service", "limits"}), _inspection),
    (frozenset({"limits", "roles"}), _bursts),
    (frozenset({"logger", "audit"}), _logger),
    (frozenset({"shared"}), shared_checks.store),
    (frozenset({"listeners"}), listeners.repeated),
    (frozenset({"listeners"}), listeners.places),
    (frozenset({"service", "listeners"}), listeners.hosts),
    (frozenset({"service", "listeners", "health"}), listeners.proxy_protocol),
    (frozenset({"service", "listeners"}), listeners.modes),
    (frozenset({"listeners", "roles"}), listeners.tcp_roles),
    (frozenset({"service", "listeners"}), listeners.addresses),
    (frozenset({"service", "listeners", "upstream"}), listeners.loop),
    (frozenset({"service", "listeners", "upstream"}), listeners.grpc_upstream),
    (frozenset({"service", "listeners", "limits"}), listeners.messages),
    (frozenset({"service", "listeners", "admin"}), listeners.admin),
    (frozenset({"health"}), health.networks),
    (frozenset({"service", "listeners", "admin", "health"}), health.listener),
    (frozenset({"roles"}), roles),
    (frozenset({"identities"}), matches),
    (frozenset({"identities"}), claim_checks.values),
    (frozenset({"identities", "jwt_issuers"}), claim_checks.issuers),
    (frozenset({"identities"}), claim_checks.reached),
    (frozenset({"service", "identities"}), claim_checks.certificates),
    (frozenset({"roles", "identities"}), names),
    (frozenset({"roles", "identities", "keys", "jwt_issuers"}), role_use),
    (frozenset({"service", "roles", "identities", "keys", "jwt_issuers"}), nobody),
)
ITEMS: Final = frozenset({"listeners", "roles", "identities", "keys", "jwt_issuers", "revoked"})
"""The sections that are lists or mappings of items."""
_ITEM_BY_ITEM: Final = frozenset(
    {
        listeners.repeated,
        listeners.places,
        listeners.proxy_protocol,
        listeners.modes,
        listeners.tcp_roles,
        listeners.addresses,
        listeners.loop,
        listeners.grpc_upstream,
        listeners.messages,
        listeners.admin,
        health.listener,
        roles,
        matches,
        claim_checks.values,
        claim_checks.reached,
        upstream_tls_checks.sections,
        names,
        credentials.named_keys,
        credentials.key_roles,
        credentials.issuers,
        credentials.issuer_roles,
        credentials.revoked,
    }
)
