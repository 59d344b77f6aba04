"""Questions about the model that the loader asks: which keys are there, and what kind of value each takes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, get_args

from pydantic import SecretStr
from pydantic.fields import FieldInfo

from tlsproxy.config.callers import Section
from tlsproxy.config.model import Config

NESTED: Final = ("listeners", "roles", "identities", "keys", "jwt_issuers")
"""Sections that are lists or maps of their own, and so have no key that an environment variable could name."""


def sections() -> Iterator[tuple[str, type[Section]]]:
    """The sections that are plain mappings of keys, with their models."""
    for name, field in Config.model_fields.items():
        if name not in NESTED and (model := _model_in(field.annotation)):
            yield name, model


def lists() -> Iterator[tuple[str, type[Section]]]:
    """The sections that are lists of mappings, with the models of their items."""
    for name in NESTED:
        annotation = Config.model_fields[name].annotation
        if tuple in _parts(annotation) and dict not in _parts(annotation) and (model := _model_in(annotation)):
            yield name, model


def field_at(path: tuple[str, ...]) -> FieldInfo | None:
    """The field that `section.key`, or a key of the top level, names."""
    match path:
        case (key,) if key not in dict(sections()):
            return Config.model_fields.get(key)
        case (section, key):
            model = dict(sections()).get(section)
            return model.model_fields.get(key) if model else None
        case _:
            return None


def model_at(path: tuple[str | int, ...]) -> type[Section]:
    """The model of the mapping at this path, or of the nearest above it."""
    model: type[Section] = Config
    for step in path:
        field = model.model_fields.get(step) if isinstance(step, str) else None
        model = (field and _model_in(field.annotation)) or model
    return model


def takes_path(field: FieldInfo) -> bool:
    return Path in _parts(field.annotation)


def takes_url(field: FieldInfo) -> bool:
    """Of one that takes a path: whether it takes a URL as well."""
    return str in _parts(field.annotation)


def takes_text(field: FieldInfo) -> bool:
    """Whether the text of an environment variable is the value as it stands, whatever it looks like."""
    parts = _parts(field.annotation)
    return tuple not in parts and not {str, SecretStr, Path}.isdisjoint(parts)


def _parts(annotation: Any) -> set[Any]:
    """An annotation and what it is made of; a generic one as its origin, so that ``tuple`` stands for any tuple."""
    inner = get_args(annotation)
    own = getattr(annotation, "__origin__", annotation)
    return {own}.union(*map(_parts, inner)) if inner else {own}


def _model_in(annotation: Any) -> type[Section] | None:
    return next((part for part in _parts(annotation) if isinstance(part, type) and issubclass(part, Section)), None)
