"""Identity → rule → role → rights, and token → rule → role → rights (:mod:`tlsproxy.authz.rules`).

Without a rule there is no role, and without a role no rights. A certificate with a defect, or with a name outside of
its CA's constraint, matches no rule. :mod:`tlsproxy.authz.access` decides what the rights allow.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import InitVar, dataclass, field, replace
from typing import Any

from tlsproxy.authz.access import Condition, Decision, Rights, forbidden
from tlsproxy.authz.identity import Identity
from tlsproxy.authz.keys import NEVER, Keys
from tlsproxy.authz.locks import Locks
from tlsproxy.authz.locks import refusal as locked
from tlsproxy.authz.rules import Rule, Rules
from tlsproxy.authz.templates import Template
from tlsproxy.authz.tokens import Token, Tokens


@dataclass(frozen=True, slots=True, eq=False)
class Principal:
    """The authenticated peer of a connection. Compared and hashed by identity, as a key of memos.

    ``role`` is empty where the connection has no rights of its own: without a certificate, or with one that no rule
    matches but that may use a key or token. ``refusal`` answers every request that needs a caller; None where the
    rights decide. ``by_claim``: the role's filter needs a claim of each request's token; ``rights`` are empty until
    :meth:`Policy.confined` fills it in. ``unmapped``: no rule gives this certificate a role, and this answers its
    requests, but for those with a token whose rule names the certificate too.
    """

    identity: Identity | None
    rule: str
    role: str
    rights: Rights
    refusal: Decision | None
    by_claim: bool = False
    unmapped: Decision | None = None


@dataclass(frozen=True, slots=True)
class Policy:
    """The configuration of authentication. The role of each rule must be a key of ``roles``.

    ``unmapped_may_use_credentials``: with a certificate that no rule matches, a key or token may be used as without
    one; otherwise all requests are refused. A certificate with a defect is always refused. ``filters``: the condition
    templates by role, filled in for each caller; ``public``: what the same role may read besides. ``locks`` hold
    callers whatever the others say.
    """

    roles: Mapping[str, Rights]
    rules: tuple[Rule, ...]
    keys: Keys
    tokens: Tokens = field(default_factory=Tokens)
    unmapped_may_use_credentials: bool = False
    filters: Mapping[str, tuple[Template, ...]] = field(default_factory=dict)
    public: Mapping[str, tuple[Condition, ...]] = field(default_factory=dict)
    locks: Locks = field(default_factory=Locks, compare=False)
    index: InitVar[Rules | None] = None
    _rules: Rules = field(init=False, repr=False, compare=False)

    def __post_init__(self, index: Rules | None) -> None:
        """``index`` is that of the same ``rules``, which is made if there is none."""
        object.__setattr__(self, "_rules", Rules(self.rules) if index is None else index)

    def parts(self) -> Iterator[object]:
        """Its objects, to be freed one by one."""
        yield from self.rules
        yield from self.roles.values()
        yield from self.locks.parts()
        yield from self._rules.parts()

    def principal_of(self, identity: Identity | None) -> Principal:
        """The principal of a connection; None for one without a certificate, which needs a key or token."""
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
        if (rule := self._rules.of_certificate(identity)) is not None:
            return self._holder(identity, rule)
        if self.unmapped_may_use_credentials:
            return Principal(identity, rule="", role="", rights=Rights(), refusal=None)
        if self._rules.awaits_token(identity):
            refused = _refused(
                identity,
                "no_role",
                f'no role for certificate "{identity.name}" alone: '
                "a rule of `identities` gives it one together with claims of a token",
            )
            return replace(refused, refusal=None, unmapped=refused.refusal)
        return _refused(
            identity,
            "no_role",
            f'no role for certificate "{identity.name}": '
            "the gateway's administrator can add a rule for it to `identities`",
        )

    def rule_of(self, token: Token, identity: Identity | None) -> Rule | None:
        """The rule that gives a token its role, beside a certificate of this ``identity``. Qdrant's own have none."""
        return self._rules.of_token(token.claims.claims, identity) if token.verifier.issuer else None

    def with_locks(self, locks: Locks) -> Policy:
        """The same policy but for its locks, which no rule depends on."""
        return replace(self, locks=locks, index=self._rules)

    def held(self, principal: Principal, now: float) -> tuple[Principal, float]:
        """The principal as locks have it at ``now``, and the end of the lock that refuses it."""
        lock = self.locks.of_identity(principal.identity, now)
        if lock is None or principal.identity is None:
            return principal, NEVER
        return _without_rights(principal.identity, locked("certificate")), lock.until

    def _holder(self, identity: Identity, rule: Rule) -> Principal:
        if any(template.of_claim for template in self.filters.get(rule.role, ())):
            return Principal(identity, rule.name, rule.role, Rights(), refusal=None, by_claim=True)
        rights = self.confined(self.roles[rule.role], rule.role, identity, {})
        if isinstance(rights, Decision):
            return Principal(identity, rule="", role="", rights=Rights(), refusal=rights)
        return Principal(identity, rule.name, rule.role, rights, refusal=None)

    def confined(
        self, rights: Rights, role: str, identity: Identity | None, claims: Mapping[str, Any]
    ) -> Rights | Decision:
        """Rights by this role with the conditions of its filter; a refusal if one of them cannot be filled in.

        ``claims`` are those of the verified token, if there is one.
        """
        conditions = []
        for template in self.filters.get(role, ()):
            condition = template.filled(identity, claims)
            if condition is None:
                return forbidden("no_tenant", f'role "{role}" is for {template.needs}')
            conditions.append(condition)
        return replace(rights, conditions=tuple(conditions), public=self.public.get(role, ()))

    def why(self, identity: Identity) -> tuple[str, ...]:
        """One line for each rule without claims, in order: that it matched, or the fields that did not."""
        if identity.defect:
            return (f"no rule is tried, for the certificate has a defect: {identity.defect}",)
        if identity.foreign:
            return (f"no rule is tried, for tls.ca_constraints confines the CA to other names than {identity.foreign}",)
        return _why((rule for rule in self.rules if not rule.claims), lambda rule: tuple(rule.match.misses(identity)))

    def why_of_token(self, token: Token, identity: Identity | None) -> tuple[str, ...]:
        """The same of each rule with claims; ``identity`` is of the certificate beside the token, if any."""
        if not token.verifier.issuer:
            return ("no rule is tried: its signer is no issuer of jwt_issuers",)

        def misses(rule: Rule) -> tuple[str, ...]:
            found = tuple(rule.claims.misses(token.claims.claims))
            if not rule.match.conditions:
                return found
            return (*found, *(rule.match.misses(identity) if identity is not None else ("there is no certificate",)))

        return _why((rule for rule in self.rules if rule.claims), misses)


def _why(rules: Iterable[Rule], misses_of: Callable[[Rule], tuple[str, ...]]) -> tuple[str, ...]:
    lines: list[str] = []
    for rule in rules:
        label = f'rule "{rule.name}" (role "{rule.role}")'
        misses = misses_of(rule)
        if not misses:
            return (*lines, f"{label}: matched; later rules are not tried")
        lines.append(f"{label}: {'; '.join(misses)}")
    return (*lines, "no rule matched")


def _refused(identity: Identity, reason: str, text: str) -> Principal:
    return _without_rights(identity, forbidden(reason, text))


def _without_rights(identity: Identity, refusal: Decision) -> Principal:
    return Principal(identity, rule="", role="", rights=Rights(), refusal=refusal)
