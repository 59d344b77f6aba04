"""The policy of a configuration: roles, rules, keys and tokens in the form that decisions take."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from tlsproxy.authz.access import Condition, Confinement, GlobalMode, Grants, Rights, Value
from tlsproxy.authz.keys import Keys
from tlsproxy.authz.locks import Locks
from tlsproxy.authz.matcher import Claim, ClaimMatcher, Matcher
from tlsproxy.authz.roles import Policy
from tlsproxy.authz.rules import Rule
from tlsproxy.authz.templates import parse_template
from tlsproxy.authz.tokens import Tokens
from tlsproxy.config.callers import Match
from tlsproxy.config.grants import filter_of, grant_of
from tlsproxy.config.locks import LockFile
from tlsproxy.config.model import Config, IdentityRule, Role
from tlsproxy.config.queries import query_policy_of


def policy_of(config: Config, keys: Keys, tokens: Tokens, locks: Locks) -> Policy:
    """The policy of a checked ``config``, whose rules name existing roles."""
    unmapped = config.service.unmapped_certificate or ("deny" if config.identities else "token")
    return Policy(
        roles={name: rights_of(role) for name, role in config.roles.items()},
        rules=tuple(map(rule_of, config.identities)),
        keys=keys,
        tokens=tokens,
        unmapped_may_use_credentials=unmapped == "token",
        filters={
            name: tuple(parse_template(key, text) for key, text in role.filter.items())
            for name, role in config.roles.items()
            if role.filter
        },
        public={name: _conditions(role.or_public) for name, role in config.roles.items() if role.or_public},
        locks=locks,
    )


def locks_of(config: Config, file: LockFile) -> Locks:
    """The locks of a checked ``config`` and of its lock file."""
    return Locks((*(entry.lock(configured=True) for entry in config.revoked), *file.given()))


def rule_of(rule: IdentityRule) -> Rule:
    claims = ClaimMatcher(tuple(Claim.of(path, value) for path, value in rule.match.claims.items()))
    return Rule(rule.name, matcher_of(rule.match), rule.role, claims)


def matcher_of(match: Match) -> Matcher:
    """Certificate fields of a match."""
    return Matcher(**match.model_dump(exclude={"claims"}))


def confinement_text(role: Role) -> str:
    """A role's filter as configured: ` where tenant = "{cn}"`; empty without one."""
    if not role.filter:
        return ""
    return f" where {Confinement(_conditions(role.filter), _conditions(role.or_public))}"


def configured_rights(role: Role) -> Rights:
    """A role's rights with its filter as configured, templates and all: for people, not for decisions."""
    return replace(rights_of(role), conditions=_conditions(role.filter), public=_conditions(role.or_public))


def _conditions(values: Mapping[str, Value]) -> tuple[Condition, ...]:
    return tuple(Condition(key, (value,)) for key, value in values.items())


def rights_of(role: Role) -> Rights:
    operations, queries = filter_of(role.operations), query_policy_of(role.queries)
    if isinstance(role.access, str):
        return Rights(everywhere=GlobalMode(role.access), operations=operations, queries=queries)
    return Rights(grants=Grants(*map(grant_of, role.access)), operations=operations, queries=queries)
