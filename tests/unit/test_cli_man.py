"""The manual page and completion: every command and option, and nothing that roff takes for its own."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from tlsproxy.cli import main
from tlsproxy.cli.man import _text, manual


def commands(group: click.Group, words: tuple[str, ...] = ()) -> dict[tuple[str, ...], click.Command]:
    found = {}
    for name in group.list_commands(click.Context(group)):
        command = group.get_command(click.Context(group), name)
        assert command is not None
        inner = (*words, name)
        found |= commands(command, inner) if isinstance(command, click.Group) else {inner: command}
    return found


def test_every_command_and_option_is_there() -> None:
    page = manual().replace("\\-", "-")
    parts = dict(re.findall(r'^\.SS "tlsproxy (.*?) \[OPTIONS\].*?"\n(.*?)(?=^\.S)', page, re.MULTILINE | re.DOTALL))
    found = commands(main)
    assert parts.keys() == {" ".join(words) for words in found}
    for words, command in found.items():
        for parameter in command.params:
            if isinstance(parameter, click.Option):
                assert parameter.opts[0] in parts[" ".join(words)], words


def test_text_is_not_taken_for_macros() -> None:
    assert [_text(text) for text in (".TH x", "'x", r"a\fB", '"-"')] == [
        r"\&.TH x", r"\&'x", r"a\efB", r"\(dq\-\(dq"
    ]  # fmt: skip


@pytest.mark.skipif(shutil.which("groff") is None, reason="needs groff")
def test_it_can_be_read(tmp_path: Path) -> None:
    page = tmp_path / "tlsproxy.1"
    page.write_text(manual())
    done = subprocess.run(["groff", "-man", "-Tascii", "-ww", page], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert "tlsproxy certs issue" in re.sub(".\b", "", done.stdout)  # bold is overstruck


def test_completion_knows_commands_and_files() -> None:
    for words, expected in (("tlsproxy wh", "plain,who"), ("tlsproxy check --config ./t", "file,./t")):
        environ = {
            "_TLSPROXY_COMPLETE": "bash_complete",
            "COMP_WORDS": words,
            "COMP_CWORD": str(len(words.split()) - 1),
        }
        assert CliRunner().invoke(main, [], env=environ, prog_name="tlsproxy").output.strip() == expected
