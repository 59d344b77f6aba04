"""Checks of rules with claims: each can match a token, and by no other issuer than was meant."""

from __future__ import annotations

import unicodedata
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from typing import Final

from tlsproxy.authz.globs import CLAIM_SEPARATORS, glob_error, glob_matches, is_exact
from tlsproxy.authz.matcher import Matcher
from tlsproxy.authz.rules import Rule, Rules
from tlsproxy.config.findings import Finding
from tlsproxy.config.model import Config, IdentityRule
from tlsproxy.config.policy import matcher_of, rule_of
from tlsproxy.config.positions import Path, Tree

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
    if not names:
        text = "matches nobody: there are no jwt_issuers, and no other tokens are matched"
        yield from _of_all([path for path, _ in _rules(config)], text)
        return
    for path, rule in _rules(config):
        given = rule.match.claims.get(_ISSUER)
        if given is not None and not _is_among(given, names):
            text = f"matches nobody: no `issuer` of jwt_issuers is this one; there are {_listed(names)}"
            yield Finding((*path, _ISSUER), text, warning=True)
        elif len(names) > 1 and not (isinstance(given, str) and is_exact(given)):
            text = f"iss is needed, without wildcards: each of several issuers may give any claim: {_listed(names)}"
            yield Finding((*path, _ISSUER) if given is not None else path, text)


def reached(config: Config, _tree: Tree) -> Iterator[Finding]:
    """Each rule matches a token that no earlier rule matches, which names the same certificate fields or none."""
    rules = {path: rule_of(rule) for path, rule in _rules(config)}
    alike: dict[object, list[Rule]] = defaultdict(list)
    for path, rule in rules.items():
        alike[rule.match.conditions].append(replace(rule, name=str(path[1]), match=Matcher()))
    indexes = {fields: Rules(tuple(each)) for fields, each in alike.items()}
    for path, rule in rules.items():
        index = int(path[1])
        given = config.identities[index].match.claims  # as a token has them: a rule matches its own
        for fields in dict.fromkeys(((), rule.match.conditions)):
            first = indexes[fields].of_token(given, None) if fields in indexes else None
            if first is not None and int(first.name) < index and _covers(first, rule):
                earlier = config.identities[int(first.name)].name
                text = f"never reached: rule {earlier!r} comes first, and matches all that this one does"
                yield Finding(path[:2], text, warning=True)
                break


def _covers(first: Rule, rule: Rule) -> bool:
    """Whether each claim of ``first``, which matches the claims of ``rule`` as they are written, matches all of these.

    Of two globs only equal ones are compared.
    """
    patterns = {claim.path: claim.pattern for claim in rule.claims.claims}
    return all(claim in rule.claims.claims or is_exact(patterns[claim.path]) for claim in first.claims.claims)


def certificates(config: Config, _tree: Tree) -> Iterator[Finding]:
    """A rule by claims alone needs clients that have no certificate, or a role by it, or may do without."""
    service = config.service
    if not service.verify_https_client_certificate or service.unmapped_certificate == "token":
        return
    if any(not rule.match.claims for rule in config.identities):
        return
    text = (
        "matches nobody: a certificate is required, and no rule gives one a role; "
        "name certificate fields here too, or set service.unmapped_certificate: token"
    )
    yield from _of_all([path for path, rule in _rules(config) if not matcher_of(rule.match).conditions], text)


def _of_all(paths: list[Path], text: str) -> Iterator[Finding]:
    """A warning on the first of several rules of which the same is to be said."""
    if paths:
        others = f" (so do {len(paths) - 1} others)" if len(paths) > 1 else ""
        yield Finding(paths[0], f"{text}{others}", warning=True)


def _rules(config: Config) -> Iterator[tuple[Path, IdentityRule]]:
    """Rules with claims, and the path of these."""
    for index, rule in enumerate(config.identities):
        if rule.match.claims:
            yield ("identities", index, "match", "claims"), rule


def _is_among(pattern: object, names: set[str]) -> bool:
    return isinstance(pattern, str) and any(glob_matches(pattern, name, CLAIM_SEPARATORS) for name in names)


def _listed(names: set[str]) -> str:
    return ", ".join(f'"{name}"' for name in sorted(names))
