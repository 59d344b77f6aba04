"""Admissions of one generation, each in memory once for all that is remembered of its caller.

The grants of a token take eight times its own size, and it is verified once instead of for each new head.
"""

from __future__ import annotations

from typing import Final

from tlsproxy.authz.access import Decision
from tlsproxy.authz.admission import Admission, admit
from tlsproxy.authz.roles import Policy, Principal
from tlsproxy.memo import Memo

MEMO: Final = 2048
MEMO_KEY: Final = 4096
"""A longer key or token is not remembered: the memo's size in memory is bounded by the product."""


class Admissions:
    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._memo = Memo[tuple[Principal, str | None], Admission](MEMO)

    def of(self, principal: Principal, presented: str | None, now: float) -> Admission | Decision:
        """As :func:`admit`. Refusals are not remembered: whoever makes up keys drives out no caller."""
        key = principal, presented
        known = self._memo.get(key)
        if known is not None and now < known.expires:
            return known
        admitted = admit(principal, self._policy, presented, now)
        if isinstance(admitted, Admission) and now < admitted.expires and len(presented or "") <= MEMO_KEY:
            self._memo.remember(key, admitted)
        return admitted
