"""`QDRANT__SECTION__KEY` in the environment wins over the file, as in Qdrant: any case, double underscores.

A value becomes what its key takes: text as it stands, everything else as YAML would read it. Roles and identities
cannot be set so. A variable that names no key is reported, never obeyed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from pydantic.fields import FieldInfo

from tlsproxy.config.positions import Position, Tree, dotted, read_value
from tlsproxy.config.problems import ConfigError, Problem, did_you_mean
from tlsproxy.config.qdrant_keys import is_unused
from tlsproxy.config.shape import NESTED, field_at, model_at, sections, takes_text

PREFIX: Final = "QDRANT__"


@dataclass(slots=True)
class OverlayResult:
    """What the environment had to say beyond the values that are in the tree now."""

    problems: list[Problem] = field(default_factory=list)
    unused: list[Problem] = field(default_factory=list)
    warnings: list[Problem] = field(default_factory=list)


def overlay(tree: Tree, environ: Mapping[str, str]) -> OverlayResult:
    """Puts the environment's values into the tree."""
    said = OverlayResult()
    seen: dict[tuple[str, ...], str] = {}
    for name, text in sorted(environ.items()):
        if not name.upper().startswith(PREFIX):
            continue
        path = tuple(name[len(PREFIX) :].lower().split("__"))
        where = Position(f"env {name}")
        target = field_at(path)
        if is_unused(path):
            said.unused.append(where.problem(path, "Qdrant's own; tlsproxy does not use it"))
        elif path[0] in NESTED:
            said.warnings.append(where.problem(path, f"{path[0]} cannot be set in the environment; ignored"))
        elif target is None:
            said.warnings.append(where.problem(path, f"no such key{_hint(path)}; ignored"))
        elif path in seen:
            said.problems.append(where.problem(path, f"set twice: {seen[path]} names the same key"))
        else:
            seen[path] = name
            try:
                _put(tree, path, _value(target, text), where)
            except ConfigError:
                said.problems.append(where.problem(path, "not a value that YAML could read"))
    return said


def _value(target: FieldInfo, text: str) -> Any:
    return text if takes_text(target) else read_value(text)


def _put(tree: Tree, path: tuple[str, ...], value: Any, where: Position) -> None:
    mapping = tree.root
    if len(path) > 1:
        if tree.root.get(path[0]) is None:
            tree.root[path[0]] = {}
            tree.positions.setdefault(path[:1], where)
        mapping = tree.root[path[0]]
    if isinstance(mapping, dict):  # else the file's section is no mapping, which is an error of its own
        mapping[path[-1]] = value
        tree.positions[path] = where


def _hint(path: tuple[str, ...]) -> str:
    known = {(section, key) for section, model in sections() for key in model.model_fields}
    return did_you_mean(dotted(path), {dotted(key) for key in known} | set(model_at(()).model_fields))
