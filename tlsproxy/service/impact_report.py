"""Consequences of a publication for people to read, and the guard against one that ends too much at once.

Both take them as :meth:`tlsproxy.proxy.core.impact.Consequences.told` has them, so that a command says of another
process what that says of itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from tlsproxy.admin.view import NO_ROLE, shown
from tlsproxy.config.limits import MassCut

WHO: Final = 10
"""Clients that a sentence names."""

_KINDS: Final = (("cut", "connections"), ("ended", "requests"), ("barred", "clients"), ("moved", "connections"))


def exceeds(told: Mapping[str, Any], bound: MassCut) -> bool:
    """Whether more would end than a publication may end without being forced."""
    cut, number, share = told["cut"]["count"], bound.number, bound.share
    if number is None and share is None:
        return False
    return (number is None or cut > number) and (share is None or cut > share * told["connections"])


def sentences(told: Mapping[str, Any]) -> Iterator[str]:
    """One sentence for each kind of consequence that there is: a count, the reasons, a few names."""
    for kind, _ in _KINDS:
        if told[kind]["count"]:
            yield f"{_headline(told, kind)}: {_who(told[kind])}"
    yield from _silent(told)


def rows(told: Mapping[str, Any]) -> Iterator[str]:
    """Lines for a terminal: a headline for each kind, and below it each client or connection that is named.

    None for an empty mapping: a verdict of files that could not be used.
    """
    if not told:
        return
    for kind, things in _KINDS:
        group = told[kind]
        if group["count"]:
            yield _headline(told, kind)
            yield from (f"  {_row(one)}" for one in group["named"])
            if more := group["count"] - len(group["named"]):
                yield f"  and {more} more {things}"
    yield from _silent(told)


def _headline(told: Mapping[str, Any], kind: str) -> str:
    group = told[kind]
    reasons = ", ".join(f"{shown(reason)} {count}" for reason, count in group["reasons"].items())
    headline = {
        "cut": f"{group['count']} of {told['connections']} live connections cut",
        "ended": f"{_counted(group['count'], 'request or call', 'requests or calls')} under way ended on what stays",
        "barred": f"{_counted(group['count'], 'client that was', 'clients that were')} here lately could not come back",
        "moved": f"{_counted(group['count'], 'live connection', 'live connections')} in another role",
    }
    return f"{headline[kind]} ({reasons})"


def _silent(told: Mapping[str, Any]) -> Iterator[str]:
    if told["unheard"]:
        unheard = _counted(told["unheard"], "worker", "workers")
        yield f"{unheard} did not answer: connections there are not counted"


def _counted(count: int, one: str, several: str) -> str:
    return f"{count} {one if count == 1 else several}"


def _who(group: Mapping[str, Any]) -> str:
    names = list(dict.fromkeys(shown(one["identity"] or one["address"]) for one in group["named"]))
    others = len(names) > WHO or group["count"] > len(group["named"])
    return ", ".join(names[:WHO]) + (" and others" if others else "")


def _row(one: Mapping[str, Any]) -> str:
    who, role = shown(one["identity"]) or "no certificate", shown(one["role"]) or NO_ROLE
    told = f"{one['number']} {one['protocol']} {one['address']} {who}, role {role}"
    return f"{told}: {one['reason']}" if one["reason"] else f"{told}, then {shown(one['becomes']) or NO_ROLE}"
