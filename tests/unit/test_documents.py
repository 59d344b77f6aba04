"""Everything that the documents name is there: links, anchors, paths, commands, options, keys, metrics, reasons."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import click
import pytest
import yaml
from click.testing import CliRunner
from support.documented import described, metrics
from support.rows import rows

from bench.__main__ import main as bench
from tlsproxy.cli import main as tlsproxy
from tlsproxy.config.loader import parse
from tlsproxy.config.model import Config
from tlsproxy.config.shape import model_at
from tlsproxy.connector import model as client_mode

ROOT = Path(__file__).parents[2]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "SECURITY.md",
    ROOT / "CHANGELOG.md",
    ROOT / "ARCHITECTURE.md",
    *sorted(ROOT.glob("docs/*.md")),
    ROOT / "systemd" / "README.md",
    ROOT / "bench" / "README.md",
    ROOT / "certs" / "README.md",
]
FOLDERS = "tests|tlsproxy|docs|observability|config|systemd|bench|certs"
pages = rows("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())


@cache
def text_of(page: Path) -> str:
    return page.read_text()


def prose(page: Path) -> str:
    """Without its code blocks."""
    return re.sub(r"^ *```.*?^ *```", "", text_of(page), flags=re.DOTALL | re.MULTILINE)


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text_of(page), re.DOTALL | re.MULTILINE)


def code(page: Path) -> list[str]:
    """The inline code."""
    return re.findall(r"`([^`\n]+)`", prose(page))


@cache
def anchors(page: Path) -> set[str]:
    """As the forge makes them of headings: https://docs.github.com, "Section links"."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pages
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if not re.match(r"\w+:", target):
            path, _, anchor = target.partition("#")
            found = (page.parent / path).resolve() if path else page
            assert found.is_relative_to(ROOT), target
            assert found.exists(), target
            assert not anchor or anchor in anchors(found), target


@pages
def test_paths_are_there(page: Path) -> None:
    for name in code(page):
        if re.fullmatch(rf"({FOLDERS})/[\w./-]*\.\w+", name) and name.partition("/")[0] != "certs":
            assert (ROOT / name).exists() or (page.parent / name).exists(), name


def commands(page: Path) -> Iterator[list[str]]:
    """The words of each command of ours, in blocks and inline."""
    lines = "\n".join(blocks(page, "sh")).replace("\\\n", " ").splitlines()
    for line in [*lines, *code(page)]:
        for piece in re.split(r"&&|\||;", re.sub(r"(^|\s)#.*", "", line)):
            words = re.findall(r"""(?:"[^"]*"|'[^']*'|\S)+""", piece)
            if words[:1] in (["tlsproxy"], ["make"]):
                yield words
            elif words[1:3] == ["-m", "bench"]:
                yield words[2:]


def resolved(program: click.Command, words: list[str]) -> tuple[click.Command, list[str]]:
    """The innermost command, and the words after it."""
    context = click.Context(program)
    while isinstance(program, click.Group) and words and not words[0].startswith("-"):
        inner = program.get_command(context, words[0])
        assert inner is not None, words
        program, words = inner, words[1:]
    return program, words


@pages
def test_commands_and_options_are_there(page: Path) -> None:
    heads = re.findall(r"^([a-z][a-z0-9 -]*):", text_of(ROOT / "Makefile"), re.MULTILINE)
    targets = {target for head in heads for target in head.split()}
    for words in commands(page):
        if words[0] == "make":
            named = [word for word in words[1:] if "=" not in word and word != ">" and not word.startswith("-")]
            assert set(named) <= targets, words
            continue
        command, rest = resolved(tlsproxy if words[0] == "tlsproxy" else bench, words[1:])
        known = {option for parameter in command.params for option in parameter.opts} | {"-h", "--help", "--version"}
        assert {word for word in rest if word.startswith("--")} <= known, words


BASE: dict[str, Any] = {
    "tls": {"cert": "server.pem", "key": "server.key", "ca_cert": "ca.pem"},
    "roles": {name: {"access": "r"} for name in ("admin", "search", "ingest")},
    "identities": [{"name": "anybody", "match": {"cn": "*"}, "role": "admin"}],
}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_configurations_are_good(page: Path, tmp_path: Path) -> None:
    """Each part of one, in a whole: with a certificate, and with the roles that pages speak of."""
    for block in blocks(page, "yaml"):
        tree = yaml.safe_load(block)
        if isinstance(tree, dict) and any("targets" in listener for listener in tree.get("listeners", ())):
            whole = {"tls": {"ca_cert": "ca.pem"}} | tree
            client_mode.parse(yaml.safe_dump(whole).encode(), tmp_path / "client.yaml", {})
        elif isinstance(tree, dict) and tree.keys() <= Config.model_fields.keys():
            whole = BASE | {
                name: BASE[name] | value if isinstance(BASE.get(name), dict) else value for name, value in tree.items()
            }
            environ = {"CREDENTIALS_DIRECTORY": str(tmp_path)}
            parse(yaml.safe_dump(whole).encode(), tmp_path / "tlsproxy.yaml", environ)


@pytest.mark.parametrize("name", ["README.md", "docs/getting-started.md"])
def test_the_first_configuration_is_good(name: str, tmp_path: Path) -> None:
    (block,) = [block for block in blocks(ROOT / name, "yaml") if block.startswith("service:")]
    loaded = parse(block.encode(), tmp_path / "tlsproxy.yaml", {})
    assert loaded.warnings == ()
    assert loaded.unused == ()


@pytest.mark.parametrize(
    ("name", "verdicts"), [("README.md", [1]), ("docs/getting-started.md", [0, 1])], ids=["readme", "getting-started"]
)
def test_the_first_commands_do_what_they_say(
    name: str, verdicts: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Certificates, `check` and `explain`, whose exit status says yes or no."""
    monkeypatch.chdir(tmp_path)
    (configuration,) = [block for block in blocks(ROOT / name, "yaml") if block.startswith("service:")]
    (tmp_path / "tlsproxy.yaml").write_text(configuration)
    done = [
        (words[1], CliRunner().invoke(tlsproxy, words[1:]))
        for block in blocks(ROOT / name, "sh")
        for line in block.splitlines()
        if (words := shlex.split(line, comments=True))[:1] == ["tlsproxy"] and words[1] in {"certs", "check", "explain"}
    ]
    assert [each.exit_code for command, each in done if command == "explain"] == verdicts
    for command, each in done:
        assert each.exit_code == 0 or command == "explain", each.output


def model_has(name: str) -> bool:
    """Whether a dotted name is a key: `limits.per_address`, `roles.*.filter`, `keys[].expires`."""
    path: tuple[str, ...] = ()
    first, *steps = name.replace("[]", "").split(".")
    for step in [first, *steps[first == "roles" :]]:  # below `roles` stands a role's name, or `*`
        if step not in model_at(path).model_fields:
            return False
        path = (*path, step)
    return True


@pages
def test_keys_are_there(page: Path) -> None:
    sections = "|".join(Config.model_fields)
    for name in code(page):
        key = name.partition(":")[0]
        if re.fullmatch(rf"({sections})(\[\])?(\.[\w*]+)+", key) and not re.search(
            r"\.(py|yaml|pem|md|log|crt|key)$", key
        ):
            assert model_has(key), name


@pages
def test_metrics_are_there(page: Path) -> None:
    named = set(re.findall(r"\btlsproxy_\w+", text_of(page)))
    assert {name.removesuffix("_bucket") for name in named} <= metrics()


@pages
def test_reasons_are_there(page: Path) -> None:
    for named in re.findall(r"reasons? ((?:`\w+`(?:, | or | and )?)+)", prose(page)):
        assert set(re.findall(r"`(\w+)`", named)) - described("Reasons") == set(), named


TROUBLES = ROOT / "docs" / "troubleshooting.md"
SECTIONS = ("serving", "answers", "certificates", "doors", "daily work")


def table_rows(page: Path) -> Iterator[list[str]]:
    """The cells of the rows of all tables, without heads."""
    for line in prose(page).splitlines():
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        if cells and not re.fullmatch(r"-+", cells[0]) and cells[0] not in {"symptom", "about"}:
            yield cells


def test_each_trouble_is_a_test() -> None:
    """Rows of symptoms have no empty cell, name their test, and stand by section."""
    found = [cells for cells in table_rows(TROUBLES) if cells[0] in SECTIONS]
    assert len(found) > 40
    assert [cells[0] for cells in found] == sorted((cells[0] for cells in found), key=SECTIONS.index)
    for cells in found:
        assert len(cells) == 6, cells
        assert all(cells), cells
        path, _, name = cells[-1].strip("`").partition("::")
        assert path.startswith("tests/data/golden/" if not name else "tests/e2e/"), cells
        assert not name or re.search(rf"^(async )?def {name}\(", (ROOT / path).read_text(), re.MULTILINE), cells
        assert (ROOT / path).exists(), cells


def test_each_symptom_has_its_cells() -> None:
    for cells in table_rows(TROUBLES):
        assert cells[0] in SECTIONS or (len(cells) == 3 and cells[0] and cells[1:] != ["", ""]), cells


def test_readme_is_short() -> None:
    assert len(text_of(ROOT / "README.md").splitlines()) <= 150


def test_readme_leads_to_every_page() -> None:
    linked = set(re.findall(r"\]\((docs/[\w-]+\.md)", text_of(ROOT / "README.md")))
    assert linked == {page.relative_to(ROOT).as_posix() for page in ROOT.glob("docs/*.md")}


def test_the_checks_find_something() -> None:
    words = [word for page in PAGES for word in commands(page)]
    assert {"run", "check", "explain", "reload", "status", "top", "token", "certs", "config"} <= {
        each[1] for each in words if each[0] == "tlsproxy" and len(each) > 1
    }
    assert sum(each[0] == "make" for each in words) > 10
    assert not model_has("limits.no_such")
    assert not model_has("roles.admin.no_such")
    assert "no-such" not in anchors(ROOT / "README.md")
    assert "rights-that-end" in anchors(ROOT / "docs" / "roles-and-rules.md")
