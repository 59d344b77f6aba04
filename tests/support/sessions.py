"""Sessions of a page: its configurations, commands, Python and audit lines, in their order, by section.

In what a command prints and in audit lines `…` stands for any text.
"""

from __future__ import annotations

import doctest
import itertools
import json
import re
import shlex
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import yaml
from click.testing import CliRunner

from support.documented import ROOT
from support.gateway import Gateway
from tlsproxy.cli import main

_IDENTIFYING = {"event", "method", "api", "collection", "result"}
"""Fields that find the line which a page shows; the others must be as shown."""
_FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


@dataclass(frozen=True, slots=True)
class Block:
    language: str
    text: str


def sections(page: str) -> dict[str, list[Block]]:
    """The blocks of code of a page by heading (`##`); those before the first have the heading ``""``."""
    head, *others = re.split(r"^## (.+)\n", (ROOT / page).read_text(), flags=re.MULTILINE)
    texts = {"": head} | dict(zip(others[::2], others[1::2], strict=True))
    return {title: [Block(*found) for found in _blocks(text)] for title, text in texts.items()}


def _blocks(text: str) -> list[tuple[str, str]]:
    return re.findall(r"^```(\w+)\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def merged(former: Any, more: Any, *, lists: bool = True) -> Any:
    """A configuration with more. A list is added to the former one, or replaces it."""
    if isinstance(former, dict) and isinstance(more, dict):
        return former | {name: merged(former.get(name), value, lists=lists) for name, value in more.items()}
    return [*former, *more] if lists and isinstance(former, list) else more


class Session:
    """``own`` makes a page's text the reader's own; ``names`` are those of the page's Python."""

    def __init__(self, gateway: Gateway, own: Callable[[str], str]) -> None:
        self.gateway = gateway
        self.names: dict[str, Any] = {}
        self._own = own
        self._numbers = itertools.count()

    def run(self, block: Block) -> None:
        {
            "yaml": self._edit,
            "sh": run_commands,
            "console": self._commands,
            "pycon": self._interact,
            "json": self._audited,
        }[block.language](self._own(block.text))

    def _edit(self, text: str) -> None:
        """The file is replaced, as an editor does."""
        path = self.gateway.config
        new = path.with_suffix(".new")
        new.write_text(yaml.safe_dump(merged(yaml.safe_load(path.read_text()), yaml.safe_load(text), lists=False)))
        new.replace(path)

    def _commands(self, text: str) -> None:
        for command, expected in commands(text):
            assert output(command) == Like(expected), command

    def define(self, text: str) -> None:
        exec(self._own(text), self.names)  # noqa: S102 - our own lines

    def _interact(self, text: str) -> None:
        told: list[str] = []
        name = f"block {next(self._numbers)}"  # its functions are called in later blocks
        test = doctest.DocTestParser().get_doctest(text, self.names, name, None, None)
        test.globs = self.names  # not a copy: later blocks go on with its names
        doctest.DocTestRunner(verbose=False, optionflags=_FLAGS).run(test, out=told.append, clear_globs=False)
        assert not told, "".join(told)

    def _audited(self, text: str) -> None:
        expected = json.loads(text)
        record = self.gateway.audited(**{name: expected[name] for name in _IDENTIFYING & expected.keys()})
        assert {name: record.get(name) for name in expected} == {
            name: Like(value) if isinstance(value, str) else value for name, value in expected.items()
        }


def run_commands(text: str) -> None:
    """The commands of a block `sh`, whose output is not shown."""
    for command in text.splitlines():
        assert "exit status" not in (printed := output(command)), printed


def commands(text: str) -> Iterator[tuple[str, str]]:
    """The commands of a block `console`, each with what it prints."""
    for piece in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]:
        command, _, printed = piece.partition("\n")
        yield command, printed


def output(command: str) -> str:
    """Of one of our commands: what it prints, and its exit status if that is not 0."""
    words = shlex.split(command.removeprefix("sudo "), comments=True)
    assert words[0] == "tlsproxy", command
    done = CliRunner().invoke(main, words[1:])
    return done.output + (f"exit status {done.exit_code}\n" if done.exit_code else "")


def _on_one_line(text: str) -> str:
    return " ".join(text.split())


class Like:
    """Equal to each text that has the same parts between the `…`, however they are spaced."""

    def __init__(self, pattern: str) -> None:
        self._pattern = pattern

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, str):
            return NotImplemented
        first, *parts = (_on_one_line(one) for one in self._pattern.split("…"))
        text = _on_one_line(other)
        if not parts:
            return text == first
        *middle, last = parts
        position = len(first)
        for part in middle:
            found = text.find(part, position)
            if found < 0:
                return False
            position = found + len(part)
        return text.startswith(first) and text[position:].endswith(last)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return repr(self._pattern)
