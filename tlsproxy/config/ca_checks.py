"""Checks of CA constraints and of rules that name CAs: without and with the CAs of `tls.ca_cert`."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from typing import Final

from tlsproxy.authz.globs import glob_matches, is_exact
from tlsproxy.authz.identity import Anchor
from tlsproxy.authz.matcher import Matcher, normal_form
from tlsproxy.authz.trust_anchors import Anchors, Confinement
from tlsproxy.config.callers import CaConstraint
from tlsproxy.config.findings import Finding
from tlsproxy.config.identity_checks import filter_of
from tlsproxy.config.model import Config
from tlsproxy.config.policy import matcher_of
from tlsproxy.config.positions import Path, Tree

MAX_WARNINGS: Final = 20
"""Rules with a warning of their own; one more counts the others."""
BUNDLE: Final = 30
"""Fewest CAs that pass for a bundle of public CAs, which has a hundred and more."""
MAX_NAMED: Final = 5
"""CAs in one text."""

_DIGEST: Final = re.compile(r"[0-9a-f]{64}")
_TRUST_DOMAIN: Final = re.compile(r"[a-z0-9._-]{1,255}")
"""SPIFFE ID §2.1."""
_SUFFIX: Final = re.compile(r"[a-z0-9_-]{1,63}(\.[a-z0-9_-]{1,63})*")


def confinement_of(constraint: CaConstraint) -> Confinement:
    return Confinement(
        constraint.ca or "",
        normal_form("ca_sha256", constraint.ca_sha256 or ""),
        (constraint.trust_domain or "").removeprefix("spiffe://"),
        tuple(suffix.lower().removeprefix(".") for suffix in constraint.dns),
    )


def constraints(config: Config, _tree: Tree) -> Iterator[Finding]:
    """Check the constraints without the CAs."""
    seen: set[tuple[str, str]] = set()
    if config.tls.ca_constraints and config.tls.ca_cert is None:
        yield Finding(("tls", "ca_constraints"), "tls.ca_cert is needed: it has the CAs that these are about")
    for index, constraint in enumerate(config.tls.ca_constraints):
        path: Path = ("tls", "ca_constraints", index)
        confinement = confinement_of(constraint)
        if bool(confinement.ca) == bool(confinement.ca_sha256):
            yield Finding(
                path, "keep one of ca and ca_sha256" if confinement.ca else "one of ca and ca_sha256 is needed"
            )
        if confinement.ca_sha256 and not _DIGEST.fullmatch(confinement.ca_sha256):
            yield Finding((*path, "ca_sha256"), "64 hex digits are expected")
        if not confinement.trust_domain and not confinement.dns:
            yield Finding(path, "trust_domain or dns is needed: the names that this CA may give")
        if confinement.trust_domain and not _TRUST_DOMAIN.fullmatch(confinement.trust_domain):
            yield Finding((*path, "trust_domain"), "a SPIFFE trust domain is expected, for example partner.example")
        for place, suffix in enumerate(confinement.dns):
            if not _SUFFIX.fullmatch(suffix):
                text = "a DNS name is expected, without wildcards: partner.example has all names below it too"
                yield Finding((*path, "dns", place), text)
        if (names := (confinement.ca, confinement.ca_sha256)) in seen:
            yield Finding(path, "this CA is confined above already: keep one of the two")
        seen.add(names)


def unnamed_constraints(config: Config, configured: Sequence[Anchor]) -> Iterator[tuple[CaConstraint, Finding]]:
    """Constraints that name none of the file's CAs."""
    for index, constraint in enumerate(config.tls.ca_constraints):
        if not any(map(confinement_of(constraint).names, configured)):
            path: Path = ("tls", "ca_constraints", index, "ca" if constraint.ca else "ca_sha256")
            yield constraint, Finding(path, f"no CA of tls.ca_cert is this one; there are {_names(configured)}")


def warnings(config: Config, anchors: Anchors, configured: Sequence[Anchor]) -> Iterator[Finding]:
    """Warnings with the CAs: ``anchors`` are those in force, ``configured`` those of the file."""
    yield from (replace(finding, warning=True) for _, finding in unnamed_constraints(config, configured))
    for name in anchors.shared_names():
        text = f'several CAs, with different keys, are called "{name}", and a rule with this name means all of them'
        yield Finding(("tls", "ca_cert"), f"{text}: ca_sha256 tells them apart", warning=True)
    if len(anchors.trusted) >= BUNDLE:
        text = f"{len(anchors.trusted)} CAs, as in a bundle of public ones: whoever has a certificate of any is let in"
        yield Finding(("tls", "ca_cert"), f"{text}; name the CAs of your clients alone", warning=True)
    cas = _TrustedCas(
        frozenset(entry.subject for entry in anchors.trusted.values()),
        frozenset(anchors.trusted),
        _names(anchors.trusted.values()),
        anchors.several,
        _names(anchors.unconfined) if anchors.several and len(anchors.unconfined) > 1 else "",
    )
    warned = [
        Finding(path, text, warning=True)
        for subject, where, matcher in _matchers(config)
        for path, text in _of_match(subject, where, matcher, cas)
    ]
    warned += (Finding(path, text, warning=True) for path, text in _of_tokens(config, cas))
    yield from warned[:MAX_WARNINGS]
    if len(warned) > MAX_WARNINGS:
        yield Finding(("identities",), f"there is the like to say of {len(warned) - MAX_WARNINGS} more", warning=True)


@dataclass(frozen=True, slots=True)
class _TrustedCas:
    """The trusted CAs.

    ``listed`` is a text that names them; ``free`` names unconfined ones, if there are several CAs.
    """

    subjects: frozenset[str]
    digests: frozenset[str]
    listed: str
    several: bool
    free: str


def _matchers(config: Config) -> Iterator[tuple[str, Path, Matcher]]:
    for index, rule in enumerate(config.identities):
        matcher = matcher_of(rule.match)
        if matcher.conditions:
            yield f'rule "{rule.name}"', ("identities", index, "match"), matcher
    for index, key in enumerate(config.keys):
        if key.require_certificate is not None:
            yield f'key "{key.name}"', ("keys", index, "require_certificate"), matcher_of(key.require_certificate)


def _of_match(subject: str, path: Path, matcher: Matcher, cas: _TrustedCas) -> Iterator[tuple[Path, str]]:
    given = dict(matcher.given())
    for name, values in (("ca", cas.subjects), ("ca_sha256", cas.digests)):
        if name in given and not _is_among(given[name], values):
            text = f"{subject} matches nobody: no CA of tls.ca_cert is this one; there are {cas.listed}"
            yield (*path, name), text
    if not cas.several or matcher.names_ca:
        return
    if (issuer := given.get("issuer")) is not None:
        if not _is_among(issuer, cas.subjects):
            text = f"{subject} matches nobody: any of several CAs may give an intermediate this name; add ca"
            yield (*path, "issuer"), f"{text}; there are {cas.listed}"
    elif cas.free and not is_exact(given.get("sha256", "*")):
        text = f"{subject} names no CA, and any of several may give these names; add ca (or ca_sha256)"
        yield path, f"{text}; there are {cas.free}"


def _is_among(pattern: str, values: AbstractSet[str]) -> bool:
    return pattern in values if is_exact(pattern) else any(glob_matches(pattern, value) for value in values)


def _of_tokens(config: Config, cas: _TrustedCas) -> Iterator[tuple[Path, str]]:
    """Warn of a role of tokens whose filter uses certificate fields, where no rule restricts their CA."""
    roles: list[tuple[Path, str | None]] = [
        (("jwt_issuers", index, "role"), issuer.role) for index, issuer in enumerate(config.jwt_issuers)
    ]
    roles += (
        (("identities", index, "role"), rule.role)
        for index, rule in enumerate(config.identities)
        if rule.match.claims and not matcher_of(rule.match).conditions
    )
    for path, name in roles if cas.free else ():
        role = config.roles.get(name or "")
        if role is not None and any(template.of_certificate for template in filter_of(role)):
            text = f"the filter of role {name!r} takes names from certificates of any CA"
            yield path, f"{text}: confine them (tls.ca_constraints); there are {cas.free}"


def _names(anchors: Iterable[Anchor]) -> str:
    """A text of CA names, with digests where names are shared: `"CN=a", "CN=b" (12ab…)`."""
    each = list(anchors)
    count = Counter(entry.subject for entry in each)
    shown = [
        f'"{entry.subject}"' if count[entry.subject] == 1 else f'"{entry.subject}" ({entry.sha256})' for entry in each
    ]
    more = f" and {len(shown) - MAX_NAMED} more" if len(shown) > MAX_NAMED else ""
    return ", ".join(shown[:MAX_NAMED]) + more if shown else "none"
