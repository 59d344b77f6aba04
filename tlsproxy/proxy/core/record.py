"""Record of one request, from its decision to its audit line, and the framing of its body."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from typing import Final, Generic, Protocol, Self, TypeVar

from tlsproxy.audit.line import Outcome, Prepared, Refusal, request_line
from tlsproxy.authz.access import Decision
from tlsproxy.authz.tokens import UNKNOWN_KEY
from tlsproxy.errors import RequestError
from tlsproxy.proxy.core.connection_manager import Entry
from tlsproxy.proxy.core.gateway import Gateway
from tlsproxy.proxy.decision.attribution import CONTENT_REFUSALS, refusal_of
from tlsproxy.proxy.limits.quotas import LimitCheck
from tlsproxy.wire.tracing import ID_LENGTH, NO_TRACING, Tracing

CLIENT_GONE: Final = 499
"""Status in the audit line of a request whose client left before its response (nginx's convention)."""
_AT_ONCE: Final = 256


def _ids() -> Iterator[str]:
    """Hex digits of 128 random bits: unique, and no measure of how many requests there are (0.1 µs)."""
    while True:
        digits = os.urandom(_AT_ONCE * ID_LENGTH // 2).hex()
        for start in range(0, len(digits), ID_LENGTH):
            yield digits[start : start + ID_LENGTH]


next_id: Final = _ids().__next__
"""The id of a request, or of a relayed connection that is told it."""


class Planned(Protocol):
    """Plan of a request of either protocol, as far as it is recorded."""

    @property
    def operation(self) -> str: ...
    @property
    def role(self) -> str: ...
    @property
    def decision(self) -> Decision: ...
    @property
    def audit(self) -> Prepared: ...
    @property
    def limit_check(self) -> LimitCheck | None: ...
    def refused(self, decision: Decision) -> Self: ...


P = TypeVar("P", bound=Planned)


class Record(Outcome, Generic[P]):
    """``when`` is the start in seconds since the epoch, ``started`` on the monotonic clock. ``status`` is 0 and
    ``grpc_status`` None until a response is sent. Bytes are those of the bodies. ``admitted``: the audit log has
    promised room for the line, or none is due if it is served. ``id`` is the request's here, upstream and in the
    response; ``tracing`` is the client's.
    """

    __slots__ = (
        "_counted",
        "_promised",
        "admitted",
        "plan",
        "started",
    )

    def __init__(self, plan: P, when: float, tracing: Tracing = NO_TRACING) -> None:
        self.plan = plan
        self.id = next_id()
        self.tracing = tracing
        self.status = 0
        self.grpc_status = None
        self.bytes_in = 0
        self.bytes_out = 0
        self.when = when
        self.started = time.monotonic()
        self.admitted = self._promised = False
        self._counted: tuple[int, ...] = ()

    def count(self, gateway: Gateway, limit_check: LimitCheck, entry: Entry) -> None:
        """Counts it against its caller's limits; above them its plan becomes a refusal."""
        outcome = gateway.limiter.count(limit_check, entry.address, entry.standing.principal.identity)
        if isinstance(outcome, Decision):
            self.plan = self.plan.refused(outcome)
        else:
            self._counted = outcome

    def admit(self, gateway: Gateway) -> bool:
        """Whether the audit log has room for its line. If so, that is promised. A probe needs none."""
        if not self.admitted:
            self._promised = not self.plan.audit.probe and gateway.audit.take()
            self.admitted = self._promised or self.plan.audit.probe
        return self.admitted

    def failed(self, error: RequestError, *, undecided: bool) -> str:
        """Reason of its failure; none where the error is the decision, on a body or message that is ``undecided``."""
        if not (undecided and isinstance(error, CONTENT_REFUSALS)):
            return error.reason
        self.plan = self.plan.refused(refusal_of(error))
        return ""

    def finish(self, gateway: Gateway, remote: str, reason: str) -> None:
        """Writes the one line, but for a probe that was served. ``reason`` is that of a failure after the decision,
        ``remote`` that of the connection's entry.
        """
        if self._counted:
            rows, self._counted = self._counted, ()
            gateway.limiter.release(rows)
        if not self.status:
            self.status = CLIENT_GONE
        plan, duration = self.plan, time.monotonic() - self.started
        self.admitted = False
        if self._promised:
            self._promised = False
            gateway.audit.put(request_line(plan.audit, self, remote, duration, reason))
        elif reason or not plan.audit.probe:
            gateway.audit.write(request_line(plan.audit, self, remote, duration, reason))
        if reason:
            gateway.impairments.count(reason, grpc=self.grpc_status is not None)
        decision = plan.decision
        if decision.allowed:
            outcome = "failed" if reason else "allowed"
            gateway.metrics.request(plan.operation, plan.role, outcome, reason or decision.reason, duration)
            return
        gateway.metrics.request(plan.operation, plan.role, "denied", reason or decision.reason, duration)
        self._refused(gateway, remote, reason or decision.reason)
        if decision.reason == UNKNOWN_KEY:
            gateway.notice("key_missing")

    def _refused(self, gateway: Gateway, remote: str, reason: str) -> None:
        plan, caller = self.plan, self.plan.audit.caller
        gateway.metrics.refused(
            Refusal(
                self.when,
                remote.split('"', 2)[1],  # an address has nothing that JSON escapes
                plan.operation,
                reason,
                identity=caller.certificate_subject,
                key=caller.key,
                rule=caller.rule,
                role=plan.role,
                collection=plan.audit.collection,
            )
        )
