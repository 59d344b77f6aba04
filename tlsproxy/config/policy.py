"""A configuration → the policy that decides by it."""

from __future__ import annotations

from tlsproxy.authz.access import GRANTS, GlobalMode, Grant, Rights
from tlsproxy.authz.credentials import Keys
from tlsproxy.authz.roles import Matcher, Policy, Rule
from tlsproxy.authz.templates import parse_template
from tlsproxy.config.model import CollectionGrant, Config, Role


def policy_of(config: Config, keys: Keys) -> Policy:
    """``config`` has passed its checks: every rule names a role that exists."""
    return Policy(
        roles={name: _rights(role) for name, role in config.roles.items()},
        rules=tuple(Rule(rule.name, Matcher(**rule.match.model_dump()), rule.role) for rule in config.identities),
        keys=keys,
        filters={
            name: tuple(parse_template(key, text) for key, text in role.filter.items())
            for name, role in config.roles.items()
            if role.filter
        },
    )


def _rights(role: Role) -> Rights:
    if isinstance(role.access, str):
        return Rights(everywhere=GlobalMode(role.access))
    return Rights(grants=tuple(_grant(grant) for grant in role.access))


def _grant(grant: CollectionGrant) -> Grant:
    write, extras = GRANTS[grant.access]
    return Grant(grant.collection, write=write, extras=extras)
