"""docs/metrics.md and docs/observability.md describe every metric, audit field and reason of the code, and no others.

`Gateway` holds the page against every audit line that a test makes it write, too.
"""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

from support.documented import METRICS, described

from tlsproxy.metrics.families import FAMILIES
from tlsproxy.metrics.reference import as_markdown

ROOT = Path(__file__).parents[2]


@cache
def sources() -> dict[Path, str]:
    return {path.relative_to(ROOT): path.read_text() for path in (ROOT / "tlsproxy").rglob("*.py")}


Nodes = dict[Path, list[ast.AST]]


def nodes() -> Nodes:
    """Those of which anything is asked, by module."""
    asked = (ast.Call, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef, ast.arguments, ast.Assign, ast.AnnAssign)
    return {
        path: [node for node in ast.walk(ast.parse(text)) if isinstance(node, asked)]
        for path, text in sources().items()
        if not {"cli", "demo"} & set(path.parts)
    }


def called(call: ast.Call) -> str:
    return getattr(call.func, "id", getattr(call.func, "attr", ""))


def signatures(modules: Nodes) -> list[tuple[Path, str, int | None]]:
    """Functions and classes by package and name, with the place of a positional `reason` in a call."""
    found = []
    for path, asked in modules.items():
        for node in asked:
            inner = node.body if isinstance(node, ast.ClassDef) else [node]
            for function in inner:
                if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
                    names = [argument.arg for argument in function.args.args if argument.arg not in {"self", "cls"}]
                    made = isinstance(node, ast.ClassDef) and function.name == "__init__"
                    place = names.index("reason") if "reason" in names else None
                    found.append((path.parent, node.name if made else function.name, place))
    return found


def places_of_a_reason(
    signatures: Iterable[tuple[Path, str, int | None]], package: Path | None = None
) -> dict[str, int]:
    """By name, where all of one name are alike, in a package or everywhere."""
    found: dict[str, set[int | None]] = defaultdict(set)
    for where, name, place in signatures:
        if package in {None, where}:
            found[name].add(place)
    return {name: place for name, (place, *others) in found.items() if place is not None and not others}


def literals(value: ast.expr | None) -> Iterator[str]:
    """A literal, or those of which one is chosen."""
    match value:
        case ast.Constant(str(text)):
            yield text
        case ast.IfExp():
            yield from literals(value.body)
            yield from literals(value.orelse)
        case ast.BoolOp():
            for each in value.values:
                yield from literals(each)


def given_as_a_reason() -> Iterator[ast.expr | None]:
    """By its name or at its place in a call, as a parameter's default, or as a class's."""
    modules = nodes()
    known = signatures(modules)
    packages = {package: places_of_a_reason(known, package) for package in {path.parent for path in modules}}
    everywhere = places_of_a_reason(known)
    for path, asked in modules.items():
        places = everywhere | packages[path.parent]
        for node in asked:
            match node:
                case ast.Call():
                    yield from (keyword.value for keyword in node.keywords if keyword.arg == "reason")
                    if called(node) in places:
                        yield from node.args[places[called(node)] :][:1]
                case ast.arguments():
                    with_default = node.args[len(node.args) - len(node.defaults) :]
                    yield from (
                        value for one, value in zip(with_default, node.defaults, strict=True) if one.arg == "reason"
                    )
                case ast.Assign(targets=[ast.Name(id="reason")]) | ast.AnnAssign(target=ast.Name(id="reason")):
                    yield node.value


def reasons() -> set[str]:
    return {text for value in given_as_a_reason() for text in literals(value) if text}


def test_the_page_of_metrics_is_that_of_the_table() -> None:
    """After a change of the table: `make reference`."""
    assert METRICS.read_text() == as_markdown()
    assert len(FAMILIES) > 30


def test_each_reason_is_described() -> None:
    given = reasons()
    assert len(given) > 50
    assert given - described("Reasons") == set()


def test_what_is_described_is_a_word_of_the_code() -> None:
    words = set(re.findall(r"\w+", "\n".join(sources().values())))
    assert (described("Reasons") | described("Audit log")) - words == set()
