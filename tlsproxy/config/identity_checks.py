"""Checks of roles and identities: each rule can match and names a role, and some caller has rights."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Final

from tlsproxy.authz.globs import glob_error, is_exact
from tlsproxy.authz.matcher import Matcher, normal_form
from tlsproxy.authz.templates import Template, parse_template
from tlsproxy.config.findings import Finding
from tlsproxy.config.grants import operation_findings
from tlsproxy.config.model import Config, Role
from tlsproxy.config.positions import Path, Tree
from tlsproxy.config.problems import did_you_mean
from tlsproxy.config.queries import query_findings
from tlsproxy.config.secrets import KEY_NAMES

_DIGEST: Final = re.compile(r"[0-9a-f]{64}")
_HEX: Final = {"sha256": _DIGEST, "ca_sha256": _DIGEST, "serial": re.compile(r"[0-9a-f]{1,40}")}
"""RFC 5280 §4.1.2.2: a serial number has at most 20 octets."""
HINTS: Final = 20
"""Unknown roles that get a "did you mean": there may be thousands, and each is compared with all roles."""


def _relayed(config: Config) -> set[str]:
    """Roles that listeners of mode tcp allow, whatever else they have."""
    return {role for listener in config.listeners for role in listener.allow}


def roles(config: Config, _tree: Tree) -> Iterator[Finding]:
    for name, role in config.roles.items():
        yield from _filter_findings(("roles", name), role)
        yield from query_findings(("roles", name, "queries"), role.queries)
        where: Path = ("roles", name, "operations")
        if isinstance(role.access, str):
            yield from operation_findings(where, role.operations, role.access)
            continue
        yield from operation_findings(where, role.operations, [grant.access for grant in role.access])
        if not role.access and name not in _relayed(config):
            yield Finding(("roles", name, "access"), "an empty list allows nothing", warning=True)
        seen: set[str] = set()
        for index, grant in enumerate(role.access):
            path: Path = ("roles", name, "access", index, "collection")
            if error := glob_error(grant.collection):
                yield Finding(path, error)
            # Qdrant refuses a token with a collection twice: whoever reads it might see only one of the two.
            if grant.collection in seen:
                yield Finding(path, f"{grant.collection!r} is in this list already")
            seen.add(grant.collection)
            yield from operation_findings((*path[:-1], "operations"), grant.operations, [grant.access])
            if grant.access == "m" and role.filter:
                text = "nobody confined by a `filter` manages collections: m gives what rw does"
                yield Finding((*path[:-1], "access"), text, warning=True)


def _filter_findings(path: Path, role: Role) -> Iterator[Finding]:
    for section, values in (("filter", role.filter), ("or_public", role.or_public)):
        for key, value in values.items():
            try:
                template = parse_template(key, value)
            except ValueError as mistake:
                yield Finding((*path, section, key), str(mistake))
            else:
                if template.field and section == "or_public":
                    yield Finding((*path, section, key), "a fixed value is expected: the same points for all holders")
    for key in role.filter:
        parts = key.replace("[]", "").split(".")
        for other in role.filter:
            others = other.replace("[]", "").split(".")
            if key != other and others[: len(parts)] == parts:
                text = f"no point has values under both {key!r} and {other!r}: one of them is within the other"
                yield Finding((*path, "filter", other), text)
    if role.or_public and not role.filter:
        yield Finding((*path, "or_public"), "adds to a `filter`, and there is none: without one the role may read all")


def filter_of(role: Role) -> Iterator[Template]:
    """Valid templates of a role's filter; :func:`roles` reports the others."""
    for key, text in role.filter.items():
        try:
            template = parse_template(key, text)
        except ValueError:
            continue
        yield template


def matches(config: Config, _tree: Tree) -> Iterator[Finding]:
    earlier: dict[tuple[tuple[str, str], ...], str] = {}
    for index, rule in enumerate(config.identities):
        given = rule.match.model_dump(exclude_none=True, exclude={"claims"})
        if given or not rule.match.claims:
            yield from match_findings(("identities", index, "match"), given)
        if rule.match.claims:
            continue
        same = Matcher(**given).given()
        if same in earlier:
            text = f"never reached: rule {earlier[same]!r} has the same match and comes first"
            yield Finding(("identities", index), text, warning=True)
        earlier.setdefault(same, rule.name)


def match_findings(path: Path, given: Mapping[str, str]) -> Iterator[Finding]:
    """Findings on one `match`; ``given`` are its fields that are not null."""
    if not given:
        yield Finding(path, "an empty match would match everybody: name at least one field")
    for name, pattern in given.items():
        if error := glob_error(pattern) or _value_error(name, pattern):
            yield Finding((*path, name), error)
        elif name in {"subject", "issuer", "ca"} and not is_exact(pattern):
            text = "a '*' here crosses the ',' between two attributes: prefer cn, o and ou, or the exact text"
            yield Finding((*path, name), text, warning=True)


def role_findings(named: Iterable[tuple[Path, str]], config: Config) -> Iterator[Finding]:
    """Findings on unknown roles among those ``named`` at a path."""
    unknown = ((path, role) for path, role in named if role not in config.roles)
    for count, (path, role) in enumerate(unknown):
        hint = did_you_mean(role, config.roles) if count < HINTS else ""
        yield Finding(path, f"no role is called {role!r}{hint}")


def names(config: Config, _tree: Tree) -> Iterator[Finding]:
    seen: set[str] = set()
    for index, rule in enumerate(config.identities):
        if rule.name in seen:
            yield Finding(("identities", index, "name"), f"{rule.name!r} is the name of an earlier rule")
        seen.add(rule.name)
    roles_of_rules = ((("identities", index, "role"), rule.role) for index, rule in enumerate(config.identities))
    yield from role_findings(roles_of_rules, config)


def role_use(config: Config, _tree: Tree) -> Iterator[Finding]:
    used = {rule.role for rule in config.identities} | {key.role for key in config.keys}
    used |= {issuer.role for issuer in config.jwt_issuers if issuer.role is not None}
    for name in config.roles:
        if name not in used:
            yield Finding(("roles", name), "no identity, key or issuer has this role", warning=True)


def nobody(config: Config, _tree: Tree) -> Iterator[Finding]:
    service = config.service
    keys = [getattr(service, name) or getattr(service, f"{name}_file") for name in KEY_NAMES]
    useful = {name for name, role in config.roles.items() if role.access}
    useful |= _relayed(config)
    holders = {rule.role for rule in config.identities} | {key.role for key in config.keys}
    unknown = holders - {None} - config.roles.keys()  # told by its own finding
    if not any(keys) and not config.jwt_issuers and not unknown and useful.isdisjoint(holders):
        text = "nobody could do anything: give an identity a role, or set an API key"
        yield Finding(("identities",), f"{text} (Qdrant's 'no keys set: everybody may do everything' is not offered)")


def _value_error(name: str, pattern: str) -> str | None:
    """The reason why no certificate can have this value; None if one can."""
    if pattern != pattern.strip():
        return "begins or ends with a space: a certificate with such a name never has a role"
    if not is_exact(pattern):
        return None
    if (expected := _HEX.get(name)) and not expected.fullmatch(normal_form(name, pattern)):
        return "a serial number in hex is expected" if name == "serial" else "64 hex digits are expected"
    if name == "ip":
        try:
            ipaddress.ip_address(pattern)
        except ValueError:
            return "an IP address, or a glob of one, is expected"
    return None
