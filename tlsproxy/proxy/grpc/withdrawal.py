"""Calls of a key or token that has lost its right, or whose rights are others by a publication."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from tlsproxy.authz.access import Decision
from tlsproxy.authz.keys import NEVER
from tlsproxy.errors import RightLost
from tlsproxy.proxy.core.authorization import Standing
from tlsproxy.proxy.core.impact_analysis import Outlook
from tlsproxy.proxy.grpc.call import Call
from tlsproxy.proxy.grpc.relay import Relay


def judge(relay: Relay[Call], now: float, *, again: bool) -> None:
    """Ends the calls that may not go on; ``again``: also looks at those that have not run out."""
    for call in list(relay.calls.values()):
        if (again or now >= call.record.plan.expires) and (refusal := _refusal(call, now)):
            _withdraw(call, refusal)


def losses(relay: Relay[Call], outlook: Outlook, standing: Standing, now: float) -> Iterator[str]:
    """Reasons for which calls would end under another generation."""
    ended = standing.ended(outlook.generation, now)
    for call in relay.calls.values():
        if _goes_on(call):
            present = outlook.calls.present(call.record.plan, standing.principal, now, ended)
            refusal = present if isinstance(present, Decision) else call.refusal(present, outlook.calls)
            if refusal is not None:
                yield refusal.reason


def _goes_on(call: Call) -> bool:
    """It is not over, nor refused and waits to be told so."""
    return not call.recorded and bool(call.record.plan.block)


def _refusal(call: Call, now: float) -> Decision | None:
    """Why it may not go on, None where it may."""
    if not _goes_on(call):
        return None
    gateway, standing = call.relay.gateway, call.relay.entry.standing
    ended = standing.ended(gateway.generation, now)
    present = gateway.calls.present(call.record.plan, standing.principal, now, ended)
    return present if isinstance(present, Decision) else call.renew(present)


def _withdraw(call: Call, refusal: Decision) -> None:
    """It does and learns nothing more; but of a change that the upstream has whole it may hear the outcome."""
    record, relay = call.record, call.relay
    if call.undecided:
        record.plan = record.plan.refused(refusal)
        call.deny()
    elif call.whole and record.plan.asked is not None and not record.plan.asked.operation.reads:
        record.plan = replace(record.plan, expires=NEVER)
        relay.gateway.loop.call_later(relay.limits.expel_after, relay.stream.tell, _overstayed, call)
    else:
        _lose(call, refusal)


def _overstayed(call: Call) -> None:
    if refusal := _refusal(call, call.relay.gateway.clock.now()):
        _lose(call, refusal)
        call.relay.session.settle()


def _lose(call: Call, refusal: Decision) -> None:
    call.relay.entry.request_ended(call.relay.gateway, refusal.reason)
    call.refuse(RightLost(refusal.reason))
