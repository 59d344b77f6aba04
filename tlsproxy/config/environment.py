"""Overlay of environment variables: `QDRANT__SECTION__KEY` overrides the file, as in Qdrant, in any case.

Text keys and choices of texts take the value as it is, all others parse it as YAML. Lists and maps such as roles cannot
be set. A variable that names no key is reported and ignored.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from pydantic.fields import FieldInfo

from tlsproxy.config.callers import Section
from tlsproxy.config.model import Config
from tlsproxy.config.positions import Position, Tree, dotted, read_value
from tlsproxy.config.problems import ConfigError, Problem, did_you_mean
from tlsproxy.config.qdrant_keys import is_unused
from tlsproxy.config.shape import NESTED, field_at, sections, takes_text

PREFIX: Final = "QDRANT__"


@dataclass(slots=True)
class OverlayResult:
    """Problems, unused keys and warnings of the overlay, beside the values that are now in the tree."""

    problems: list[Problem] = field(default_factory=list)
    unused: list[Problem] = field(default_factory=list)
    warnings: list[Problem] = field(default_factory=list)


def overlay(tree: Tree, environ: Mapping[str, str], root: type[Section] = Config) -> OverlayResult:
    """Put the environment's values into the tree of a file with the model ``root``."""
    result = OverlayResult()
    seen: dict[tuple[str, ...], str] = {}
    for name, text in sorted(environ.items()):
        if not name.upper().startswith(PREFIX):
            continue
        path = tuple(name[len(PREFIX) :].lower().split("__"))
        where = Position(f"env {name}")
        target = field_at(path, root)
        if is_unused(path):
            result.unused.append(where.problem(path, "Qdrant's own; tlsproxy does not use it"))
        elif path[0] in NESTED:
            result.warnings.append(where.problem(path, f"{path[0]} cannot be set in the environment; ignored"))
        elif target is None:
            result.warnings.append(where.problem(path, f"no such key{_hint(path, root)}; ignored"))
        elif path in seen:
            result.problems.append(where.problem(path, f"set twice: {seen[path]} names the same key"))
        else:
            seen[path] = name
            try:
                _put(tree, path, _value(target, text), where)
            except ConfigError:
                result.problems.append(where.problem(path, "not a value that YAML could read"))
    return result


def _value(target: FieldInfo, text: str) -> Any:
    return text if takes_text(target, text) else read_value(text)


def _put(tree: Tree, path: tuple[str, ...], value: Any, where: Position) -> None:
    mapping = tree.root
    if len(path) > 1:
        if tree.root.get(path[0]) is None:
            tree.root[path[0]] = {}
            tree.positions.setdefault(path[:1], where)
        mapping = tree.root[path[0]]
    if isinstance(mapping, dict):  # else the section is no mapping, which is reported elsewhere
        mapping[path[-1]] = value
        size = len(path)
        for replaced in [each for each in tree.positions if len(each) > size and each[:size] == path]:
            del tree.positions[replaced]
        tree.positions[path] = where


def _hint(path: tuple[str, ...], root: type[Section]) -> str:
    known = {(section, key) for section, model in sections(root) for key in model.model_fields}
    return did_you_mean(dotted(path), {dotted(key) for key in known} | set(root.model_fields))
