"""Parsing of YAML to a tree of plain values with their positions.

A strict subset: one document, string keys, no duplicate or merge keys, no tags beyond strings, numbers, booleans and
null. Size, depth and number of values are bounded, also through aliases. No problem repeats the file's content, since a
secret may be misread as an alias, tag or key: `api_key: *S3CRET`. The caller knows which keys a problem may name.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final, Self

import yaml

from tlsproxy.config.problems import ConfigError, Problem

Path = tuple[str | int, ...]
"""Keys of mappings and indices of lists, from the root."""

MAX_BYTES: Final = 1 << 20
MAX_DEPTH: Final = 16
MAX_VALUES: Final = 100_000

_TAG: Final = "tag:yaml.org,2002:"
_SCALARS: Final = frozenset(_TAG + name for name in ("str", "int", "float", "bool", "null"))
_NOT_YAML: Final = (
    ("found undefined alias", "found undefined alias: quote a value that begins with '*'"),
    ("found undefined tag handle", "found undefined tag: quote a value that begins with '!'"),
    ("second occurrence", "found an anchor twice: quote a value that begins with '&'"),
    ("found character", "found a character that no value begins with (a tab, '@', '%' or '`'): quote the value"),
    ("found unknown escape", "found an unknown escape in double quotes: a value in single quotes has none"),
    ("found unexpected end", "found the end of the file inside quotes"),
    ("mapping values", "found ': ' in a value, or a wrong indentation: quote the value"),
    ("could not find expected ':'", "could not find expected ':'"),
    ("but found another document", "found a second document"),
)
"""Our texts for PyYAML's problems by their beginnings: its own texts repeat the content."""
_UNQUOTED: Final = "found what cannot stand there: quote values, and look at brackets and indentation"


@dataclass(frozen=True, slots=True)
class Position:
    """A position in a file; with ``line`` 0, ``file`` is an environment variable."""

    file: str
    line: int = 0
    column: int = 0

    def problem(self, path: Path, text: str) -> Problem:
        return Problem(self.file, self.line, self.column, dotted(path), text)


@dataclass(slots=True)
class Tree:
    """``positions`` of all values: the key's in a mapping, the value's own in a list. ``values`` is their number."""

    root: dict[str, Any]
    positions: dict[Path, Position]
    problems: list[Problem] = field(default_factory=list)
    values: int = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Free it part by part: 10,000 rules would be freed in one go, and no thread runs meanwhile: 25 ms."""
        while self.positions:
            self.positions.popitem()
        for section in self.root.values():
            while isinstance(section, list) and section:
                section.pop()
            while isinstance(section, dict) and section:
                section.popitem()

    def position(self, path: Path) -> Position:
        """The position of a value, or of its nearest existing parent."""
        while path not in self.positions:
            path = path[:-1]
        return self.positions[path]

    def get(self, path: Path) -> Any:
        """The value at a path; None if there is none."""
        value: Any = self.root
        for step in path:
            try:
                value = value[step]
            except (KeyError, IndexError, TypeError):
                return None
        return value


def dotted(path: Path) -> str:
    """`roles.ingest.access[0].collection`"""
    return "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in path).removeprefix(".")


def read_tree(data: bytes, file: str, disclosed: Callable[[Path], Path] = lambda path: path) -> Tree:
    """Parse a file. Raises ConfigError if it is not YAML; lesser problems are in the tree.

    ``disclosed`` cuts a path to the part that a problem may name.
    """
    start = Position(file, 1, 1)
    if len(data) > MAX_BYTES:
        raise ConfigError([start.problem((), f"larger than {MAX_BYTES} bytes: is this the configuration file?")])
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError([start.problem((), f"not UTF-8: byte {error.start} cannot be decoded")]) from None
    nodes: list[yaml.Node] = []
    try:
        return _tree_of(text, file, disclosed, nodes)
    except yaml.reader.ReaderError as error:
        where = Position(file, text.count("\n", 0, error.position) + 1, 1)
        raise ConfigError([where.problem((), "a control character, which YAML does not allow")]) from None
    except yaml.MarkedYAMLError as error:
        raise ConfigError([_at(error.problem_mark, file).problem((), f"not YAML: {_kind(error)}")]) from None
    except (ValueError, OverflowError):  # PyYAML takes "\\UFFFFFFFF" for a character
        raise ConfigError([start.problem((), "not YAML: an escape in double quotes is no character")]) from None
    finally:
        # Node by node: those of 10,000 rules would be freed in one go, and no thread runs meanwhile: 70 ms.
        while nodes:
            nodes.pop().value = ()


def _tree_of(text: str, file: str, disclosed: Callable[[Path], Path], nodes: list[yaml.Node]) -> Tree:
    """The tree; ``nodes`` gets all that it was made of."""
    start = Position(file, 1, 1)
    node = _Composer(text, file, nodes).get_single_node()
    tree = Tree(root={}, positions={(): start})
    if node is None or node.tag == _TAG + "null":
        return tree
    if not isinstance(node, yaml.MappingNode):
        raise ConfigError([_at(node.start_mark, file).problem((), "the file must be a mapping of sections")])
    tree.root = _Converter(tree, file, disclosed).mapping(node, ())
    return tree


def read_value(text: str) -> Any:
    """Parse a scalar or a list in flow style, as in an environment variable. Raises ConfigError."""
    tree = read_tree(b"value: " + text.encode(), "")
    if tree.problems:
        raise ConfigError(tree.problems)
    return tree.root.get("value")


def _kind(error: yaml.MarkedYAMLError) -> str:
    problem = error.problem or ""
    if isinstance(error, yaml.parser.ParserError) and problem.startswith("expected"):
        return problem  # it names the kind of the token only
    return next((text for begin, text in _NOT_YAML if problem.startswith(begin)), _UNQUOTED)


def _at(mark: Any, file: str) -> Position:
    return Position(file, 1, 1) if mark is None else Position(file, mark.line + 1, mark.column + 1)


class _Composer(yaml.SafeLoader):
    """Text to nodes, with a depth limit, since PyYAML's composer is recursive. Adds each one to ``nodes``."""

    def __init__(self, text: str, file: str, nodes: list[yaml.Node]) -> None:
        super().__init__(text)
        self._file = file
        self._nodes = nodes
        self._depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self._depth == MAX_DEPTH and self.check_event(yaml.CollectionStartEvent):
            where = _at(self.peek_event().start_mark, self._file)  # type: ignore[no-untyped-call]
            raise ConfigError([where.problem((), f"nested deeper than {MAX_DEPTH} levels")])
        if self.check_event(yaml.ScalarEvent):
            event = self.peek_event()  # type: ignore[no-untyped-call]
            if event.anchor is not None and event.implicit[0] and not event.value:
                where = _at(event.start_mark, self._file)
                raise ConfigError([where.problem((), "an anchor without a value: quote a value that begins with '&'")])
        self._depth += 1
        node = super().compose_node(parent, index)
        self._depth -= 1
        if node is not None:
            self._nodes.append(node)
        return node


class _Converter:
    """Nodes to values. An alias is the same node again, so each visit counts, and its depth is checked."""

    def __init__(self, tree: Tree, file: str, disclosed: Callable[[Path], Path]) -> None:
        self._tree = tree
        self._file = file
        self._disclosed = disclosed
        self._scalars = yaml.SafeLoader("")

    def mapping(self, node: yaml.MappingNode, path: Path) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for key_node, value_node in node.value:
            where = _at(key_node.start_mark, self._file)
            if key_node.tag == _TAG + "merge":
                self._problem(where, path, "merge keys (<<) are not supported: write the keys out")
            elif not isinstance(key_node, yaml.ScalarNode) or key_node.tag != _TAG + "str":
                self._problem(where, path, "a key must be a string: quote it")
            elif key_node.value in result:
                first = self._tree.positions[*path, key_node.value]
                self._problem(where, (*path, key_node.value), f"duplicate key (the first is in line {first.line})")
            else:
                self._tree.positions[*path, key_node.value] = where
                result[key_node.value] = self._value(value_node, (*path, key_node.value))
        return result

    def _value(self, node: yaml.Node, path: Path) -> Any:
        self._tree.values += 1
        where = _at(node.start_mark, self._file)
        if self._tree.values > MAX_VALUES or len(path) > MAX_DEPTH:
            raise ConfigError([where.problem(self._disclosed(path), "too many values, or an alias of what holds it")])
        if isinstance(node, yaml.MappingNode) and node.tag == _TAG + "map":
            return self.mapping(node, path)
        if isinstance(node, yaml.SequenceNode) and node.tag == _TAG + "seq":
            for index, item in enumerate(node.value):
                self._tree.positions[*path, index] = _at(item.start_mark, self._file)
            return [self._value(item, (*path, index)) for index, item in enumerate(node.value)]
        if isinstance(node, yaml.ScalarNode) and node.tag in _SCALARS:
            return self._scalar(node, path, where)
        if isinstance(node, yaml.ScalarNode) and node.tag == _TAG + "timestamp":
            return node.value
        self._problem(where, path, "a tag is not supported: quote a value that begins with '!'")
        return None

    def _scalar(self, node: yaml.ScalarNode, path: Path, where: Position) -> Any:
        try:
            return self._scalars.construct_object(node)
        except (ValueError, LookupError):  # 0x_, more digits than int() takes; an empty !!int, another word as !!bool
            kind = "switch" if node.tag == _TAG + "bool" else "number"
            self._problem(where, path, f"not a {kind}: quote it if it is text")
            return None

    def _problem(self, where: Position, path: Path, text: str) -> None:
        self._tree.problems.append(where.problem(self._disclosed(path), text))
