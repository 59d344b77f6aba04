"""What must hold of rules and constraints that are about CAs: alone, and with the CAs of `tls.ca_cert` known."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import Final

from tlsproxy.authz.anchors import Anchors, Confinement
from tlsproxy.authz.globs import glob_matches, is_exact
from tlsproxy.authz.identity import Anchor
from tlsproxy.authz.matcher import Matcher, normal_form
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
    """Of each alone."""
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


def findings(
    config: Config, anchors: Anchors, configured: Sequence[Anchor], *, constraints_accepted: bool
) -> Iterator[Finding]:
    """With the CAs known: ``anchors`` are those in force, ``configured`` those of the file.

    A constraint that names none of them is an error, unless it was ``constraints_accepted`` with them.
    """
    for index, constraint in enumerate(config.tls.ca_constraints):
        if not any(map(confinement_of(constraint).names, configured)):
            path: Path = ("tls", "ca_constraints", index, "ca" if constraint.ca else "ca_sha256")
            text = f"no CA of tls.ca_cert is this one; there are {_listed(configured)}"
            yield Finding(path, text, warning=constraints_accepted)
    for name in anchors.shared_names():
        text = f'several CAs, with different keys, are called "{name}", and a rule with this name means all of them'
        yield Finding(("tls", "ca_cert"), f"{text}: ca_sha256 tells them apart", warning=True)
    told = [finding for path, matcher in _matchers(config) for finding in _of_match(path, matcher, anchors)]
    if anchors.several and len(anchors.unconfined) > 1:
        told += _of_issuers(config, anchors)
    yield from told[:MOST]
    if len(told) > MOST:
        yield Finding(("identities",), f"there is the like to say of {len(told) - MOST} more", warning=True)


def _matchers(config: Config) -> Iterator[tuple[Path, Matcher]]:
    rules = ((("identities", index, "match"), rule.match) for index, rule in enumerate(config.identities))
    keys = ((("keys", index, "require_certificate"), key.require_certificate) for index, key in enumerate(config.keys))
    return ((path, Matcher(**match.model_dump())) for path, match in chain(rules, keys) if match is not None)


def _of_match(path: Path, matcher: Matcher, anchors: Anchors) -> Iterator[Finding]:
    given, trusted = dict(matcher.given()), anchors.trusted.values()
    there = f"there are {_listed(trusted)}"
    for name, values in (("ca", (one.subject for one in trusted)), ("ca_sha256", anchors.trusted)):
        if name in given and not any(glob_matches(given[name], value) for value in values):
            yield Finding((*path, name), f"it matches nobody: no CA of tls.ca_cert is this one; {there}", warning=True)
    if not anchors.several or matcher.names_ca:
        return
    if (issuer := given.get("issuer")) is not None:
        if not any(glob_matches(issuer, one.subject) for one in trusted):
            text = "it matches nobody: several CAs are trusted, and any of them may name an intermediate so; add ca"
            yield Finding((*path, "issuer"), f"{text}; {there}", warning=True)
    elif len(anchors.unconfined) > 1 and not is_exact(given.get("sha256", "*")):
        text = "several CAs are trusted, and any of them may give these names: add ca (or ca_sha256)"
        yield Finding(path, f"{text}; there are {_listed(anchors.unconfined)}", warning=True)


def _of_issuers(config: Config, anchors: Anchors) -> Iterator[Finding]:
    """A role of tokens is nobody's by a rule, so that no rule says whose certificates its filter believes."""
    for index, issuer in enumerate(config.jwt_issuers):
        role = config.roles.get(issuer.role or "")
        if role is not None and any(template.of_certificate for template in filter_of(role)):
            text = f"the filter of role {issuer.role!r} takes names from certificates of any CA"
            there = f"there are {_listed(anchors.unconfined)}"
            path: Path = ("jwt_issuers", index, "role")
            yield Finding(path, f"{text}: confine them (tls.ca_constraints); {there}", warning=True)


def _listed(anchors: Iterable[Anchor]) -> str:
    """By name, and by digest where several have the same."""
    each = list(anchors)
    subjects = [one.subject for one in each]
    shown = [
        f'"{one.subject}"' if subjects.count(one.subject) == 1 else f'"{one.subject}" ({one.sha256})' for one in each
    ]
    more = f" and {len(shown) - SHOWN} more" if len(shown) > SHOWN else ""
    return ", ".join(shown[:SHOWN]) + more if shown else "none"
