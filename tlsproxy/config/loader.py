"""Parsing of a configuration: bytes and environment to a checked model, or all problems at once.

It reads no file and resolves no name. Problems never contain secrets: they show keys and words of enumerations only.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pydantic import ValidationError

from tlsproxy.config.bundle import BundleConfig
from tlsproxy.config.callers import URL_PATTERN, Section
from tlsproxy.config.checks import ITEMS, findings
from tlsproxy.config.endpoints import check_key_set_url
from tlsproxy.config.environment import PREFIX, overlay
from tlsproxy.config.findings import Finding
from tlsproxy.config.hints import form_hint, place_hint
from tlsproxy.config.model import Config
from tlsproxy.config.pieces import Piece, may_have, merged
from tlsproxy.config.positions import Path as TreePath
from tlsproxy.config.positions import Position, Tree, read_tree
from tlsproxy.config.problems import ConfigError, Problem, did_you_mean
from tlsproxy.config.qdrant_keys import KEYS, SECTIONS, is_unused
from tlsproxy.config.shape import disclosed, known_at, lists, model_at, models_of, paths_of, sections, takes_url
from tlsproxy.threads import free_in_parts

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

CREDENTIAL: Final = "credential:"
"""Prefix of a path in systemd's $CREDENTIALS_DIRECTORY (systemd.exec(5), LoadCredential=)."""

_CREDENTIAL_NAME: Final = re.compile(r"[A-Za-z0-9@_-][A-Za-z0-9@._-]*")
_MISSPELT_URL: Final = re.compile(r"https?:", re.IGNORECASE)
"""A malformed URL, which must not pass for a path: a problem would show it, and its query may be a secret."""
_SHOWN_KEYS: Final = 3
_STAND_IN: Final = {"access": "r"}
_SHAPES: Final = {
    "missing": "is required",
    "string_type": "must be text: quote it",
    "model_type": "must be a mapping",
    "dict_type": "must be a mapping",
    "tuple_type": "must be a list",
}
_TEXTS: Final = {
    "too_short": "must have an entry",
    "path_type": "must be a path: quote it",
    "string_pattern_mismatch": "must be 1 to 64 letters, digits, '.', '_' or '-', and begin with a letter or a digit",
}


@dataclass(frozen=True, slots=True, weakref_slot=True)
class Loaded:
    """A parsed configuration. ``unused`` are Qdrant's keys that are accepted and have no effect.

    ``files`` are the paths of its pieces, in order.
    """

    config: Config
    unused: tuple[Problem, ...]
    warnings: tuple[Problem, ...]
    files: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        free_in_parts(self, (*self.config.identities, *self.config.roles.values()))


def parse(data: bytes, path: Path, environ: Mapping[str, str], pieces: Sequence[Piece] = ()) -> Loaded:
    """Parse and check a configuration with its pieces. Raises ConfigError with all problems.

    Relative paths are resolved against the directory of the file that has them, those of the environment and of
    defaults against ``path``'s.

    The last outcome is cached, a refusal too: 10,000 rules take more than half a second, and polls, reloads and workers
    parse the same bytes again.
    """
    outcome = _outcome(data, path, path.absolute().parent, tuple(environ.items()), tuple(pieces))
    if not isinstance(outcome, Loaded):
        raise ConfigError(outcome)
    return outcome


@lru_cache(maxsize=1)
def _outcome(
    data: bytes, path: Path, base: Path, environ: tuple[tuple[str, str], ...], pieces: tuple[Piece, ...]
) -> Loaded | tuple[Problem, ...]:
    try:
        return _parsed(data, path, base, dict(environ), pieces)
    except ConfigError as error:
        return tuple(error.problems)


def _parsed(data: bytes, path: Path, base: Path, environ: Mapping[str, str], pieces: tuple[Piece, ...]) -> Loaded:
    with merged(data, path, pieces, disclosed) as tree:
        return _checked(tree, path, base, environ, pieces)


def _checked(tree: Tree, path: Path, base: Path, environ: Mapping[str, str], pieces: tuple[Piece, ...]) -> Loaded:
    bases = {str(piece.path): piece.path.absolute().parent for piece in pieces}
    overlaid = overlay(tree, environ)
    unused = (*_take_unused(tree), *overlaid.unused)
    _drop_empty(tree)
    problems = [
        *tree.problems,
        *overlaid.problems,
        *resolve_paths(tree, lambda where: bases.get(where.file, base), environ),
    ]
    sound = _validate(tree)
    problems += sound.problems
    warnings = list(overlaid.warnings)
    for finding in findings(sound.config, tree, sound.failed, sound.kept.keys()):
        place = sound.place(finding.path)
        (warnings if finding.warning else problems).append(tree.position(place).problem(place, finding.text))
    if problems:
        order = {str(name): index for index, name in enumerate([path, *(piece.path for piece in pieces)])}
        raise ConfigError(
            sorted(problems, key=lambda problem: (order.get(problem.file, len(order)), problem.line, problem.column))
        )
    return Loaded(sound.config, unused, tuple(warnings), tuple(str(piece.path) for piece in pieces))


def admin_listen(data: bytes, path: Path, environ: Mapping[str, str], pieces: Sequence[Piece] = ()) -> str | None:
    """`admin.listen` of a configuration that may have mistakes in other sections. Raises ConfigError."""
    tree = merged(data, path, pieces, disclosed)
    overlay(tree, environ)
    _drop_empty(tree)
    sound = _validate(tree)
    if "admin" in sound.failed:
        raise ConfigError(sound.problems)
    return sound.config.admin.listen


@lru_cache(maxsize=1)
def _bundle_settings(data: bytes, path: Path, base: Path, environ: tuple[tuple[str, str], ...]) -> BundleConfig | None:
    try:
        whole = read_tree(data, str(path), disclosed)
    except ConfigError:
        return None
    with whole:
        overlay(whole, dict(environ))
        tree = Tree({"bundle": whole.root.get("bundle")}, whole.positions)
        _drop_empty(tree)
        if list(resolve_paths(tree, lambda _: base, dict(environ))):
            return None
        settings = _validate(tree).config.bundle
    try:
        check_key_set_url("" if settings is None else settings.url)
    except ValueError:
        return None
    return settings


def bundle_settings(data: bytes, path: Path, environ: Mapping[str, str]) -> BundleConfig | None:
    """`bundle` of a main file; None without one that can be used. The last outcome is cached."""
    if not may_have("bundle", data) and not any(name.upper().startswith(f"{PREFIX}BUNDLE__") for name in environ):
        return None
    return _bundle_settings(data, path, path.absolute().parent, tuple(environ.items()))


def located(
    data: bytes, path: Path, environ: Mapping[str, str], found: Iterable[Finding], pieces: Sequence[Piece] = ()
) -> tuple[Problem, ...]:
    """Problems with line and column for findings in a parsed configuration. The last outcome is cached."""
    return _located(data, path, tuple(environ.items()), tuple(found), tuple(pieces))


@lru_cache(maxsize=1)
def _located(
    data: bytes,
    path: Path,
    environ: tuple[tuple[str, str], ...],
    found: tuple[Finding, ...],
    pieces: tuple[Piece, ...],
) -> tuple[Problem, ...]:
    if not found:
        return ()
    with merged(data, path, pieces, disclosed) as tree:
        overlay(tree, dict(environ))
        return tuple(tree.position(finding.path).problem(finding.path, finding.text) for finding in found)


def schema() -> dict[str, Any]:
    """The JSON Schema of a configuration file, for editors. Qdrant's unused keys are allowed and described as such."""
    result = Config.model_json_schema()
    unused = {"description": "Qdrant's own; tlsproxy accepts and does not use it"}
    result["properties"] |= dict.fromkeys(sorted(SECTIONS), unused)
    for section, model in sections():
        result["$defs"][model.__name__]["properties"] |= dict.fromkeys(sorted(KEYS.get(section, ())), unused)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **result}


def _take_unused(tree: Tree) -> Iterator[Problem]:
    for section, value in list(tree.root.items()):
        mapping = value if isinstance(value, dict) else {}
        for path in [(section,), *((section, key) for key in mapping)]:
            if is_unused(path):
                (tree.root if len(path) == 1 else mapping).pop(path[-1])
                yield tree.positions[path].problem(path, "Qdrant's own; tlsproxy does not use it")
                if len(path) == 1:
                    break


def _drop_empty(tree: Tree) -> None:
    """Drop null sections, and empty API keys, which are unset (Qdrant 1.19)."""
    drop_null(tree, Config)
    for section in ("service", "upstream"):
        mapping = tree.root.get(section)
        if isinstance(mapping, dict):
            for key in [key for key, value in mapping.items() if key.endswith("api_key") and value == ""]:
                del mapping[key]


def drop_null(tree: Tree, root: type[Section]) -> None:
    """Drop null sections, whose keys are all commented out."""
    for name in root.model_fields:
        if name in tree.root and tree.root[name] is None:
            del tree.root[name]


def resolve_paths(
    tree: Tree, base: Callable[[Position], Path], environ: Mapping[str, str], root: type[Section] = Config
) -> Iterator[Problem]:
    """``base`` gives the directory that relative paths at a position start from."""
    if "audit" in root.model_fields:
        tree.root.setdefault("audit", {})
    for section, model in sections(root):
        yield from _resolve_fields(tree, (section,), model, base, environ)
    for section, model in lists(root):
        items = tree.root.get(section)
        for index in range(len(items) if isinstance(items, list) else 0):
            yield from _resolve_fields(tree, (section, index), model, base, environ)


def _resolve_fields(
    tree: Tree, where: TreePath, model: type[Section], base: Callable[[Position], Path], environ: Mapping[str, str]
) -> Iterator[Problem]:
    """Resolve the paths of the mapping at ``where``, if it is one."""
    mapping = tree.get(where)
    if not isinstance(mapping, dict):
        return
    for key, inner in models_of(model):
        if isinstance(mapping.get(key), dict):
            yield from _resolve_fields(tree, (*where, key), inner, base, environ)
    for key, field in paths_of(model):
        if isinstance(field.default, Path):
            mapping.setdefault(key, str(field.default))
        given = mapping.get(key)
        values = given if isinstance(given, list) else [given]
        resolved: list[Any] = []
        for index, value in enumerate(values):
            if takes_url(field) and isinstance(value, str) and "://" in value:
                resolved.append(value)
                continue
            path: TreePath = (*where, key, index) if values is given else (*where, key)
            position = tree.position(path if (*where, key) in tree.positions else ())
            try:
                resolved.append(_resolve(value, base(position), environ))
            except ValueError as error:
                yield position.problem(path, str(error))
                resolved.append(value)
        if key in mapping:
            mapping[key] = resolved if values is given else resolved[0]


def _resolve(value: Any, base: Path, environ: Mapping[str, str]) -> Any:
    if not isinstance(value, str) or value == "-":
        return value
    if not value or "\0" in value:
        raise ValueError("must not be empty" if not value else "a path holds no NUL")
    if "://" in value:
        raise ValueError("a URL is not fetched: only files are supported")
    if _MISSPELT_URL.match(value):
        raise ValueError("neither a path nor a URL (https://host/path)")
    if not value.startswith(CREDENTIAL):
        return str(base / value)
    name = value.removeprefix(CREDENTIAL)
    if not _CREDENTIAL_NAME.fullmatch(name):
        raise ValueError("credential:NAME must name a credential, not a path")
    directory = environ.get("CREDENTIALS_DIRECTORY", "")
    if not directory:
        raise ValueError("credential:NAME needs systemd's LoadCredential=: $CREDENTIALS_DIRECTORY is not set")
    return str(Path(directory) / name)


@dataclass(frozen=True, slots=True)
class _Sound:
    """The valid part of a file; ``config`` has defaults for the rest.

    ``failed`` are sections with problems. ``kept`` has the valid items of lists and maps among them, by their positions
    in the file.
    """

    config: Config
    problems: list[Problem]
    failed: frozenset[str]
    kept: Mapping[str, tuple[int, ...]]

    def place(self, path: TreePath) -> TreePath:
        """The path in the file for a path in ``config``."""
        kept = self.kept.get(str(path[0])) if len(path) > 1 and isinstance(path[1], int) else None
        return path if kept is None else (path[0], kept[int(path[1])], *path[2:])


def _validate(tree: Tree) -> _Sound:
    try:
        return _Sound(Config.model_validate(tree.root), [], frozenset(), {})
    except ValidationError as error:
        details = error.errors(include_url=False, include_input=False)
    failing: dict[str, set[int | str]] = {}
    whole: set[str] = set()
    unnamable = {detail["loc"][1] for detail in details if detail["loc"][-1] == "[key]"}
    for detail in details:
        section, *item = detail["loc"]
        failing.setdefault(str(section), set()).update(item[:1])
        if not item:
            whole.add(str(section))
    sound, kept = dict(tree.root), {}
    for section, items in failing.items():
        value = sound.pop(section, None)
        if section in whole or section not in ITEMS:
            continue
        if isinstance(value, list):
            kept[section] = tuple(index for index in range(len(value)) if index not in items)
            sound[section] = [value[index] for index in kept[section]]
        elif isinstance(value, dict):
            # An invalid role stays a name that rules may refer to, unless the name itself is invalid.
            kept[section] = ()
            sound[section] = {
                name: _STAND_IN if name in items else value[name] for name in value if name not in unnamable
            }
    # The only section without defaults. Checks of failed sections do not run.
    sound.setdefault("tls", {"cert": "/", "key": "/"})
    problems = [problem_of(tree, detail) for detail in details]
    return _Sound(Config.model_validate(sound), problems, frozenset(failing), kept)


def problem_of(tree: Tree, detail: ErrorDetails, root: type[Section] = Config) -> Problem:
    """A problem of the model ``root``, as pydantic found it."""
    path: TreePath = ()
    for index, step in enumerate(detail["loc"]):
        # Steps that are not in the file are pydantic's own: a tag of a union, the "[key]" of a mapping.
        last = index == len(detail["loc"]) - 1
        if (*path, step) in tree.positions or (last and detail["type"] == "missing"):
            path = (*path, step)
    return tree.position(path).problem(disclosed(path, root), _text(tree, path, detail, root))


def _text(tree: Tree, path: TreePath, detail: ErrorDetails, root: type[Section]) -> str:
    kind, value = detail["type"], tree.get(path)
    if kind == "extra_forbidden":
        return f"unknown key{place_hint(path) or did_you_mean(str(path[-1]), known_at(path[:-1], root))}"
    hint = form_hint(path, value)
    if kind == "literal_error":
        expected = detail["ctx"]["expected"]
        words = re.findall(r"'([^']*)'", expected)
        return f"must be {expected if words else expected.lower()}{hint or did_you_mean(str(value), words)}"
    if kind == "string_pattern_mismatch" and detail["ctx"]["pattern"] == URL_PATTERN:
        return "https://host/path is expected"
    if kind in _SHAPES:
        return _SHAPES[kind] + (hint or (_keys_hint(path, root) if kind == "model_type" else ""))
    if kind == "too_long":
        return f"must have at most {detail['ctx']['max_length']} entries, not {detail['ctx']['actual_length']}"
    return _TEXTS.get(kind) or detail["msg"].replace("Input should be", "must be").replace("Value", "value", 1)


def _keys_hint(path: TreePath, root: type[Section]) -> str:
    """`: {share: …, number: …}`, the keys of a section that was given as something else; of many only some."""
    keys = tuple(model_at(path, root).model_fields)
    shown = ", ".join(f"{key}: …" for key in keys[:_SHOWN_KEYS])
    return f": {{{shown}{', …' if len(keys) > _SHOWN_KEYS else ''}}}"
