"""Identity → rule → role → rights: an ordered list of rules, where the first that matches decides.

No rule, no role; no role, no rights. A certificate with a defect, or with a name that its CA may not give, is tried
against no rule. What a request may do with the rights of its role is decided in :mod:`tlsproxy.authz.access`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from tlsproxy.authz.access import Decision, Rights, forbidden
from tlsproxy.authz.glob_index import Patterns, trait_of
from tlsproxy.authz.identity import Identity
from tlsproxy.authz.keys import Keys
from tlsproxy.authz.matcher import Matcher
from tlsproxy.authz.templates import Template
from tlsproxy.authz.tokens import Tokens


@dataclass(frozen=True, slots=True)
class Rule:
    """``name`` is what the audit log and `explain` call it; ``role`` is a key of the policy's roles."""

    name: str
    match: Matcher
    role: str


class Rules:
    """An ordered list of rules. The first that matches is found without trying those before it: each is known by one of
    its conditions, the one that has the fewest like it (of 10,000 rules by name: 4 µs in place of 1,700).
    """

    __slots__ = ("_known_by", "_rules")

    def __init__(self, rules: tuple[Rule, ...]) -> None:
        self._rules = rules
        traits = [
            [(attribute, trait_of(pattern), pattern) for attribute, pattern, _ in rule.match.conditions]
            for rule in rules
        ]
        common = Counter(one[:2] for each in traits for one in each)
        known_by: dict[str, list[tuple[str, int]]] = {}
        for place, each in enumerate(traits):
            if each:  # without a condition it matches nobody
                attribute, _, pattern = min(each, key=lambda one: common[one[:2]])
                known_by.setdefault(attribute, []).append((pattern, place))
        self._known_by = tuple((attribute, Patterns(places)) for attribute, places in known_by.items())

    def first(self, identity: Identity) -> Rule | None:
        """As trying each in turn has it."""
        places: set[int] = set()
        for attribute, patterns in self._known_by:
            values = getattr(identity, attribute)
            for value in (values,) if isinstance(values, str) else values:
                places.update(patterns.matching(value))
        rules = (self._rules[place] for place in sorted(places))
        return next((rule for rule in rules if rule.match.matches(identity)), None)


@dataclass(frozen=True, slots=True, eq=False)
class Principal:
    """Who a connection is, decided once. Compared and hashed as the object that it is: a key of memos, not a value.

    ``role`` is empty where the connection gives no rights of its own: without a certificate, or with one that no rule
    matches and that may nevertheless use a key or a token. ``refusal`` is what every request is answered that needs a
    caller, or None where the rights decide. ``by_claim``: the role's filter takes something from the token beside each
    request, and ``rights`` are none until :meth:`Policy.confined` knows it.
    """

    identity: Identity | None
    rule: str
    role: str
    rights: Rights
    refusal: Decision | None
    by_claim: bool = False


@dataclass(frozen=True, slots=True)
class Policy:
    """Everything that decides who somebody is: a rule's role must be a key of ``roles``.

    ``unmapped_may_use_credentials``: a certificate that no rule matches neither gives rights nor takes those of a key
    or token; otherwise its holder is refused whatever else is sent. One with a defect is always refused.
    ``filters``: the conditions of those roles that have some, to be filled in for each holder.
    """

    roles: Mapping[str, Rights]
    rules: tuple[Rule, ...]
    keys: Keys
    tokens: Tokens = field(default_factory=Tokens)
    unmapped_may_use_credentials: bool = False
    filters: Mapping[str, tuple[Template, ...]] = field(default_factory=dict)
    _rules: Rules = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_rules", Rules(self.rules))

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
        if identity.foreign:
            return _refused(
                identity,
                "ca_constraint",
                f'no role for certificate "{identity.name}": it has {identity.foreign}, '
                "and its CA is confined to other names (`tls.ca_constraints`)",
            )
        if (rule := self._rules.first(identity)) is not None:
            return self._holder(identity, rule)
        if self.unmapped_may_use_credentials:
            return Principal(identity, rule="", role="", rights=Rights(), refusal=None)
        return _refused(
            identity,
            "no_role",
            f'no role for certificate "{identity.name}": '
            "the gateway's administrator can add a rule for it to `identities`",
        )

    def _holder(self, identity: Identity, rule: Rule) -> Principal:
        if any(template.of_claim for template in self.filters.get(rule.role, ())):
            return Principal(identity, rule.name, rule.role, Rights(), refusal=None, by_claim=True)
        rights = self.confined(self.roles[rule.role], rule.role, identity, {})
        if isinstance(rights, Decision):
            return Principal(identity, rule="", role="", rights=Rights(), refusal=rights)
        return Principal(identity, rule.name, rule.role, rights, refusal=None)

    def confined(
        self, rights: Rights, role: str, identity: Identity | None, claims: Mapping[str, str]
    ) -> Rights | Decision:
        """These rights, which somebody has by this role, with the conditions of its filter: all of them, or a refusal.

        ``claims`` are the texts in the token that was verified, if one was.
        """
        conditions = []
        for template in self.filters.get(role, ()):
            condition = template.filled(identity, claims)
            if condition is None:
                return forbidden("no_tenant", f'role "{role}" is for {template.needs}')
            conditions.append(condition)
        return replace(rights, conditions=tuple(conditions))

    def why(self, identity: Identity) -> tuple[str, ...]:
        """One line for each rule, in order: that it matched, or which fields did not hold."""
        if identity.defect:
            return (f"no rule is tried, for the certificate has a defect: {identity.defect}",)
        if identity.foreign:
            return (f"no rule is tried, for tls.ca_constraints confines the CA to other names than {identity.foreign}",)
        lines: list[str] = []
        for rule in self.rules:
            label = f'rule "{rule.name}" (role "{rule.role}")'
            misses = tuple(rule.match.misses(identity))
            if not misses:
                return (*lines, f"{label}: matched; later rules are not tried")
            lines.append(f"{label}: {'; '.join(misses)}")
        return (*lines, "no rule matched")


def _refused(identity: Identity, reason: str, text: str) -> Principal:
    return Principal(identity, rule="", role="", rights=Rights(), refusal=forbidden(reason, text))
