"""Checks of rules with claims: each can match a token, and by no other issuer than was meant."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from itertools import chain, combinations
from typing import Final

from tlsproxy.authz.globs import CLAIM_SEPARATORS, glob_error, glob_matches, is_exact
from tlsproxy.authz.matcher import Claim
from tlsproxy.config.findings import Finding
from tlsproxy.config.model import Config, IdentityRule
from tlsproxy.config.policy import rule_of
from tlsproxy.config.positions import Path, Tree

MOST: Final = 6
"""Claims of a rule up to which it is compared with rules of fewer claims."""
_ISSUER: Final = "iss"


def values(config: Config, _tree: Tree) -> Iterator[Finding]:
    for path, rule in _rules(config):
        for name, value in rule.match.claims.items():
            if name != name.strip() or any(unicodedata.category(character) == "Cc" for character in name):
                yield Finding((*path, name), "a space at an end, or a control character: no token has such a claim")
            elif isinstance(value, str) and (error := glob_error(value)):
                yield Finding((*path, name), error)


def issuers(config: Config, _tree: Tree) -> Iterator[Finding]:
    """Each rule's issuer is one of the configured ones, and certain."""
    names = {issuer.issuer for issuer in config.jwt_issuers}
    for path, rule in _rules(config):
        given = rule.match.claims.get(_ISSUER)
        if not names:
            text = "matches nobody: there are no jwt_issuers, and no other tokens are matched"
            yield Finding(path, text, warning=True)
        elif given is not None and not _is_among(given, names):
            text = f"matches nobody: no `issuer` of jwt_issuers is this one; there are {_listed(names)}"
            yield Finding((*path, _ISSUER), text, warning=True)
        elif len(names) > 1 and not (isinstance(given, str) and is_exact(given)):
            text = f"iss is needed, without wildcards: each of several issuers may give any claim: {_listed(names)}"
            yield Finding((*path, _ISSUER) if given is not None else path, text)


def reached(config: Config, _tree: Tree) -> Iterator[Finding]:
    """Each rule matches a token that no earlier rule matches."""
    earlier: dict[tuple[object, frozenset[Claim]], str] = {}
    for path, entry in _rules(config):
        rule = rule_of(entry)
        every, fields = rule.claims.claims, rule.match.conditions
        sizes = range(1, len(every) + 1) if len(every) <= MOST else (len(every),)
        subsets = chain.from_iterable(combinations(every, size) for size in sizes)
        wider = ((match, frozenset(subset)) for subset in subsets for match in (fields, ()))
        if (first := next((earlier[each] for each in wider if each in earlier), None)) is not None:
            text = f"never reached: rule {first!r} comes first, and matches all that this one does"
            yield Finding(path[:2], text, warning=True)
        earlier.setdefault((fields, frozenset(every)), rule.name)


def certificates(config: Config, _tree: Tree) -> Iterator[Finding]:
    """A rule by claims alone needs clients that have no certificate, or a role by it, or may do without."""
    service = config.service
    if not service.verify_https_client_certificate or service.unmapped_certificate == "token":
        return
    if any(not rule.match.claims for rule in config.identities):
        return
    for path, rule in _rules(config):
        if not rule_of(rule).match.conditions:
            text = (
                "matches nobody: a certificate is required, and no rule gives one a role; "
                "name certificate fields here too, or set service.unmapped_certificate: token"
            )
            yield Finding(path, text, warning=True)


def _rules(config: Config) -> Iterator[tuple[Path, IdentityRule]]:
    """Rules with claims, and the path of these."""
    for index, rule in enumerate(config.identities):
        if rule.match.claims:
            yield ("identities", index, "match", "claims"), rule


def _is_among(pattern: object, names: set[str]) -> bool:
    return isinstance(pattern, str) and any(glob_matches(pattern, name, CLAIM_SEPARATORS) for name in names)


def _listed(names: set[str]) -> str:
    return ", ".join(f'"{name}"' for name in sorted(names))
