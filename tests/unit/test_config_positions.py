from __future__ import annotations

from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from support.rows import rows

from tlsproxy.config import positions
from tlsproxy.config.positions import MAX_BYTES, MAX_DEPTH, dotted, read_tree, read_value
from tlsproxy.config.problems import ConfigError


def refused(data: bytes) -> str:
    with pytest.raises(ConfigError) as caught:
        read_tree(data, "f.yaml")
    return str(caught.value)


def test_values_remember_their_place() -> None:
    tree = read_tree(b"a: 1\nb:\n  c: [x, {d: null}]\n", "f.yaml")
    assert tree.root == {"a": 1, "b": {"c": ["x", {"d": None}]}}
    places = {dotted(path): (at.line, at.column) for path, at in tree.positions.items() if path}
    assert places == {"a": (1, 1), "b": (2, 1), "b.c": (3, 3), "b.c[0]": (3, 7), "b.c[1]": (3, 10), "b.c[1].d": (3, 11)}


def test_place_of_what_is_not_there_is_its_parents() -> None:
    tree = read_tree(b"a: 1\nb: {c: 1}\n", "f.yaml")
    assert str(tree.position(("b", "x")).problem(("b", "x"), "is required")) == "f.yaml:2:1 b.x: is required"
    assert tree.position(("x",)).line == 1


@pytest.mark.parametrize("data", [b"", b"# nothing\n", b"---\n"])
def test_empty_file_is_an_empty_tree(data: bytes) -> None:
    assert read_tree(data, "f.yaml").root == {}


@rows(
    ("data", "says"),
    [
        (b"a: [1\nb: 2\n", "f.yaml:2:2 not YAML"),
        (b"a: 1\n---\nb: 2\n", "f.yaml:2:1 not YAML"),
        (b"- 1\n", "f.yaml:1:1 the file must be a mapping"),
        (b"a: \xff\n", "f.yaml:1:1 not UTF-8: byte 3"),
        (b"a: 1\nb: \x01\n", "f.yaml:2:1 a control character"),
        (b"a: *b\n", "f.yaml:1:4 not YAML: found undefined alias"),
        (b"a: &b\n", "f.yaml:1:4 an anchor without a value: quote a value that begins with '&'"),
        (b'a: "\\UFFFFFFFF"\n', "f.yaml:1:1 not YAML: an escape in double quotes is no character"),
        (b"x" * (MAX_BYTES + 1), "f.yaml:1:1 larger than"),
        (b"a: " + b"[" * 20_000, "nested deeper"),
        (b"a: &x [*x]\n", "an alias of what holds it"),
    ],
)
def test_not_a_tree(data: bytes, says: str) -> None:
    assert says in refused(data)


@pytest.mark.parametrize(("opening", "closing"), [(b"[", b"]"), (b"{a: ", b"}")])
def test_so_deep_and_no_deeper(opening: bytes, closing: bytes) -> None:
    def nested(levels: int) -> bytes:
        return b"a: " + opening * levels + b"x" + closing * levels

    assert not read_tree(nested(MAX_DEPTH - 1), "f.yaml").problems
    assert "nested deeper" in refused(nested(MAX_DEPTH))


def test_alias_bomb_is_bounded() -> None:
    lines = [b"a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [b"a%d: &a%d [%s]" % (n, n, b", ".join([b"*a%d" % (n - 1)] * 10)) for n in range(1, 9)]
    assert "too many values" in refused(b"\n".join(lines))


def test_alias_is_expanded() -> None:
    assert read_tree(b"a: &x {b: 1}\nc: *x\n", "f.yaml").root == {"a": {"b": 1}, "c": {"b": 1}}


@rows(
    ("data", "problem"),
    [
        (b"a: 1\na: 2\n", "f.yaml:2:1 a: duplicate key (the first is in line 1)"),
        (b"s: {a: 1, b: 2,\n  a: 3}\n", "f.yaml:2:3 s.a: duplicate key (the first is in line 1)"),
        (b"a: {<<: {b: 1}}\n", "f.yaml:1:5 a: merge keys (<<) are not supported: write the keys out"),
        (b"1: a\n", "f.yaml:1:1 a key must be a string: quote it"),
        (b"yes: a\n", "f.yaml:1:1 a key must be a string: quote it"),
        (b"? [a]\n: b\n", "f.yaml:1:3 a key must be a string: quote it"),
        (
            b"a: !!python/object:os.system x\n",
            "f.yaml:1:4 a: a tag is not supported: quote a value that begins with '!'",
        ),
        (b"a: !!binary eA==\n", "f.yaml:1:4 a: a tag is not supported: quote a value that begins with '!'"),
        (b"a: !mine {}\n", "f.yaml:1:4 a: a tag is not supported: quote a value that begins with '!'"),
        (b"a: !!bool x\n", "f.yaml:1:4 a: not a switch: quote it if it is text"),
        (b"a: !!int ''\n", "f.yaml:1:4 a: not a number: quote it if it is text"),
        (b"a: 0x_\n", "f.yaml:1:4 a: not a number: quote it if it is text"),
    ],
)
def test_lesser_problem(data: bytes, problem: str) -> None:
    assert [str(found) for found in read_tree(data, "f.yaml").problems] == [problem]


def test_date_is_text() -> None:
    assert read_tree(b"a: 2026-01-01\n", "f.yaml").root == {"a": "2026-01-01"}


@pytest.mark.parametrize(("text", "value"), [("true", True), ("1", 1), ("[a, b]", ["a", "b"]), ("", None), ("a", "a")])
def test_value_of_a_variable(text: str, value: Any) -> None:
    assert read_value(text) == value


def test_value_that_is_no_yaml() -> None:
    with pytest.raises(ConfigError):
        read_value("[a")


LEAVES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
TREES = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3), max_leaves=12
)


@given(st.dictionaries(st.text(), TREES, max_size=4))
def test_equals_safe_load(value: dict[str, Any]) -> None:
    data = yaml.safe_dump(value, allow_unicode=True).encode()
    try:
        tree = read_tree(data, "f.yaml")
    except ConfigError as error:
        assert error.problems[0].text.startswith("nested deeper")  # noqa: PT017 - the only way not to be read
        return
    assert not tree.problems
    assert tree.root == yaml.safe_load(data)


@given(st.binary(max_size=200) | st.text(alphabet="ab:-[]{},&*!<>?|'\"# \n", max_size=60).map(str.encode))
def test_any_bytes_are_a_tree_or_a_config_error(data: bytes) -> None:
    try:
        tree = read_tree(data, "f.yaml")
    except ConfigError as error:
        assert error.problems  # noqa: PT017 - either outcome is right, and nothing else
    else:
        assert isinstance(tree.root, dict)


def test_what_a_tree_was_made_of_is_let_go_node_by_node(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of 10,000 rules would be freed in one go, and no thread runs meanwhile."""
    made: list[yaml.Node] = []
    left: list[yaml.Node] = []
    compose = positions._Composer.get_single_node

    def composed(composer: positions._Composer) -> yaml.Node | None:
        nonlocal left
        left = composer._nodes
        node = compose(composer)
        made.extend(left)
        return node

    monkeypatch.setattr(positions._Composer, "get_single_node", composed)
    assert read_tree(b"a: &x {b: [1, 2]}\nc: *x\n", "f.yaml").root == {"a": {"b": [1, 2]}, "c": {"b": [1, 2]}}
    assert len(made) == 9  # an alias is the node that it names, once more
    assert not left
    assert all(node.value == () for node in made)


def test_a_tree_that_was_used_is_let_go_value_by_value() -> None:
    with read_tree(b"a: {b: 1, c: 2}\nd: [1, 2]\ne: f\n", "f.yaml") as tree:
        assert tree.get(("d", 1)) == 2
    assert (tree.root, tree.positions) == ({"a": {}, "d": [], "e": "f"}, {})
