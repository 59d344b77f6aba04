"""The compiled form: its build, and Python that mypyc gives another meaning, which no compiled module may have.

`make test-compiled` runs all tests with that form. Rules here are of code that the compiler takes without a word.
"""

from __future__ import annotations

import ast
import runpy
import tomllib
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from support.rows import rows

ROOT = Path(__file__).parents[2]
TABLE = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["tlsproxy"]["compiled"]
SETUP = runpy.run_path(str(ROOT / "setup.py"), run_name="setup")
MODULES: list[str] = SETUP["modules"](TABLE["modules"])
Functions = ast.FunctionDef | ast.AsyncFunctionDef


@cache
def tree_of(module: str) -> ast.Module:
    return ast.parse((ROOT / module).read_text())


def names_of_two_errors(tree: ast.AST) -> Iterator[str]:
    """`except A as error: … except B as error:` in one function: the second must be an A there, or TypeError comes."""
    for function in ast.walk(tree):
        if isinstance(function, Functions):
            kinds: dict[str, set[str]] = {}
            for node in ast.walk(function):
                if isinstance(node, ast.ExceptHandler) and node.name and node.type:
                    kinds.setdefault(node.name, set()).add(ast.unparse(node.type))
            yield from (f"{function.name}: {name}" for name, found in kinds.items() if len(found) > 1)


def chained_assignments(tree: ast.AST) -> Iterator[str]:
    """`node.next = node = made()`: the attribute is set on the new node there, not on the old one."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and len(node.targets) > 1:
            names = {target.id for target in node.targets if isinstance(target, ast.Name)}
            others = (part for target in node.targets if not isinstance(target, ast.Name) for part in ast.walk(target))
            if any(isinstance(part, ast.Name) and part.id in names for part in others):
                yield ast.unparse(node)


def names_of_patterns(tree: ast.AST) -> Iterator[str]:
    """`case {"a": dict(inner)} as whole`: the name is bound to a part there."""
    for node in ast.walk(tree):
        if isinstance(node, ast.MatchAs) and isinstance(
            node.pattern, ast.MatchMapping | ast.MatchSequence | ast.MatchClass
        ):
            yield ast.unparse(node)


def copied_instances(tree: ast.AST) -> Iterator[str]:
    """`copy.copy(entry)` makes the instance by its class without arguments there, which is a TypeError."""
    for node in ast.walk(tree):
        if (isinstance(node, ast.ImportFrom) and node.module == "copy") or (
            isinstance(node, ast.Import) and any(name.name == "copy" for name in node.names)
        ):
            yield ast.unparse(node)


def identities_of_tuples(tree: ast.AST) -> Iterator[str]:
    """`late is SLOW`, where `SLOW = (1, "slow")`: a tuple is made anew wherever its parts are known."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare) and isinstance(node.ops[0], ast.Is | ast.IsNot):
            sides = {ast.unparse(side) for side in (node.left, *node.comparators)}
            yield from (f"{side} in {ast.unparse(node)}" for side in sides & TUPLES)


def constant_tuples(tree: ast.Module) -> Iterator[str]:
    for node in tree.body:
        if isinstance(node, ast.Assign | ast.AnnAssign) and isinstance(node.value, ast.Tuple):
            yield ast.unparse(node.target if isinstance(node, ast.AnnAssign) else node.targets[0])


TUPLES = {name for module in MODULES for name in constant_tuples(tree_of(module))}


RULES: list[Callable[[ast.AST], Iterator[str]]] = [
    names_of_two_errors,
    chained_assignments,
    names_of_patterns,
    copied_instances,
    identities_of_tuples,
]


@rows("rule", RULES, ids=lambda rule: rule.__name__)
def test_no_compiled_module_has_code_that_mypyc_gives_another_meaning(
    rule: Callable[[ast.AST], Iterator[str]],
) -> None:
    assert {module: found for module in MODULES if (found := list(rule(tree_of(module))))} == {}


@pytest.mark.parametrize(
    ("rule", "code"),
    [
        (names_of_two_errors, "def f():\n try: g()\n except KeyError as e: h(e)\n except ValueError as e: i(e)"),
        (chained_assignments, "node.next = node = made()"),
        (copied_instances, "from copy import copy"),
        (identities_of_tuples, "found = (f() if late is SLOW_BODY else 1)"),
        (names_of_patterns, "match x:\n case {'a': dict(inner)} as whole: f(inner, whole)"),
    ],
)
def test_the_rules_find_such_code(rule: Callable[[ast.AST], Iterator[str]], code: str) -> None:
    assert len(list(rule(ast.parse(code)))) == 1


def test_what_judges_claims_and_tenants_stays_plain() -> None:
    """mypyc makes a bool that passes through an `int` an int: `true` in a token would be 1."""
    judging = {f"tlsproxy/authz/{name}.py" for name in ("claim_paths", "claims", "matcher", "rules", "templates")}
    judging |= {f"tlsproxy/qdrant/{name}.py" for name in ("grpc_conditions", "grpc_marks", "tenant_filters")}
    assert all((ROOT / module).exists() for module in judging)
    assert judging.isdisjoint(MODULES)


def test_the_compiler_is_the_one_that_the_types_are_checked_with() -> None:
    assert TABLE["compiler"] in (ROOT / "constraints.txt").read_text().splitlines()


@pytest.mark.parametrize(
    ("choice", "compiler", "expected"),
    [
        (None, "sh", False),
        ("", "sh", False),
        ("no", "sh", False),
        ("auto", "no-such-compiler", False),
        ("yes", "no-such-compiler", True),
    ],
)
def test_the_form_that_is_asked_for(
    monkeypatch: pytest.MonkeyPatch, choice: str | None, compiler: str, *, expected: bool
) -> None:
    monkeypatch.setenv("CC", f"{compiler} -pipe")
    monkeypatch.delenv("TLSPROXY_COMPILED", raising=False)
    if choice is not None:
        monkeypatch.setenv("TLSPROXY_COMPILED", choice)
    assert SETUP["is_compiled"]() is expected


def test_compiled_where_there_is_a_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "Python.h").touch()
    scope: dict[str, Any] = SETUP["_has_compiler"].__globals__
    monkeypatch.setitem(scope, "sysconfig", _Headers(tmp_path))
    monkeypatch.setenv("CC", "sh")
    monkeypatch.setenv("TLSPROXY_COMPILED", "auto")
    assert SETUP["is_compiled"]()
    (tmp_path / "Python.h").unlink()
    assert not SETUP["is_compiled"](), "a compiler without Python's headers"


def test_another_word_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TLSPROXY_COMPILED", "1")
    with pytest.raises(SystemExit, match="TLSPROXY_COMPILED=1 is none of auto, yes, no"):
        SETUP["is_compiled"]()


class _Headers:
    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def get_path(self, _name: str) -> str:
        return str(self._directory)

    def get_config_var(self, _name: str) -> str:
        return "sh"
