"""Admission: certificate, key and token of a request → its caller, with all rights that apply.

A key or token can only narrow the rights of the certificate's role. It stands alone where the certificate gives none:
there is no certificate, or no rule matches it and the policy allows that. All rights that are collected here must allow
a request, they are never united: a role with `docs r` and a key with `logs rw` allow nothing together.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from tlsproxy.authz.access import Condition, Decision, Rights
from tlsproxy.authz.claims import ValueExists
from tlsproxy.authz.identity import Identity
from tlsproxy.authz.keys import NEVER, Key
from tlsproxy.authz.locks import refusal as locked
from tlsproxy.authz.query_policy import QueryPolicy, merged
from tlsproxy.authz.roles import Policy, Principal
from tlsproxy.authz.tokens import INVALID, Token, unauthenticated

NO_CREDENTIAL = unauthenticated("no_credential", "Must provide an API key or an Authorization bearer token")


@dataclass(frozen=True, slots=True)
class Credential:
    """The valid key or token of a request.

    ``name`` is that of the key, or of the token's verifier; ``role`` that of a named key, or of the token's issuer. All
    ``rights`` must allow, a token's own come first. ``expires``: seconds since the epoch, exclusive. ``subject`` is the
    claim for the audit log, ``texts`` are all string claims of a token.
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
        """Its rights as text."""
        return " & ".join(map(str, self.rights))


@dataclass(frozen=True, slots=True)
class Admission:
    """``principal`` is the connection's, with its rights in this request; at least one of the two has rights."""

    principal: Principal
    credential: Credential | None

    @property
    def rights(self) -> tuple[Rights, ...]:
        """All of them must allow; those of the certificate's role come first."""
        own = (self.principal.rights,) if self.principal.role else ()
        return own if self.credential is None else (*own, *self.credential.rights)

    @property
    def conditions(self) -> tuple[Condition, ...]:
        """The payload conditions of all rights: the caller may use only points that meet all of them."""
        return tuple(condition for rights in self.rights for condition in rights.conditions)

    @property
    def queries(self) -> QueryPolicy:
        """The query policies of all rights: the stricter of each part."""
        return merged(rights.queries for rights in self.rights)

    @property
    def role(self) -> str:
        """The certificate's role, else the credential's."""
        return self.principal.role or (self.credential.role if self.credential is not None else "")

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
        if policy.locks.of_key(key.name, now) is not None:
            return locked("key")
        return key_credential(key, policy, principal.identity)
    if not policy.tokens:
        return INVALID
    token = policy.tokens.verify(presented, principal.identity, now)
    if isinstance(token, Decision):
        return token
    if policy.locks.of_token(token.verifier, token.claims.texts, now) is not None:
        return locked("token")
    return token_credential(token, policy, principal.identity)


def key_credential(key: Key, policy: Policy, identity: Identity | None) -> Credential | Decision:
    """A valid key as a credential, within its role's filter."""
    rights = policy.confined(key.rights, key.role, identity, {})
    if isinstance(rights, Decision):
        return rights
    return Credential("ApiKey", key.name, (rights,), role=key.role, expires=key.expires)


def token_credential(token: Token, policy: Policy, identity: Identity | None) -> Credential | Decision:
    """A verified token as a credential, within its issuer's role if any: its claims fill that role's filter."""
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
