"""Identity → rule → role → rights: an ordered list of rules, where the first that matches decides.

No rule, no role; no role, no rights. A certificate with a defect is never tried against a rule. What a request may do
with the rights of its role is decided in :mod:`tlsproxy.authz.access`.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Final

from tlsproxy.authz.access import Decision, Rights, forbidden
from tlsproxy.authz.credentials import Keys
from tlsproxy.authz.globs import glob_matches
from tlsproxy.authz.identity import Identity
from tlsproxy.authz.templates import Template


@dataclass(frozen=True, slots=True)
class Matcher:
    """Exact values or globs; every field that is given must hold, and one without any field matches nobody.

    A field that a certificate has several values of holds when any of them matches.
    """

    cn: str | None = None
    o: str | None = None
    ou: str | None = None
    dns: str | None = None
    uri: str | None = None
    email: str | None = None
    ip: str | None = None
    subject: str | None = None
    issuer: str | None = None
    serial: str | None = None
    sha256: str | None = None

    def given(self) -> tuple[tuple[str, str], ...]:
        """(field, normalised pattern) of the fields that are given."""
        pairs = ((one.name, getattr(self, one.name)) for one in fields(self))
        return tuple((name, normal_form(name, pattern)) for name, pattern in pairs if pattern is not None)

    def misses(self, identity: Identity) -> Iterator[str]:
        """One text for each field that does not hold."""
        given = self.given()
        if not given:
            yield "names no field"
        for name, pattern in given:
            values = _values_of(identity, name)
            if not any(glob_matches(pattern, value) for value in values):
                shown = " or ".join(f'"{value}"' for value in values) or "absent"
                yield f'{name} is {shown}, not "{pattern}"'

    def matches(self, identity: Identity) -> bool:
        return next(self.misses(identity), None) is None


@dataclass(frozen=True, slots=True)
class Rule:
    """``name`` is what the audit log and `explain` call it; ``role`` is a key of the policy's roles."""

    name: str
    match: Matcher
    role: str


@dataclass(frozen=True, slots=True, eq=False)
class Principal:
    """Who a connection is, decided once. Compared and hashed as the object that it is: a key of memos, not a value.

    ``refusal`` is what every request is answered that needs a caller, or None where the rights decide.
    """

    identity: Identity | None
    rule: str
    role: str
    rights: Rights
    refusal: Decision | None


@dataclass(frozen=True, slots=True)
class Policy:
    """Everything that decides who somebody is: a rule's role must be a key of ``roles``.

    ``filters``: the conditions of those roles that have some, to be filled in for each caller.
    """

    roles: Mapping[str, Rights]
    rules: tuple[Rule, ...]
    keys: Keys
    filters: Mapping[str, tuple[Template, ...]] = field(default_factory=dict)

    def principal_of(self, identity: Identity | None) -> Principal:
        """``None`` is a connection without a certificate, which has no rights of its own: a key may give it some."""
        if identity is None:
            return Principal(identity=None, rule="", role="", rights=Rights(), refusal=None)
        if identity.defect:
            return _refused(
                identity,
                "certificate_defect",
                f'no role for certificate "{identity.name}" ({identity.defect}): issue it anew without this defect',
            )
        for rule in self.rules:
            if rule.match.matches(identity):
                return self._holder(identity, rule)
        return _refused(
            identity,
            "no_role",
            f'no role for certificate "{identity.name}": '
            "the gateway's administrator can add a rule for it to `identities`",
        )

    def _holder(self, identity: Identity, rule: Rule) -> Principal:
        conditions = []
        for template in self.filters.get(rule.role, ()):
            condition = template.filled(identity)
            if condition is None:
                text = f'role "{rule.role}" is for certificates with exactly one {template.field}'
                return _refused(identity, "no_tenant", text)
            conditions.append(condition)
        rights = replace(self.roles[rule.role], conditions=tuple(conditions))
        return Principal(identity, rule.name, rule.role, rights, refusal=None)

    def why(self, identity: Identity) -> tuple[str, ...]:
        """One line for each rule, in order: that it matched, or which fields did not hold."""
        if identity.defect:
            return (f"no rule is tried, for the certificate has a defect: {identity.defect}",)
        lines: list[str] = []
        for rule in self.rules:
            label = f'rule "{rule.name}" (role "{rule.role}")'
            misses = tuple(rule.match.misses(identity))
            if not misses:
                return (*lines, f"{label}: matched; later rules are not tried")
            lines.append(f"{label}: {'; '.join(misses)}")
        return (*lines, "no rule matched")


def normal_form(name: str, pattern: str) -> str:
    """A pattern in the form in which :class:`Identity` holds its values.

    Serial numbers and fingerprints are commonly printed in upper case with colons (`openssl x509 -fingerprint`).
    """
    if name == "dns":
        return pattern.lower()
    if name == "sha256":
        return pattern.replace(":", "").lower()
    if name == "serial":
        return pattern.replace(":", "").lower().lstrip("0") or "0"
    if name == "ip":
        try:
            return str(ipaddress.ip_address(pattern))
        except ValueError:
            return pattern
    return pattern


_ATTRIBUTES: Final = {
    "cn": "common_name",
    "o": "organizations",
    "ou": "organizational_units",
    "dns": "dns_names",
    "uri": "uris",
    "email": "emails",
    "ip": "ips",
    "subject": "subject",
    "issuer": "issuer",
    "serial": "serial",
    "sha256": "sha256",
}


def _values_of(identity: Identity, name: str) -> tuple[str, ...]:
    """An attribute that the certificate does not have is no value, which not even ``**`` matches."""
    value: str | tuple[str, ...] = getattr(identity, _ATTRIBUTES[name])
    if isinstance(value, str):
        return (value,) if value else ()
    return value


def _refused(identity: Identity, reason: str, text: str) -> Principal:
    return Principal(identity, rule="", role="", rights=Rights(), refusal=forbidden(reason, text))
