"""Differences between two values of the configuration, as phrases for operators, and never with a secret.

For example `access rw on docs added`, `match.cn ingest-* → batch-*`, `limits.burst 5 → 10`. Members of lists are told
one by one, and their order only if nothing else differs.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from itertools import islice
from typing import Any, Final

from pydantic import BaseModel, SecretStr

from tlsproxy.config.callers import NamedKey
from tlsproxy.config.endpoints import shown_url
from tlsproxy.config.grants import CollectionGrant, filter_of
from tlsproxy.text import rfc3339

MAX_PHRASES: Final = 12
"""Most phrases on one entry or setting."""
MAX_TEXT: Final = 200
"""Most characters of one value."""

_WORD: Final = re.compile(r'[^\s",;→]+')
_URLS: Final = frozenset({"jwks", "discovery"})
"""Fields with a URL, whose query may be a secret."""


def same(former: Any, current: Any) -> bool:
    """Equality that tells `true` from `1` in the mappings of rules and roles."""
    if type(former) is not type(current) or former != current:
        return False
    match former:
        case BaseModel():
            nested = ((one, vars(current)[name]) for name, one in vars(former).items())
            return all(same(one, other) for one, other in nested if isinstance(one, BaseModel | Mapping))
        case Mapping():
            return all(same(value, current[key]) for key, value in former.items())
    return True


def difference(former: Any, current: Any) -> str:
    """Phrases on a setting. Empty for a secret."""
    if isinstance(former, SecretStr) or isinstance(current, SecretStr):
        return ""
    return joined(_phrases("", former, current))


def entry_difference(former: BaseModel, current: BaseModel) -> Iterator[str]:
    """Phrases on two entries of one name, by field."""
    for name in _told(current):
        yield from _phrases(name, getattr(former, name), getattr(current, name))


def description(entry: BaseModel) -> str:
    """An entry that is new: its fields, without its name and defaults."""
    return joined(_settings(entry, ""))


def joined(phrases: Iterable[str]) -> str:
    found = iter(phrases)
    shown, more = list(islice(found, MAX_PHRASES)), sum(1 for _ in found)
    return ", ".join([*shown, f"{more} more"] if more else shown)


def _settings(entry: BaseModel, prefix: str) -> Iterator[str]:
    for name in _told(entry):
        value, field = getattr(entry, name), type(entry).model_fields[name]
        if field.is_required() or value != field.get_default():
            nested = list(_settings(value, f"{prefix}{name}.")) if isinstance(value, BaseModel) else []
            yield from nested or [f"{prefix}{name} {_text(value, name)}"]


def _told(entry: BaseModel) -> list[str]:
    """Fields of an entry, without its name, and without a key's digest, from which a short key is guessed."""
    untold = {"name", "sha256"} if isinstance(entry, NamedKey) else {"name"}
    return [name for name in type(entry).model_fields if name not in untold]


def _phrases(name: str, former: Any, current: Any) -> Iterator[str]:
    if same(former, current):
        return
    spaced = f"{name} " if name else ""
    match former, current:
        case BaseModel(), BaseModel():
            for each in type(current).model_fields:
                yield from _phrases(f"{name}.{each}", getattr(former, each), getattr(current, each))
        case Mapping(), Mapping():
            yield from (f"{spaced}{each}" for each in _of_mappings(former, current))
        case tuple(), tuple():
            yield from (f"{spaced}{each}" for each in _of_members(former, current))
        case _:
            yield f"{spaced}{_text(former, name)} → {_text(current, name)}"


def _of_mappings(former: Mapping[str, Any], current: Mapping[str, Any]) -> Iterator[str]:
    for key, value in current.items():
        if key not in former:
            yield f"{key} = {_text(value)} added"
        elif not same(former[key], value):
            spelled = _text if type(former[key]) is type(value) else json.dumps  # true, "true"
            yield f"{key} {spelled(former[key])} → {spelled(value)}"
    yield from (f"{key} = {_text(value)} removed" for key, value in former.items() if key not in current)


def _of_members(former: tuple[Any, ...], current: tuple[Any, ...]) -> Iterator[str]:
    before, after = set(former), set(current)
    gone, new = [one for one in former if one not in after], [one for one in current if one not in before]
    if not gone and not new:
        yield "in another order"
    access = {one.collection: _mode(one) for one in gone if isinstance(one, CollectionGrant)}
    changed = set()
    for one in new:
        if isinstance(one, CollectionGrant) and one.collection in access:
            changed.add(one.collection)
            yield f"on {_text(one.collection)} {access[one.collection]} → {_mode(one)}"
        else:
            yield f"{_text(one)} added"
    for one in gone:
        if not isinstance(one, CollectionGrant) or one.collection not in changed:
            yield f"{_text(one)} removed"


def _mode(grant: CollectionGrant) -> str:
    """`rw`, or `rw except delete_points`."""
    return " ".join(filter(None, (grant.access, str(filter_of(grant.operations)))))


def _text(value: Any, name: str = "") -> str:
    text = _spelled(value, name)
    return text if len(text) <= MAX_TEXT else f"{text[: MAX_TEXT - 1]}…"


def _spelled(value: Any, name: str) -> str:
    match value:
        case None if name.endswith("operations.allow"):
            return "all"
        case None | () | {}:
            return "none"
        case bool() | int() | float():
            return json.dumps(value)
        case datetime():
            return rfc3339(value.timestamp())
        case CollectionGrant():
            return f"{_mode(value)} on {_text(value.collection)}"
        case BaseModel():
            return f"({joined(_settings(value, ''))})"
        case Mapping():
            return joined(f"{key} = {_text(each)}" for key, each in value.items())
        case tuple():
            return joined(map(_text, value))
    text = str(value)
    if name in _URLS and "://" in text:
        text = shown_url(text)
    return text if _WORD.fullmatch(text) else json.dumps(text, ensure_ascii=False)
