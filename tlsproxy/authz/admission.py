"""Certificate, key and token together → who a request is from, and every right that it has to pass.

A credential can only narrow what the certificate's role gives, and stands alone where the certificate gives nothing of
its own (there is none, or no rule matches and the policy lets such a certificate pass). All rights that are collected
here must allow a request: there is no union of them anywhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from tlsproxy.authz.access import Condition, Decision, Rights
from tlsproxy.authz.claims import ValueExists
from tlsproxy.authz.identity import Identity
from tlsproxy.authz.keys import NEVER
from tlsproxy.authz.roles import Policy, Principal
from tlsproxy.authz.tokens import INVALID, Token, unauthenticated

NO_CREDENTIAL = unauthenticated("no_credential", "Must provide an API key or an Authorization bearer token")


@dataclass(frozen=True, slots=True)
class Credential:
    """The key or token of a request, once it was found good.

    ``name`` is the key's, or whose signature the token has; ``role`` a named key's, or that of the token's issuer.
    All ``rights`` must allow: a token's own come first. ``expires`` is the moment (seconds since the epoch) from which
    it counts no more. ``subject`` is the claim that is meant for the audit log, ``texts`` are all claims of a token
    that are strings.
    """

    kind: Literal["ApiKey", "Jwt"]
    name: str
    rights: tuple[Rights, ...]
    role: str = ""
    expires: float = NEVER
    subject: str = ""
    exists: ValueExists | None = None
    texts: Mapping[str, str] = field(default_factory=dict, repr=False, hash=False)

    @property
    def gives(self) -> str:
        """Its rights, spelled."""
        return " & ".join(map(str, self.rights))


@dataclass(frozen=True, slots=True)
class Admission:
    """``principal`` is the connection's, with the rights that it has in this request; one of the two gives rights."""

    principal: Principal
    credential: Credential | None

    @property
    def rights(self) -> tuple[Rights, ...]:
        """All of them must allow, the certificate's role speaks first."""
        own = (self.principal.rights,) if self.principal.role else ()
        return own if self.credential is None else (*own, *self.credential.rights)

    @property
    def conditions(self) -> tuple[Condition, ...]:
        """Payload conditions of all rights together: the caller may use the points that meet all of them."""
        return tuple(condition for rights in self.rights for condition in rights.conditions)

    @property
    def role(self) -> str:
        """The certificate's, or where that has none the credential's."""
        return self.principal.role or (self.credential.role if self.credential is not None else "")

    @property
    def expires(self) -> float:
        return NEVER if self.credential is None else self.credential.expires


def admit(principal: Principal, policy: Policy, presented: str | None, now: float) -> Admission | Decision:
    """``presented`` is the API key or bearer token of the request, None where it has none.

    A credential that is not good is refused even where the certificate alone would do, and where no key or token is
    configured at all: Qdrant looks at none then, but removing the last key must not widen what its holder may.
    ``now`` is seconds since the epoch.
    """
    if principal.refusal is not None:
        return principal.refusal
    credential = None
    if presented is not None:
        outcome = _credential(principal, policy, presented, now)
        if isinstance(outcome, Decision):
            return outcome
        credential = outcome
    if credential is None and not principal.role:
        return NO_CREDENTIAL
    if principal.by_claim:
        texts = credential.texts if credential is not None else {}
        rights = policy.confined(policy.roles[principal.role], principal.role, principal.identity, texts)
        if isinstance(rights, Decision):
            return rights
        principal = replace(principal, rights=rights)
    return Admission(principal, credential)


def _credential(principal: Principal, policy: Policy, presented: str, now: float) -> Credential | Decision:
    key = policy.keys.find(presented, principal.identity, now)
    if key is not None:
        rights = policy.confined(key.rights, key.role, principal.identity, {})
        if isinstance(rights, Decision):
            return rights
        return Credential("ApiKey", key.name, (rights,), role=key.role, expires=key.expires)
    if not policy.tokens:
        return INVALID
    token = policy.tokens.verify(presented, principal.identity, now)
    return token if isinstance(token, Decision) else token_credential(token, policy, principal.identity)


def token_credential(token: Token, policy: Policy, identity: Identity | None) -> Credential | Decision:
    """What a verified token gives, within its issuer's role where that has one: its claims fill that role's filter."""
    rights: tuple[Rights, ...] = (token.rights,)
    if token.role:
        confined = policy.confined(policy.roles[token.role], token.role, identity, token.claims.texts)
        if isinstance(confined, Decision):
            return confined
        rights = (token.rights, confined)
    return Credential(
        "Jwt",
        token.verifier,
        rights,
        role=token.role,
        expires=token.expires,
        subject=token.claims.subject,
        exists=token.claims.exists,
        texts=token.claims.texts,
    )
