"""Differences between two generations for operators: names, values, dates and serial numbers, never secrets.

A replaced key appears by its name. :mod:`tlsproxy.snapshot.field_changes` has the words for values.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, Literal, TypeVar

from pydantic import BaseModel

from tlsproxy.authz.keys import NEVER, Key
from tlsproxy.authz.locks import Lock
from tlsproxy.authz.tokens import VerificationKey
from tlsproxy.config.callers import NamedKey
from tlsproxy.config.listeners import endpoint_of, listening
from tlsproxy.config.model import Config, ListenerConfig
from tlsproxy.config.pieces import unpacked
from tlsproxy.snapshot.field_changes import description, difference, entry_difference, joined, same
from tlsproxy.snapshot.generation import Generation
from tlsproxy.text import utc_time
from tlsproxy.tls.certinfo import CertificateFacts, CrlFacts, facts_of

MAX_CHANGES: Final = 200
"""Most changes that a result lists one by one."""

_BY_NAME: Final = frozenset({"roles", "identities", "keys", "jwt_issuers", "listeners", "revoked", "upstream.nodes"})
"""Lists and mappings whose entries are compared by name."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Change:
    """``what``: certificate, CA, CRL, client certificate, upstream CA, role, rule, key, lock, issuer, listener, node,
    setting, address or file of `include`.

    ``name`` and ``detail`` may be empty.
    """

    what: str
    name: str
    how: Literal["added", "removed", "changed"]
    detail: str = ""


def changes_between(old: Generation, new: Generation) -> tuple[Change, ...]:
    """Changes of certificates, then callers, then settings: at most :data:`MAX_CHANGES`, and a count of the others."""
    found = [*_certificates(old, new), *_upstream_certificates(old, new), *_callers(old, new), *_settings(old, new)]
    if len(found) > MAX_CHANGES:
        found[MAX_CHANGES:] = [Change("others", "", "changed", f"{len(found) - MAX_CHANGES} more")]
    return tuple(found)


def _compared(
    what: str,
    before: Mapping[str, T],
    after: Mapping[str, T],
    *,
    changed: Callable[[T, T], str],
    added: Callable[[T], str] = lambda _: "",
    removed: Callable[[T], str] = lambda _: "",
    name: Callable[[str, T], str] = lambda key, _: key,
) -> Iterator[Change]:
    """Compare two mappings. ``changed``, ``added`` and ``removed`` describe such an entry."""
    for key, entry in after.items():
        if key not in before:
            yield Change(what, name(key, entry), "added", added(entry))
        elif not same(before[key], entry):
            yield Change(what, name(key, entry), "changed", changed(before[key], entry))
    for key, entry in before.items():
        if key not in after:
            yield Change(what, name(key, entry), "removed", removed(entry))


def _certificates(old: Generation, new: Generation) -> Iterator[Change]:
    before, after = old.material, new.material
    if before.leaf != after.leaf:
        yield Change("certificate", after.leaf.subject, "changed", f"{_issue(before.leaf)} → {_issue(after.leaf)}")
    yield from _compared(
        "CA",
        {entry.sha256: entry for entry in before.authorities},
        {entry.sha256: entry for entry in after.authorities},
        changed=lambda _, entry: _issue(entry),
        added=_issue,
        removed=_issue,
        name=lambda _, entry: entry.subject,
    )
    yield from _compared(
        "CRL",
        {entry.scope: entry for entry in before.crls},
        {entry.scope: entry for entry in after.crls},
        changed=lambda former, current: f"{_edition(former)} → {_edition(current)}",
        added=_edition,
        removed=_edition,
        name=lambda _, entry: entry.issuer,
    )


def _upstream_certificates(old: Generation, new: Generation) -> Iterator[Change]:
    def leaves(generation: Generation) -> dict[str, CertificateFacts]:
        states = generation.states.client_certificates
        return {str(path): facts_of(state.value.chain[0]) for path, state in states.items()}

    def authorities(generation: Generation) -> dict[str, CertificateFacts]:
        states = generation.states.server_authorities.values()
        return {facts.sha256: facts for state in states for facts in map(facts_of, state.value)}

    yield from _compared(
        "client certificate",
        leaves(old),
        leaves(new),
        changed=lambda former, current: f"{_issue(former)} → {_issue(current)}",
        added=_issue,
        removed=_issue,
        name=lambda _, entry: entry.subject,
    )
    yield from _compared(
        "upstream CA",
        authorities(old),
        authorities(new),
        changed=lambda _, entry: _issue(entry),
        added=_issue,
        removed=_issue,
        name=lambda _, entry: entry.subject,
    )


def _callers(old: Generation, new: Generation) -> Iterator[Change]:
    yield from _compared("role", old.config.roles, new.config.roles, changed=_fields, added=description)
    before, after = ({rule.name: rule for rule in each.config.identities} for each in (old, new))
    yield from _compared("rule", before, after, changed=_fields, added=description)
    if [name for name in before if name in after] != [name for name in after if name in before]:
        yield Change("rules", "", "changed", "in another order: the first that matches decides")
    yield from _compared("key", _keys(old), _keys(new), changed=_of_keys, added=_of_new_key)
    yield from _compared("lock", _locks(old), _locks(new), changed=lambda _, now: _end(now), added=_end)
    issuers = ({issuer.name: issuer for issuer in each.config.jwt_issuers} for each in (old, new))
    yield from _compared("issuer", *issuers, changed=_fields, added=description)
    verifying = _compared(
        "issuer", _verifying(old), _verifying(new), changed=lambda _was, _now: "the keys that verify its tokens"
    )
    yield from (change for change in verifying if change.how == "changed")


def _keys(generation: Generation) -> dict[str, tuple[Key, NamedKey | None]]:
    named = {entry.name: entry for entry in generation.config.keys}
    return {key.name: (key, named.get(key.name)) for key in generation.policy.keys.keys}


def _locks(generation: Generation) -> dict[str, Lock]:
    return {f"{lock.name}{' (revoked)' * lock.configured}": lock for lock in generation.policy.locks}


def _end(lock: Lock) -> str:
    return "" if lock.until == NEVER else f"until {utc_time(lock.until)}"


def _verifying(generation: Generation) -> dict[str, tuple[VerificationKey, ...]]:
    """Keys by issuer; without those of Qdrant's own tokens, which are API keys."""
    return {entry.name: entry.keys for entry in generation.policy.tokens.verifiers if entry.issuer}


def _settings(old: Generation, new: Generation) -> Iterator[Change]:
    bound = {str(entry.endpoint) for entry in listening(new.started)}
    for change in _compared("listener", _listeners(old), _listeners(new), changed=_fields, added=description):
        yield _with_restart(change, bound=change.name.partition(" (")[0] in bound)
    nodes = ({node.name: node for node in each.config.upstream.nodes} for each in (old, new))
    yield from _compared("node", *nodes, changed=_fields, added=description)
    before, after = _flat(old.config, new.config), _flat(new.config, old.config)
    yield from _compared("setting", dict(before), dict(after), changed=difference)
    if old.upstream_api_key != new.upstream_api_key and old.config.upstream == new.config.upstream:
        yield Change("setting", "upstream.api_key_file", "changed", "its content")
    yield from _compared("address", _addresses(old, new), _addresses(new, old), changed=difference)
    yield from _compared("file", _pieces(old), _pieces(new), changed=lambda _was, _now: "")


def _pieces(generation: Generation) -> dict[str, bytes]:
    _, pieces = unpacked(generation.states.configuration.data)
    return {str(piece.path): piece.data for piece in pieces}


def _addresses(generation: Generation, other: Generation) -> dict[str, tuple[str, ...]]:
    """Addresses of upstreams whose URL is the same in both."""
    urls = {name: entry.url for name, entry in other.states.names.items()}
    return {
        name: tuple(sorted({str(address[0]) for _, address in entry.addresses}))
        for name, entry in generation.states.names.items()
        if urls.get(name) == entry.url
    }


def _listeners(generation: Generation) -> dict[str, ListenerConfig]:
    """Listeners by address. Of several at the same port 0, all but the first have their position: `0.0.0.0:0 (2)`."""
    named: dict[str, ListenerConfig] = {}
    for number, entry in enumerate(generation.config.listeners, 1):
        address = str(endpoint_of(entry, generation.config.service.host))
        named[f"{address} ({number})" if address in named else address] = entry
    return named


def _with_restart(change: Change, *, bound: bool) -> Change:
    """Add that a removed bound listener stays until the restart, and a new unbound one comes with it."""
    if change.how == "removed" and bound:
        return replace(change, detail="serves on until the next restart")
    if change.how == "added" and not bound:
        return replace(change, detail=f"{change.detail}; from the next restart on")
    return change


def _flat(config: Config, other: Config) -> Iterator[tuple[str, Any]]:
    """Settings by dotted name. A section that the ``other`` configuration has not is one setting, without its keys."""
    for name in sorted(type(config).model_fields.keys() - _BY_NAME):
        yield from _leaves(name, getattr(config, name), getattr(other, name))


def _leaves(name: str, value: Any, other: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, BaseModel) and isinstance(other, BaseModel):
        for field in type(value).model_fields:
            if f"{name}.{field}" not in _BY_NAME:
                yield from _leaves(f"{name}.{field}", getattr(value, field), getattr(other, field))
    elif value is not None or not isinstance(other, BaseModel):
        yield name, value


def _fields(former: BaseModel, current: BaseModel) -> str:
    return joined(entry_difference(former, current))


def _of_keys(former: tuple[Key, NamedKey | None], current: tuple[Key, NamedKey | None]) -> str:
    (was, named), (now, renamed) = former, current
    phrases = ["the key itself"] if was.digest != now.digest else []
    if was.rights != now.rights and was.role == now.role:
        phrases.append("the rights of its role")
    if named is not None and renamed is not None:
        phrases += entry_difference(named, renamed)
    return joined(phrases)


def _of_new_key(entry: tuple[Key, NamedKey | None]) -> str:
    key, named = entry
    return f"access {key.rights}" if named is None else description(named)


def _issue(facts: CertificateFacts) -> str:
    return f"serial {facts.serial} until {utc_time(facts.not_after)}"


def _edition(facts: CrlFacts) -> str:
    number = "" if facts.number is None else f"number {facts.number}, "
    return f"{number}{facts.count} revoked, next update {utc_time(facts.next_update)}"
