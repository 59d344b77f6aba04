"""Consequences of a publication as text, and the guard against each that ends too many connections.

Both take the JSON values of :meth:`tlsproxy.proxy.core.impact.Consequences.told`, so that the log and a command of
another process have the same words.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from tlsproxy.admin.view import NO_ROLE, shown
from tlsproxy.config.limits import MassCut

MAX_CLIENTS: Final = 10
"""Clients in a sentence."""
MAX_ROLES: Final = 20
"""Roles in a sentence."""

_KINDS: Final = (("cut", "connections"), ("ended", "requests"), ("barred", "clients"), ("moved", "connections"))


def exceeds(consequences: Mapping[str, Any], bound: MassCut) -> bool:
    """Whether `limits.mass_cut` holds a publication with these consequences back."""
    cut, number, share = consequences["cut"]["count"], bound.number, bound.share
    if number is None and share is None:
        return False
    return (number is None or cut > number) and (share is None or cut > share * consequences["connections"])


def affected_roles(consequences: Mapping[str, Any]) -> str:
    """Affected live connections by role, most first: `ingest 2, admin 1`."""
    counts = sorted(consequences["affected"]["roles"].items(), key=lambda each: (-each[1], each[0]))
    more = len(counts) - MAX_ROLES
    named = [f"{shown(role) or NO_ROLE} {count}" for role, count in counts[:MAX_ROLES]]
    return ", ".join([*named, f"{more} more roles"] if more > 0 else named)


def affected(consequences: Mapping[str, Any]) -> str:
    """The live connections that a publication concerns: `3 of 12 live connections affected (ingest 2, admin 1)`."""
    count = consequences["affected"]["count"]
    roles = f" ({affected_roles(consequences)})" if count else ""
    return f"{count} of {_counted(consequences['connections'], 'live connection', 'live connections')} affected{roles}"


def sentences(consequences: Mapping[str, Any]) -> Iterator[str]:
    """A sentence for each kind of consequence: count, reasons, and a few clients."""
    for kind, _ in _KINDS:
        if consequences[kind]["count"]:
            yield f"{_headline(consequences, kind)}: {_clients(consequences[kind])}"
    yield from _silent(consequences)


def rows(consequences: Mapping[str, Any]) -> Iterator[str]:
    """Lines for a terminal: a headline for each kind, and its clients or connections below it.

    None for an empty mapping: a result without a candidate. A gateway older than this program counts nobody affected.
    """
    if not consequences:
        return
    if "affected" in consequences:
        yield affected(consequences)
    for kind, noun in _KINDS:
        group = consequences[kind]
        if group["count"]:
            yield _headline(consequences, kind)
            yield from (f"  {_row(each)}" for each in group["named"])
            if more := group["count"] - len(group["named"]):
                yield f"  and {more} more {noun}"
    yield from _silent(consequences)


def _headline(consequences: Mapping[str, Any], kind: str) -> str:
    group = consequences[kind]
    reasons = ", ".join(f"{shown(reason)} {count}" for reason, count in group["reasons"].items())
    live = _counted(consequences["connections"], "live connection", "live connections")
    headline = {
        "cut": f"{group['count']} of {live} cut",
        "ended": f"{_counted(group['count'], 'request or call', 'requests or calls')} under way ended on what stays",
        "barred": f"{_counted(group['count'], 'client that was', 'clients that were')} here lately could not come back",
        "moved": f"{_counted(group['count'], 'live connection', 'live connections')} in another role",
    }
    return f"{headline[kind]} ({reasons})"


def _silent(consequences: Mapping[str, Any]) -> Iterator[str]:
    if consequences["unheard"]:
        unheard = _counted(consequences["unheard"], "worker", "workers")
        yield f"{unheard} did not answer: connections there are not counted"


def _counted(count: int, singular: str, plural: str) -> str:
    return f"{count} {singular if count == 1 else plural}"


def _clients(group: Mapping[str, Any]) -> str:
    names = list(dict.fromkeys(shown(each["identity"] or each["address"]) for each in group["named"]))
    others = len(names) > MAX_CLIENTS or group["count"] > len(group["named"])
    return ", ".join(names[:MAX_CLIENTS]) + (" and others" if others else "")


def _row(entry: Mapping[str, Any]) -> str:
    client, role = shown(entry["identity"]) or "no certificate", shown(entry["role"]) or NO_ROLE
    text = f"{entry['number']} {entry['protocol']} {entry['address']} {client}, role {role}"
    return f"{text}: {entry['reason']}" if entry["reason"] else f"{text}, then {shown(entry['becomes']) or NO_ROLE}"
