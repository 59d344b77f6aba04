"""Reflection on a model: its keys, their kinds of value, and the settings that need a restart.

``root`` is the model of the whole file: the gateway's, or that of client mode.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Final, Union, get_args, get_origin

from pydantic import SecretStr
from pydantic.fields import FieldInfo

from tlsproxy.config.callers import Section
from tlsproxy.config.descriptions import NEEDS_RESTART
from tlsproxy.config.model import Config
from tlsproxy.config.positions import Path as TreePath
from tlsproxy.config.problems import nearest
from tlsproxy.config.qdrant_keys import KEYS, SECTIONS

NESTED: Final = ("include", "listeners", "roles", "identities", "keys", "jwt_issuers", "revoked")
"""Sections that are lists or maps: no environment variable can name a key of them."""

_MISSPELT: Final = 2
"""Characters that a misspelt key may be longer than the key that was meant: `api_key:S3CRET` is not one."""
_WORD: Final = re.compile(r"[a-z_]+")
"""The spelling of keys; secrets have digits, capitals or signs."""


@cache
def sections(root: type[Section] = Config) -> tuple[tuple[str, type[Section]], ...]:
    """Sections that are plain mappings of keys, with their models."""
    named = ((name, model_in(field.annotation)) for name, field in root.model_fields.items() if name not in NESTED)
    return tuple((name, model) for name, model in named if model)


@cache
def lists(root: type[Section] = Config) -> tuple[tuple[str, type[Section]], ...]:
    """Sections that are lists of mappings, with the models of their items."""
    found = []
    for name in (name for name in NESTED if name in root.model_fields):
        annotation = root.model_fields[name].annotation
        if tuple in _parts(annotation) and dict not in _parts(annotation) and (model := model_in(annotation)):
            found.append((name, model))
    return tuple(found)


@cache
def models_of(model: type[Section]) -> tuple[tuple[str, type[Section]], ...]:
    """The keys of a model with models in them."""
    named = ((key, model_in(field.annotation)) for key, field in model.model_fields.items())
    return tuple((key, inner) for key, inner in named if inner)


@cache
def paths_of(model: type[Section]) -> tuple[tuple[str, FieldInfo], ...]:
    """The fields of a model that take paths."""
    return tuple((key, field) for key, field in model.model_fields.items() if takes_path(field))


def needs_restart(field: FieldInfo) -> bool:
    """Whether a changed value takes effect at the next restart only."""
    return NEEDS_RESTART in field.metadata


def restart_settings(config: Section) -> dict[str, object]:
    """Values of the settings that need a restart, by dotted name; of a list, the marked values of its entries.

    Two configurations with an equal value need no restart for that setting. Neither the order of a list's entries nor
    that of `protocols` matters: a listener for REST and gRPC is the one for gRPC and REST.
    """
    values: dict[str, object] = {}
    for name, whole, marked in _marked(type(config)):
        value = getattr(config, name)
        if whole:
            values[name] = value
        elif isinstance(value, tuple) and marked:
            values[name] = Counter(tuple(_unordered(getattr(entry, key)) for key in marked) for entry in value)
        else:
            values |= {f"{name}.{key}": getattr(value, key) for key in marked}
    return values


@cache
def _marked(root: type[Section]) -> tuple[tuple[str, bool, tuple[str, ...]], ...]:
    """Keys of the top level: name, whether it is marked itself, and the marked keys of its section."""
    marked = []
    for name, field in root.model_fields.items():
        model = model_in(field.annotation)
        keys = model.model_fields if model else {}
        marked.append((name, needs_restart(field), tuple(key for key, each in keys.items() if needs_restart(each))))
    return tuple(marked)


def _unordered(value: Any) -> Any:
    return frozenset(value) if isinstance(value, tuple | list) else value


def field_at(path: tuple[str, ...], root: type[Section] = Config) -> FieldInfo | None:
    """The field of `section.key` or of a top-level key."""
    match path:
        case (key,) if key not in dict(sections(root)):
            return root.model_fields.get(key)
        case (section, key):
            model = dict(sections(root)).get(section)
            return model.model_fields.get(key) if model else None
        case _:
            return None


def model_at(path: tuple[str | int, ...], root: type[Section] = Config) -> type[Section]:
    """The model of the mapping at this path, or of the nearest above it."""
    model = root
    for step in path:
        field = model.model_fields.get(step) if isinstance(step, str) else None
        model = (field and model_in(field.annotation)) or model
    return model


def known_at(path: TreePath, root: type[Section] = Config) -> frozenset[str]:
    """Keys of the mapping at this path, with Qdrant's unused ones."""
    unused = KEYS.get(str(path[0]), frozenset()) if path else SECTIONS
    return unused.union(model_at(path, root).model_fields)


def disclosed(path: TreePath, root: type[Section] = Config) -> TreePath:
    """The part of a path that a problem may name: keys of the model, and a last one that is spelt like a key.

    A mapping in place of a value, or a key of other characters, may be a piece of a secret (`api_key: {S3CRET}`).
    """
    annotation: Any = root
    for index, step in enumerate(path):
        inner = _inner(annotation, step)
        if inner is None:
            is_key = isinstance(step, str) and _keyed(annotation) and _is_key(step, known_at(path[:index], root))
            return path[: index + 1] if is_key else path[:index]
        annotation = inner
    return path


def _is_key(given: str, known: Iterable[str]) -> bool:
    near = nearest(given, known)
    return _WORD.fullmatch(given) is not None or (near != "" and len(given) <= len(near) + _MISSPELT)


def _inner(annotation: Any, step: str | int) -> Any:
    """The annotation one step below; None if the model has no such step."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if _keyed(annotation):
        field = annotation.model_fields.get(step)
        return field and field.annotation
    if origin is dict and isinstance(step, str):
        return inner[1]
    if origin is tuple and isinstance(step, int):
        return inner[0]
    if origin in {Annotated, Union, UnionType}:
        return next((found for part in inner if (found := _inner(part, step)) is not None), None)
    return None


def _keyed(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, Section)


def takes_path(field: FieldInfo) -> bool:
    return Path in _parts(field.annotation)


def takes_url(field: FieldInfo) -> bool:
    """Whether a field that takes a path takes a URL too."""
    return str in _parts(field.annotation)


def takes_text(field: FieldInfo, text: str) -> bool:
    """Whether an environment variable's text is the value, without parsing: `1.3` may be one of a choice of texts."""
    parts = _parts(field.annotation)
    return text in parts or (tuple not in parts and not {str, SecretStr, Path}.isdisjoint(parts))


def _parts(annotation: Any) -> set[Any]:
    """All parts of an annotation; generic ones as their origin: ``tuple`` for any tuple."""
    inner = get_args(annotation)
    own = getattr(annotation, "__origin__", annotation)
    return {own}.union(*map(_parts, inner)) if inner else {own}


def model_in(annotation: Any) -> type[Section] | None:
    """The model in an annotation: itself, as an item of a list, or as a value of a mapping."""
    return next((part for part in _parts(annotation) if _keyed(part)), None)
