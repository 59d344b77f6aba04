"""Checks of keys and token issuers: each is usable and has a name of its own."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from tlsproxy.authz.keys import key_digest
from tlsproxy.authz.tokens import TRUST_DOMAIN
from tlsproxy.config.callers import JwtIssuer
from tlsproxy.config.endpoints import check_key_set_url
from tlsproxy.config.findings import Finding
from tlsproxy.config.identity_checks import filter_of, match_findings, role_findings
from tlsproxy.config.model import Config
from tlsproxy.config.positions import Path, Tree
from tlsproxy.config.problems import did_you_mean
from tlsproxy.config.secrets import KEY_NAMES, key_error

_EMPTY: Final = key_digest("").hex()
_PUBLIC_KEYS: Final = ("pem", "jwks", "discovery")
_ONE_OF: Final = "one of pem, jwks and discovery"
_TRUST_DOMAIN: Final = re.compile(r"spiffe://[a-z0-9._-]{1,255}")
"""SPIFFE-ID §2.1."""
_FETCH_FILES: Final = ("ca_cert", "bearer_token_file")


def service_keys(config: Config, _tree: Tree) -> Iterator[Finding]:
    for name in KEY_NAMES:
        value, path = getattr(config.service, name), getattr(config.service, f"{name}_file")
        if value is not None and path is not None:
            yield Finding(("service", f"{name}_file"), f"{name} is given too: keep one of them")
        elif value is not None and (error := key_error(value.get_secret_value())):
            yield Finding(("service", name), error)


def upstream_key(config: Config, _tree: Tree) -> Iterator[Finding]:
    upstream = config.upstream
    if upstream.api_key is not None and upstream.api_key_file is not None:
        yield Finding(("upstream", "api_key_file"), "api_key is given too: keep one of them")
    elif upstream.api_key is not None and (error := key_error(upstream.api_key.get_secret_value())):
        yield Finding(("upstream", "api_key"), error)


def named_keys(config: Config, _tree: Tree) -> Iterator[Finding]:
    seen: set[str] = set(KEY_NAMES)
    for index, key in enumerate(config.keys):
        path: Path = ("keys", index)
        if key.name in seen:
            text = "is a key of `service`" if key.name in KEY_NAMES else "is the name of an earlier key"
            yield Finding((*path, "name"), f"{key.name!r} {text}")
        seen.add(key.name)
        if (key.sha256 is None) == (key.file is None):
            yield Finding(
                path, "one of sha256 and file is needed" if key.file is None else "keep one of sha256 and file"
            )
        elif key.sha256 is not None and key.sha256.lower() == _EMPTY:
            yield Finding((*path, "sha256"), "is that of an empty key")
        if key.require_certificate is not None:
            given = key.require_certificate.model_dump(exclude_none=True, exclude={"claims"})
            yield from match_findings((*path, "require_certificate"), given)
            if key.require_certificate.claims:
                yield Finding((*path, "require_certificate", "claims"), "who sends a key sends no token")
            if config.tls.ca_cert is None:
                yield Finding((*path, "require_certificate"), "tls.ca_cert is needed: no certificate can be verified")


def key_roles(config: Config, _tree: Tree) -> Iterator[Finding]:
    yield from role_findings(((("keys", index, "role"), key.role) for index, key in enumerate(config.keys)), config)
    for index, key in enumerate(config.keys):
        for template in filter_of(config.roles[key.role]) if key.role in config.roles else ():
            if template.of_claim:
                text = f"role {key.role!r} has a filter with {{{template.field}}}: who sends a key sends no token"
                yield Finding(("keys", index, "role"), text)
            elif template.of_certificate and key.require_certificate is None:
                text = f"role {key.role!r} has a filter with {{{template.field}}}: require_certificate is needed"
                yield Finding(("keys", index, "role"), text)


def issuers(config: Config, _tree: Tree) -> Iterator[Finding]:
    seen: set[str] = set(KEY_NAMES)
    for index, issuer in enumerate(config.jwt_issuers):
        path: Path = ("jwt_issuers", index)
        if issuer.name in seen:
            yield Finding((*path, "name"), f"{issuer.name!r} is the name of another issuer or key")
        seen.add(issuer.name)
        given = [name for name in _PUBLIC_KEYS if getattr(issuer, name) is not None]
        if len(given) != 1:
            yield Finding(path, f"keep one of {' and '.join(given)}" if given else f"{_ONE_OF} is needed")
        urls = {name: url for name in given if isinstance(url := getattr(issuer, name), str)}
        for name, url in urls.items():
            try:
                check_key_set_url(url)
            except ValueError as error:
                yield Finding((*path, name), str(error))
        if issuer.issuer.startswith(TRUST_DOMAIN):
            yield from _trust_domain(path, issuer)
        for name in _FETCH_FILES:
            if getattr(issuer, name) is not None and not urls:
                yield Finding((*path, name), "is for keys that are fetched from a URL, and these are in a file")


def _trust_domain(path: Path, issuer: JwtIssuer) -> Iterator[Finding]:
    if _TRUST_DOMAIN.fullmatch(issuer.issuer) is None:
        yield Finding((*path, "issuer"), "a trust domain is expected, without a path: spiffe://example.org")
    if issuer.discovery is not None:
        yield Finding((*path, "discovery"), "a trust domain has no OpenID configuration: name its keys by jwks")


def issuer_roles(config: Config, _tree: Tree) -> Iterator[Finding]:
    named = enumerate(issuer.role for issuer in config.jwt_issuers)
    roles = ((("jwt_issuers", index, "role"), role) for index, role in named if role is not None)
    yield from role_findings(roles, config)


def tokens(config: Config, _tree: Tree) -> Iterator[Finding]:
    service = config.service
    can_sign = (service.api_key, service.api_key_file, service.alt_api_key, service.alt_api_key_file)
    if service.jwt_rbac and not any(can_sign):
        text = "no token can be valid: tokens are signed with api_key or alt_api_key, and neither is set"
        yield Finding(("service", "jwt_rbac"), text, warning=True)
    if not service.jwt_rbac and not config.jwt_issuers:
        for name, role in config.roles.items():
            if any(template.of_claim for template in filter_of(role)):
                text = "nobody has this role: its filter needs a token, and neither jwt_rbac nor jwt_issuers are set"
                yield Finding(("roles", name, "filter"), text, warning=True)
    if service.jwt_rbac and service.jwt_full_access_without_claim:
        text = "a token without an `access` claim has all rights"
        yield Finding(("service", "jwt_full_access_without_claim"), text, warning=True)


def revoked(config: Config, _tree: Tree) -> Iterator[Finding]:
    """Entries of `revoked` that hold nobody, or more than one caller."""
    for index, entry in enumerate(config.revoked):
        try:
            entry.lock()
        except ValueError as error:
            yield Finding(("revoked", index), str(error))


def revoked_keys(config: Config, _tree: Tree) -> Iterator[Finding]:
    """Entries of `revoked` with a key that there is not: perhaps one that was removed, perhaps a slip."""
    named = (*(key.name for key in config.keys), *(issuer.name for issuer in config.jwt_issuers))
    known = ("api_key", "alt_api_key", "read_only_api_key", *named)
    for index, entry in enumerate(config.revoked):
        if entry.key is not None and entry.key.strip() not in known:
            hint = did_you_mean(entry.key, known)
            yield Finding(("revoked", index, "key"), f"no key or issuer has this name{hint}", warning=True)
