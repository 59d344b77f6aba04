"""Differences between two generations for operators: names, dates and serial numbers, never secrets.

A replaced key appears by its name. A changed setting appears by its name, and with its values only if they are numbers
or switches: `limits.connections changed: 10000 → 5000`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, Literal, TypeVar

from pydantic import BaseModel

from tlsproxy.authz.keys import Key
from tlsproxy.authz.tokens import VerificationKey
from tlsproxy.config.endpoints import Endpoint
from tlsproxy.config.listeners import listening
from tlsproxy.config.model import Config, IdentityRule, ListenerConfig
from tlsproxy.snapshot.generation import Generation
from tlsproxy.text import utc_time
from tlsproxy.tls.certinfo import CertificateFacts, CrlFacts

MAX_CHANGES: Final = 200
"""Most changes that a result lists one by one."""

_BY_NAME: Final = frozenset({"roles", "identities", "keys", "jwt_issuers", "listeners"})
"""Sections whose entries are compared by name."""
_KEY_FIELDS: Final = ("digest", "role", "rights", "expires", "certificate")

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Change:
    """``what``: certificate, CA, CRL, role, rule, key, issuer, listener or setting.

    ``name`` and ``detail`` may be empty.
    """

    what: str
    name: str
    how: Literal["added", "removed", "changed"]
    detail: str = ""


def changes_between(old: Generation, new: Generation) -> tuple[Change, ...]:
    """Changes of certificates, then callers, then settings: at most :data:`MAX_CHANGES`, and a count of the others."""
    found = [*_certificates(old, new), *_callers(old, new), *_settings(old, new)]
    if len(found) > MAX_CHANGES:
        found[MAX_CHANGES:] = [Change("others", "", "changed", f"{len(found) - MAX_CHANGES} more")]
    return tuple(found)


def _compared(
    what: str,
    old: Generation,
    new: Generation,
    by_key: Callable[[Generation], Mapping[str, T]],
    detail: Callable[[T, T], str],
    *,
    name: Callable[[str, T], str] = lambda key, _: key,
    alone: Callable[[T], str] = lambda _: "",
) -> Iterator[Change]:
    """Compare two mappings. ``detail`` describes a changed entry, ``alone`` an added or removed one."""
    before, after = by_key(old), by_key(new)
    for key, entry in after.items():
        if key not in before:
            yield Change(what, name(key, entry), "added", alone(entry))
        elif before[key] != entry:
            yield Change(what, name(key, entry), "changed", detail(before[key], entry))
    for key, entry in before.items():
        if key not in after:
            yield Change(what, name(key, entry), "removed", alone(entry))


def _certificates(old: Generation, new: Generation) -> Iterator[Change]:
    before, after = old.material.leaf, new.material.leaf
    if before != after:
        yield Change("certificate", after.subject, "changed", f"{_issue(before)} → {_issue(after)}")
    yield from _compared(
        "CA",
        old,
        new,
        lambda each: {entry.sha256: entry for entry in each.material.authorities},
        lambda _, entry: _issue(entry),
        name=lambda _, entry: entry.subject,
        alone=_issue,
    )
    yield from _compared(
        "CRL",
        old,
        new,
        lambda each: {entry.scope: entry for entry in each.material.crls},
        lambda former, current: f"{_edition(former)} → {_edition(current)}",
        name=lambda _, entry: entry.issuer,
        alone=_edition,
    )


def _callers(old: Generation, new: Generation) -> Iterator[Change]:
    yield from _compared("role", old, new, lambda each: each.config.roles, _fields)
    yield from _compared("rule", old, new, _rules, _fields)
    before, after = _rules(old), _rules(new)
    if [name for name in before if name in after] != [name for name in after if name in before]:
        yield Change("rules", "", "changed", "in another order: the first that matches decides")
    yield from _compared("key", old, new, lambda each: {key.name: key for key in each.policy.keys.keys}, _of_keys)
    yield from _compared(
        "issuer", old, new, lambda each: {entry.name: entry for entry in each.config.jwt_issuers}, _fields
    )
    verifying = _compared("issuer", old, new, _verifying, lambda _was, _now: "the keys that verify its tokens")
    yield from (change for change in verifying if change.how == "changed")


def _rules(generation: Generation) -> dict[str, IdentityRule]:
    return {rule.name: rule for rule in generation.config.identities}


def _verifying(generation: Generation) -> dict[str, tuple[VerificationKey, ...]]:
    """Keys by issuer; without those of Qdrant's own tokens, which are API keys."""
    return {entry.name: entry.keys for entry in generation.policy.tokens.verifiers if entry.issuer}


def _settings(old: Generation, new: Generation) -> Iterator[Change]:
    bound = {str(entry.endpoint) for entry in listening(new.started)}
    for change in _compared("listener", old, new, _listeners, _fields):
        yield _with_restart(change, bound=change.name.partition(" ")[0] in bound)
    yield from _compared("setting", old, new, lambda each: dict(_flat(each.config)), _values)
    if old.upstream_api_key != new.upstream_api_key and old.config.upstream == new.config.upstream:
        yield Change("setting", "upstream.api_key_file", "changed", "its content")


def _listeners(generation: Generation) -> dict[str, ListenerConfig]:
    """Listeners by address. Of several at the same port 0, all but the first have their position: `0.0.0.0:0 (2)`."""
    named: dict[str, ListenerConfig] = {}
    for number, entry in enumerate(generation.config.listeners, 1):
        address = str(Endpoint(entry.host or generation.config.service.host, entry.port))
        named[f"{address} ({number})" if address in named else address] = entry
    return named


def _with_restart(change: Change, *, bound: bool) -> Change:
    """Add that a removed bound listener stays until the restart, and a new unbound one comes with it."""
    if change.how == "removed" and bound:
        return replace(change, detail="serves on until the next restart")
    if change.how == "added" and not bound:
        return replace(change, detail="from the next restart on")
    return change


def _flat(config: Config) -> Iterator[tuple[str, Any]]:
    """Settings by dotted name."""
    for name in sorted(type(config).model_fields.keys() - _BY_NAME):
        value = getattr(config, name)
        if isinstance(value, BaseModel):
            yield from ((f"{name}.{field}", getattr(value, field)) for field in type(value).model_fields)
        else:
            yield name, value


def _values(former: Any, current: Any) -> str:
    shown = all(entry is None or isinstance(entry, int | float) for entry in (former, current))
    return f"{json.dumps(former)} → {json.dumps(current)}" if shown else ""


def _fields(former: BaseModel, current: BaseModel) -> str:
    return _listed(type(current).model_fields, former, current)


def _of_keys(former: Key, current: Key) -> str:
    return _listed(_KEY_FIELDS, former, current).replace("digest", "the key itself")


def _listed(names: Iterable[str], former: object, current: object) -> str:
    return ", ".join(name for name in names if getattr(former, name) != getattr(current, name))


def _issue(facts: CertificateFacts) -> str:
    return f"serial {facts.serial} until {utc_time(facts.not_after)}"


def _edition(facts: CrlFacts) -> str:
    number = "" if facts.number is None else f"number {facts.number}, "
    return f"{number}{facts.count} revoked, next update {utc_time(facts.next_update)}"
