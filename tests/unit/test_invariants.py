"""What the code says of itself: the one place that says yes, the rooms' sizes, the tests that ARCHITECTURE names."""

from __future__ import annotations

import ast
import functools
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.rows import rows

ROOT = Path(__file__).parents[2]
MODULES = sorted((ROOT / "tlsproxy").rglob("*.py"))


@functools.cache
def source(module: Path) -> str:
    return module.read_text()


@functools.cache
def parsed(module: Path) -> ast.Module:
    return ast.parse(source(module))


@functools.cache
def calls_by_name(module: Path) -> dict[str, list[ast.Call]]:
    found: dict[str, list[ast.Call]] = {}
    for node in ast.walk(parsed(module)):
        if isinstance(node, ast.Call):
            found.setdefault(getattr(node.func, "id", getattr(node.func, "attr", "")), []).append(node)
    return found


@pytest.fixture(scope="module", autouse=True)
def trees() -> Iterator[None]:
    """They go with this module: each later collection of garbage would go through a million of nodes."""
    yield
    for kept in (parsed, calls_by_name):
        kept.cache_clear()


def calls(module: Path, name: str) -> list[ast.Call]:
    """Only modules with the name in their text are parsed."""
    return calls_by_name(module).get(name, []) if name in source(module) else []


def test_only_the_access_module_makes_an_allowed_decision() -> None:
    makers = set()
    for module in MODULES:
        for call in calls(module, "Decision"):
            values = {keyword.arg: keyword.value for keyword in call.keywords}
            allowed = values.get("allowed", call.args[0] if call.args else None)
            if not (isinstance(allowed, ast.Constant) and allowed.value is False):
                makers.add(module.relative_to(ROOT).as_posix())
    assert makers == {"tlsproxy/authz/access.py"}


@pytest.mark.parametrize(
    ("maker", "module"),
    [
        ("restate_request", "tlsproxy/proxy/decision/request_plan.py"),
        ("restate_call", "tlsproxy/proxy/decision/call_plan.py"),
    ],
)
def test_heads_for_the_upstream_are_made_in_one_place(maker: str, module: str) -> None:
    """Its behaviour is in `test_upstream_needs_permission.py`."""
    assert [path.relative_to(ROOT).as_posix() for path in MODULES if calls(path, maker)] == [module]


def test_blocking_work_is_done_in_threads_that_nobody_waits_for_at_the_end() -> None:
    """The loop's executor, and its `getaddrinfo`, are joined when the process ends, however long they hang."""
    joined = {"to_thread", "run_in_executor", "ThreadPoolExecutor"}
    assert not [
        (module.name, name)
        for module in MODULES
        for name in joined
        if "demo" not in module.parts and calls(module, name)
    ]


@rows("module", MODULES, ids=lambda module: module.relative_to(ROOT).as_posix())
def test_a_module_is_a_room_and_says_what_it_answers_for(module: Path) -> None:
    assert len(source(module).splitlines()) <= 500
    assert re.match(r'r?"""\S', source(module))


WALL_CLOCKS = {("time", "time"), ("time", "time_ns"), ("datetime", "now")}
DATES = {
    "cli": "programs that tell a person of dates, and are over",
    "proxy/grpc/connection.py:broken": "of an audit line",
    "proxy/frontend/handshake.py:handshake_failed": "of an audit line",
    "proxy/rest/responses.py:response": "the field `date` of an answer",
    "proxy/core/connection_manager.py:_end": "of an audit line",
    "proxy/tcp/connection.py:_refuse": "of a refusal that is told",
    "proxy/tcp/connection.py:_audit": "of an audit line",
    "proxy/frontend/rejections.py:write": "of an audit line",
    "admin/server.py:_page": "dates that a page tells",
    "audit/log.py:__init__": "names of files, by their date",
    "service/clock_jumps.py:_jumped": "of a jump, in the status",
    "snapshot/jwks.py:_refresh": "of a fetch, in the status",
    "snapshot/bundles.py": "of a fetch, in the status, and what the expiry of a bundle is judged by",
    "service/reloader.py": "of a verdict, and what dates are judged by",
    "service/server.py:_event": "of an audit line",
    "service/state.py:_status": "slots of the monotonic clock, told as dates",
    "service/workers/process.py:__init__": "of a start, in the status",
    "service/shared/coordinator.py": "of a change, in the status, and what is left of locks",
    "snapshot/bounded_io.py:_begin": "of a call that hangs, in what is said of it",
    "connector": "of a verdict, and what dates of files are judged by",
    "tls/pki.py": "dates of what it issues",
    "snapshot/startup.py": "dates of certificates and CRLs",
}
"""Where the wall clock is read, and for which date. What lasts is measured by the monotonic clock."""


def test_the_wall_clock_tells_dates_and_nothing_that_lasts() -> None:
    found = set()
    for module in MODULES:
        if not any(f".{attribute}" in source(module) for _, attribute in WALL_CLOCKS):
            continue
        name = module.relative_to(ROOT / "tlsproxy").as_posix()
        tree = parsed(module)
        functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
        for node in ast.walk(tree):
            match node:
                case ast.Attribute(value=ast.Name(id=of), attr=attribute) if (of, attribute) in WALL_CLOCKS:
                    around = [each for each in functions if each.lineno <= node.lineno <= (each.end_lineno or 0)]
                    where = f"{name}:{around[-1].name}" if around else name
                    found.add(next((key for key in (where, name, name.partition("/")[0]) if key in DATES), where))
    assert found - DATES.keys() == set()


NOUNS_OF_REQUESTS = {
    "Asked", "BodyDecision", "BodyFacts", "CallHead", "CallPlan", "Caller", "HeadDecision", "LimitCheck", "Plan",
    "Prepared", "Recognised", "Reduced", "Relayed", "RequestHead", "RequestTarget", "ResponseHead", "Ruling", "Said",
    "Unread",
}  # fmt: skip


def changes(tree: ast.Module, nouns: dict[str, set[str]]) -> Iterator[str]:
    """Assignments to a field of what is named, annotated or made as one of the nouns in this module, or in its class.

    Without types: `plan.length = 1` and `self.record.plan.length = 1` are found where `plan` is a Plan anywhere here.
    """
    named: dict[str, set[str]] = {}
    for node in ast.walk(tree):
        match node:
            case (
                ast.arg(arg=name, annotation=ast.expr() as kind)
                | ast.AnnAssign(target=ast.Name(id=name) | ast.Attribute(attr=name), annotation=kind)
            ):
                pass
            case ast.Assign(targets=[ast.Name(id=name) | ast.Attribute(attr=name)], value=ast.Call(func=kind)):
                pass
            case ast.ClassDef(name=kind, body=body) if kind in nouns:
                for part in body:
                    if getattr(part, "name", "") != "__init__":
                        yield from stores(part, {"self": nouns[kind]})
                continue
            case _:
                continue
        for inner in ast.walk(kind):
            if isinstance(inner, ast.Name) and inner.id in nouns:
                named.setdefault(name, set()).update(nouns[inner.id])
    yield from stores(tree, named)


def stores(tree: ast.AST, named: dict[str, set[str]]) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and not isinstance(node.ctx, ast.Load):
            owner = getattr(node.value, "id", getattr(node.value, "attr", ""))
            if node.attr in named.get(owner, ()):
                yield ast.unparse(node)


def test_nouns_of_requests_are_never_changed() -> None:
    one_of_them = re.compile(rf"\b(?:{'|'.join(NOUNS_OF_REQUESTS)})\b")
    modules = [module for module in MODULES if one_of_them.search(source(module))]
    nouns: dict[str, set[str]] = {}
    for module in modules:
        for node in parsed(module).body:
            if isinstance(node, ast.ClassDef) and node.name in NOUNS_OF_REQUESTS:
                fields = {ast.unparse(part.target) for part in node.body if isinstance(part, ast.AnnAssign)}
                nouns[node.name] = fields
    assert nouns.keys() == NOUNS_OF_REQUESTS
    assert {module: found for module in modules if (found := list(changes(parsed(module), nouns)))} == {}


@pytest.mark.parametrize(
    "code",
    [
        "def f(plan: Plan | None):\n plan.length = 1",
        "def f(record):\n head: Plan = g()\n record.head.length += 1",
        "head = Plan(1)\ndel head.length",
        "class Plan:\n length: int\n def f(self):\n  self.length, x = 1, 2",
    ],
)
def test_a_change_of_a_noun_is_found(code: str) -> None:
    assert len(list(changes(ast.parse(code), {"Plan": {"length"}}))) == 1


def test_what_makes_a_noun_changes_none() -> None:
    made = "class Plan:\n length: int\n def __init__(self):\n  self.length = 1"
    assert list(changes(ast.parse(made), {"Plan": {"length"}})) == []


def test_architecture_names_tests_and_modules_that_exist() -> None:
    places = "|".join(["tests", "tlsproxy", *(path.name for path in (ROOT / "tlsproxy").iterdir() if path.is_dir())])
    named = set(re.findall(rf"`((?:{places})/\w[\w/]*\.py)`", _architecture()))
    assert len(named) > 20
    missing = [name for name in named if not (ROOT / name).exists() and not (ROOT / "tlsproxy" / name).exists()]
    assert missing == []


def test_each_known_way_for_a_reload_to_go_wrong_has_a_test() -> None:
    rows = re.findall(r"^\| (\d+) \|.*\| `(tests/[\w/]+\.py)::(\w+)` \|$", _certificates(), re.MULTILINE)
    assert [int(number) for number, _, _ in rows] == list(range(1, 28))
    missing = [
        (path, name)
        for _, path, name in rows
        if not (ROOT / path).exists()
        or not re.search(rf"^(async )?def {name}\(", (ROOT / path).read_text(), re.MULTILINE)
    ]
    assert missing == []


def _certificates() -> str:
    return (ROOT / "docs" / "certificates.md").read_text()


def _architecture() -> str:
    return (ROOT / "ARCHITECTURE.md").read_text()


def test_the_threat_model_names_each_specification_of_what_a_client_cannot_do() -> None:
    named = set(re.findall(r"`(tests/\w[\w/]*\.py)`", (ROOT / "SECURITY.md").read_text()))
    assert [name for name in named if not (ROOT / name).exists()] == []
    hostile = {path.relative_to(ROOT).as_posix() for path in (ROOT / "tests" / "hostile").glob("test_*.py")}
    assert len(hostile) == 10
    assert hostile - named == set()


def test_nothing_secret_is_in_the_repository() -> None:
    """Neither keys nor certificates, in any file that git has; the texts that name them are no such files."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout
    paths = [ROOT / name.decode() for name in listed.split(b"\0") if name]
    assert len(paths) > 500
    encoded = re.compile(rb"-----BEGIN [A-Z0-9 ]*(?:PRIVATE KEY|CERTIFICATE|X509 CRL)-----\s+[A-Za-z0-9+/]{60}")
    assert [path for path in paths if path.exists() and encoded.search(path.read_bytes())] == []
    assert [path for path in paths if path.suffix in {".pem", ".key", ".crt", ".der", ".p12", ".pfx", ".jks"}] == []
