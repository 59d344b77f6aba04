"""Admission: certificate, key and token of a request → its caller, with all rights that apply.

A key or token can only narrow the rights of the certificate's role. It stands alone where the certificate gives none:
there is no certificate, or no rule matches it and the policy allows that, or the token's own rule names that
certificate. All rights that are collected here must allow
a request, they are never united: a role with `docs r` and a key with `logs rw` allow nothing together.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from tlsproxy.authz.access import Confinements, Decision, Rights
from tlsproxy.authz.claims import ValueExists
from tlsproxy.authz.identity import Identity
from tlsproxy.authz.keys import NEVER, Key
from tlsproxy.authz.locks import refusal as locked
from tlsproxy.authz.query_policy import QueryPolicy, merged
from tlsproxy.authz.roles import Policy, Principal
from tlsproxy.authz.rules import Rule
from tlsproxy.authz.tokens import INVALID, NO_RULE, Token, unauthenticated

NO_CREDENTIAL = unauthenticated("no_credential", "Must provide an API key or an Authorization bearer token")


@dataclass(frozen=True, slots=True)
class Credential:
    """The valid key or token of a request.

    ``name`` is that of the key, or of the token's verifier; ``role`` that of a named key, or of the token's issuer.
    ``rule`` matched the token's claims. All ``rights`` must allow, a token's own come first. ``expires``: seconds since
    the epoch, exclusive. ``subject`` and ``groups`` are a token's, for the audit log; ``claims`` are all of them, until
    the request is admitted: plans are remembered, and a token may have thousands.
    """

    kind: Literal["ApiKey", "Jwt"]
    name: str
    rights: tuple[Rights, ...]
    role: str = ""
    expires: float = NEVER
    subject: str = ""
    exists: ValueExists | None = None
    rule: Rule | None = None
    groups: tuple[str, ...] = ()
    claims: Mapping[str, Any] = field(default_factory=dict, repr=False, hash=False)

    @property
    def roles(self) -> tuple[str, ...]:
        """All that hold: of a token that of its rule first."""
        own = (self.rule.role,) if self.rule is not None else ()
        return tuple(dict.fromkeys(role for role in (*own, self.role) if role))

    @property
    def gives(self) -> str:
        """Its rights as text."""
        return " & ".join(map(str, self.rights))


@dataclass(frozen=True, slots=True)
class Admission:
    """``principal`` is the connection's, with its rights in this request; at least one of the two has rights.

    All ``rights`` must allow; those of the certificate's role come first. ``confinements`` are those of all: the caller
    may use only points that are within each of them. ``queries``: their query policies, the stricter of each part.
    """

    principal: Principal
    credential: Credential | None
    rights: tuple[Rights, ...] = field(init=False, repr=False, compare=False)
    confinements: Confinements = field(init=False, repr=False, compare=False)
    queries: QueryPolicy = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        own = (self.principal.rights,) if self.principal.role else ()
        rights = own if self.credential is None else (*own, *self.credential.rights)
        confinements = tuple(one.confinement for one in rights if one.confinement is not None)
        object.__setattr__(self, "rights", rights)
        object.__setattr__(self, "confinements", confinements)
        object.__setattr__(self, "queries", merged(one.queries for one in rights))

    @property
    def role(self) -> str:
        """The certificate's role, else the credential's."""
        return self.principal.role or next(iter(self.credential.roles if self.credential is not None else ()), "")

    @property
    def rule(self) -> str:
        """The name of the rule that gave the certificate its role, else of the token's."""
        of_token = self.credential.rule if self.credential is not None else None
        return self.principal.rule or (of_token.name if of_token is not None else "")

    @property
    def expires(self) -> float:
        return NEVER if self.credential is None else self.credential.expires


def admit(principal: Principal, policy: Policy, presented: str | None, now: float) -> Admission | Decision:
    """Admits a request; ``presented`` is its API key or bearer token, if any, ``now`` seconds since the epoch.

    An invalid credential is refused even where the certificate alone would do, and also where no key or token is
    configured. Qdrant ignores credentials then; but removing the last key must not widen its holder's rights.
    """
    if principal.refusal is not None:
        return principal.refusal
    credential = None
    if presented is not None:
        outcome = _credential(principal, policy, presented, now)
        if isinstance(outcome, Decision):
            return outcome
        credential = outcome
    return joined(principal, policy, credential)


def joined(principal: Principal, policy: Policy, credential: Credential | None) -> Admission | Decision:
    """Admits a request by its connection's principal and its valid credential, if any."""
    if principal.refusal is not None:
        return principal.refusal
    rule = credential.rule if credential is not None else None
    if principal.unmapped is not None and (rule is None or not rule.of_both):
        return principal.unmapped
    if credential is None and not principal.role:
        return NO_CREDENTIAL
    if principal.by_claim:
        claims = credential.claims if credential is not None else {}
        rights = policy.confined(policy.roles[principal.role], principal.role, principal.identity, claims)
        if isinstance(rights, Decision):
            return rights
        principal = replace(principal, rights=rights)
    if credential is not None and credential.claims:
        credential = replace(credential, claims={})
    return Admission(principal, credential)


def _credential(principal: Principal, policy: Policy, presented: str, now: float) -> Credential | Decision:
    key = policy.keys.find(presented, principal.identity, now)
    if key is not None:
        if policy.locks.of_key(key.name, now) is not None:
            return locked("key")
        return key_credential(key, policy, principal.identity)
    if not policy.tokens:
        return INVALID
    token = policy.tokens.verify(presented, principal.identity, now)
    if isinstance(token, Decision):
        return token
    if policy.locks.of_token(token.verifier.name, token.claims.claims, now) is not None:
        return locked("token")
    return token_credential(token, policy, principal.identity)


def key_credential(key: Key, policy: Policy, identity: Identity | None) -> Credential | Decision:
    """A valid key as a credential, within its role's filter."""
    rights = policy.confined(key.rights, key.role, identity, {})
    if isinstance(rights, Decision):
        return rights
    return Credential("ApiKey", key.name, (rights,), role=key.role, expires=key.expires)


def token_credential(token: Token, policy: Policy, identity: Identity | None) -> Credential | Decision:
    """A verified token as a credential: its own rights, within the roles of its rule and of its issuer, if any.

    Its claims fill the filters of these roles. Without rights of its own it needs a rule.
    """
    rule = policy.rule_of(token, identity)
    if token.rights is None and rule is None:
        return NO_RULE
    credential = Credential(
        "Jwt",
        token.verifier.name,
        (token.rights,) if token.rights is not None else (),
        role=token.verifier.role,
        expires=token.expires,
        subject=token.subject,
        exists=token.claims.exists,
        rule=rule,
        groups=token.groups,
        claims=token.claims.claims,
    )
    confined = [policy.confined(policy.roles[role], role, identity, credential.claims) for role in credential.roles]
    if (refusal := next((one for one in confined if isinstance(one, Decision)), None)) is not None:
        return refusal
    return replace(credential, rights=(*credential.rights, *(one for one in confined if isinstance(one, Rights))))
