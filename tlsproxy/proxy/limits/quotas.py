"""Quotas of a caller: a pure function of a generation and the caller.

A certificate and the key or token beside it may have a role each; both roles' limits count then, as both roles' rights
do. The account of a certificate is its CA, issuer and subject: a renewed certificate starts no new account, and the
same subject from another CA is another account. The account of a token is its signer and its subject; it is the holder
of the role that a rule gives it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http import HTTPStatus
from math import ceil
from typing import Final

from tlsproxy.authz.access import Decision
from tlsproxy.authz.admission import Admission
from tlsproxy.authz.roles import Principal
from tlsproxy.config.limits import Quota
from tlsproxy.config.model import Config
from tlsproxy.errors import Form
from tlsproxy.proxy.limits.gcra import SECOND, Charge, Excess, Rate
from tlsproxy.qdrant.operations import Operation

RATE: Final = "rate_limited"
IN_FLIGHT: Final = "too_many_requests_in_flight"


@dataclass(slots=True)
class LimitCheck:
    """Limit check of a request, done before anything else.

    ``authenticates``: it presents a key or token, or lacks one that it needs; ``failed``: that authentication failed.
    ``unidentified``: it has no certificate, key or token, so it is counted for its address.
    """

    charges: tuple[Charge, ...]
    authenticates: bool
    failed: bool
    unidentified: bool = False


class Quotas:
    """Quotas of one configuration. ``account`` makes a row's key, and the name in the store, out of names."""

    def __init__(self, config: Config, account: Callable[..., tuple[int, bytes]]) -> None:
        self._account = account
        self._each_identity, self._each_key = config.limits.per_identity, config.limits.per_key
        self._unidentified = config.limits.per_address.unidentified != Quota()
        self._delays = config.limits.per_address.failed_authentications is not None
        self._roles = {name: role.limits for name, role in config.roles.items()}

    def check(
        self, principal: Principal, admission: Admission | None, operation: Operation | None, decision: Decision | None
    ) -> LimitCheck | None:
        """None if nothing is limited. Health and version are never counted.

        A ``decision`` in bare text comes from authentication (:class:`tlsproxy.errors.Form`), whether 401 or 403.
        """
        if operation is not None and operation.free:
            return None
        charges = tuple(self._charges(principal, admission))
        failed = decision is not None and decision.form is Form.BARE
        authenticates = self._delays and (failed or (admission is not None and admission.credential is not None))
        unidentified = self._unidentified and principal.identity is None
        unidentified = unidentified and (admission is None or admission.credential is None)
        if not (charges or authenticates or unidentified):
            return None
        return LimitCheck(charges, authenticates, failed, unidentified)

    def largest_body(self, admission: Admission | None) -> int | None:
        """Smallest limit of the caller's roles in bytes, None if they have none."""
        sizes = [self._roles[role].max_body_mb for role in _roles(admission)]
        return min((size << 20 for size in sizes if size is not None), default=None)

    def _charges(self, principal: Principal, admission: Admission | None) -> Iterator[Charge]:
        roles = _roles(admission) if admission is not None else (principal.role,) if principal.role else ()
        for role in roles:
            yield from self._charge(self._roles[role], f'role "{role}"', "role", role)
        identity, credential = principal.identity, admission.credential if admission is not None else None
        if identity is not None:
            own = self._roles[principal.role].per_identity if principal.role else None
            quota = self._each_identity if own is None else own
            yield from self._charge(quota, "each client certificate", *identity.account)
        if credential is not None:
            names = ("key", credential.kind, credential.name, credential.subject)
            own = self._roles[credential.rule.role].per_identity if credential.rule is not None else None
            whose = "each subject of tokens" if credential.subject else "each key"
            yield from self._charge(self._each_key if own is None else own, whose, *names)

    def _charge(self, quota: Quota, whose: str, *names: str) -> Iterator[Charge]:
        rate = rate_of(quota)
        if rate is not None or quota.concurrent_requests is not None:
            key, account = self._account(*names)
            yield Charge(key, whose, rate, quota.concurrent_requests or 0, account)


def rate_of(quota: Quota) -> Rate | None:
    return None if quota.requests_per_second is None else Rate.of(quota.requests_per_second, quota.burst)


def _roles(admission: Admission | None) -> tuple[str, ...]:
    if admission is None:
        return ()
    roles = admission.credential.roles if admission.credential is not None else ()
    return tuple(dict.fromkeys(role for role in (admission.principal.role, *roles) if role))


def refusal_of(excess: Excess) -> Decision:
    """Refusal in the form of Qdrant's strict mode (429, RESOURCE_EXHAUSTED): same beginning, whole seconds."""
    charge, seconds = excess.charge, max(1, ceil(excess.wait / SECOND))
    if excess.wait and charge.rate is not None:
        rate = SECOND / charge.rate.interval
        most = f"{rate:g} request{'s' * (rate != 1)} per second"
    else:
        most = f"{charge.concurrent} requests at a time"
    return too_many(RATE if excess.wait else IN_FLIGHT, f"{charge.whose} has {most}", seconds)


def too_many(reason: str, text: str, seconds: int) -> Decision:
    return Decision(
        allowed=False,
        reason=reason,
        status=HTTPStatus.TOO_MANY_REQUESTS,
        text=f"Rate limiting exceeded: {text}. Retry after {seconds}s",
        retry_after=seconds,
    )
