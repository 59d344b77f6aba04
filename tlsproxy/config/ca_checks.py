"""Checks of rules and constraints on CAs: alone, and with the CAs of `tls.ca_cert` known."""

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
from tlsproxy.config.positions import Path, Tree

MOST: Final = 20
"""Rules that are told of one by one."""
SHOWN: Final = 5
"""CAs that one text names."""

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
    """Findings on the constraints alone, without looking at the CAs."""
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
    """Those that are about none of the CAs of the file."""
    for index, constraint in enumerate(config.tls.ca_constraints):
        if not any(map(confinement_of(constraint).names, configured)):
            path: Path = ("tls", "ca_constraints", index, "ca" if constraint.ca else "ca_sha256")
            yield constraint, Finding(path, f"no CA of tls.ca_cert is this one; there are {_listed(configured)}")


def warnings(config: Config, anchors: Anchors, configured: Sequence[Anchor]) -> Iterator[Finding]:
    """With the CAs known: ``anchors`` are those in force, ``configured`` those of the file."""
    yield from (replace(finding, warning=True) for _, finding in unnamed_constraints(config, configured))
    for name in anchors.shared_names():
        text = f'several CAs, with different keys, are called "{name}", and a rule with this name means all of them'
        yield Finding(("tls", "ca_cert"), f"{text}: ca_sha256 tells them apart", warning=True)
    known = _TrustedCas(
        frozenset(one.subject for one in anchors.trusted.values()),
        frozenset(anchors.trusted),
        _listed(anchors.trusted.values()),
        anchors.several,
        _listed(anchors.unconfined) if anchors.several and len(anchors.unconfined) > 1 else "",
    )
    told = [
        Finding(path, text, warning=True)
        for whose, where, matcher in _matchers(config)
        for path, text in _of_match(whose, where, matcher, known)
    ]
    told += (Finding(path, text, warning=True) for path, text in _of_issuers(config, known))
    yield from told[:MOST]
    if len(told) > MOST:
        yield Finding(("identities",), f"there is the like to say of {len(told) - MOST} more", warning=True)


@dataclass(frozen=True, slots=True)
class _TrustedCas:
    """The trusted CAs: ``listed`` names them, ``free`` those that may give any name if they are several."""

    subjects: frozenset[str]
    digests: frozenset[str]
    listed: str
    several: bool
    free: str


def _matchers(config: Config) -> Iterator[tuple[str, Path, Matcher]]:
    for index, rule in enumerate(config.identities):
        yield f'rule "{rule.name}"', ("identities", index, "match"), Matcher(**rule.match.model_dump())
    for index, key in enumerate(config.keys):
        if key.require_certificate is not None:
            matcher = Matcher(**key.require_certificate.model_dump())
            yield f'key "{key.name}"', ("keys", index, "require_certificate"), matcher


def _of_match(whose: str, path: Path, matcher: Matcher, known: _TrustedCas) -> Iterator[tuple[Path, str]]:
    given = dict(matcher.given())
    for name, values in (("ca", known.subjects), ("ca_sha256", known.digests)):
        if name in given and not _is_among(given[name], values):
            text = f"{whose} matches nobody: no CA of tls.ca_cert is this one; there are {known.listed}"
            yield (*path, name), text
    if not known.several or matcher.names_ca:
        return
    if (issuer := given.get("issuer")) is not None:
        if not _is_among(issuer, known.subjects):
            text = f"{whose} matches nobody: any of several CAs may give an intermediate this name; add ca"
            yield (*path, "issuer"), f"{text}; there are {known.listed}"
    elif known.free and not is_exact(given.get("sha256", "*")):
        text = f"{whose} names no CA, and any of several may give these names; add ca (or ca_sha256)"
        yield path, f"{text}; there are {known.free}"


def _is_among(pattern: str, values: AbstractSet[str]) -> bool:
    return pattern in values if is_exact(pattern) else any(glob_matches(pattern, value) for value in values)


def _of_issuers(config: Config, known: _TrustedCas) -> Iterator[tuple[Path, str]]:
    """A role of tokens is nobody's by a rule, so that no rule says whose certificates its filter believes."""
    for index, issuer in enumerate(config.jwt_issuers if known.free else ()):
        role = config.roles.get(issuer.role or "")
        if role is not None and any(template.of_certificate for template in filter_of(role)):
            text = f"the filter of role {issuer.role!r} takes names from certificates of any CA"
            yield (
                ("jwt_issuers", index, "role"),
                f"{text}: confine them (tls.ca_constraints); there are {known.free}",
            )


def _listed(anchors: Iterable[Anchor]) -> str:
    """By name, and by digest where several have the same."""
    each = list(anchors)
    count = Counter(one.subject for one in each)
    shown = [f'"{one.subject}"' if count[one.subject] == 1 else f'"{one.subject}" ({one.sha256})' for one in each]
    more = f" and {len(shown) - SHOWN} more" if len(shown) > SHOWN else ""
    return ", ".join(shown[:SHOWN]) + more if shown else "none"
