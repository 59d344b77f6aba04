"""The manual page, made of the commands' own help: `python -m tlsproxy.cli.man > tlsproxy.1`."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Final

import click

from tlsproxy import __version__
from tlsproxy.cli import main
from tlsproxy.cli.common import CONFIG_VARIABLE, DEFAULT_CONFIG

_STATUS: Final = (
    ("0", "Done; the answer is yes."),
    ("1", "The answer is no; or it cannot be done now, and is worth trying again."),
    ("2", "An error in arguments, configuration, certificates or keys, explained on standard error."),
)


def manual() -> str:
    """The page, in the macros of man(7)."""
    return "\n".join(_lines()) + "\n"


def _lines() -> Iterator[str]:
    yield f'.TH TLSPROXY 1 "" "tlsproxy {_text(__version__)}" "User Commands"'
    yield ".SH NAME"
    yield f"tlsproxy \\- {_text((main.help or '').rstrip('.'))}"
    yield ".SH SYNOPSIS"
    yield "\\fBtlsproxy\\fR \\fICOMMAND\\fR [\\fIOPTIONS\\fR]"
    yield ".SH COMMANDS"
    yield from _commands(main, click.Context(main, info_name="tlsproxy"))
    yield ".SH EXIT STATUS"
    for status, meaning in _STATUS:
        yield from _tagged(f"\\fB{status}\\fR", meaning)
    yield ".SH ENVIRONMENT"
    yield from _tagged(f"\\fB{CONFIG_VARIABLE}\\fR", "The configuration file of commands without --config.")
    yield from _tagged("\\fBQDRANT__SECTION__KEY\\fR", "Overrides a key of the configuration, as in Qdrant.")
    yield ".SH FILES"
    yield from _tagged(f"\\fI{_text(str(DEFAULT_CONFIG))}\\fR", "The configuration file without either.")


def _commands(group: click.Group, context: click.Context) -> Iterator[str]:
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        if command is None:
            continue
        inner = click.Context(command, info_name=name, parent=context)
        if isinstance(command, click.Group):
            yield from _commands(command, inner)
            continue
        usage = " ".join(command.collect_usage_pieces(inner))
        yield f'.SS "{_text(inner.command_path)} {_text(usage)}"'
        for number, paragraph in enumerate(inspect.cleandoc(command.help or "").split("\n\n")):
            if number:
                yield ".PP"
            yield _text(" ".join(paragraph.split()))
        for parameter in command.get_params(inner):
            record = parameter.get_help_record(inner)
            if record is not None and record[0] != "--help":
                yield from _tagged(f"\\fB{_text(record[0])}\\fR", record[1])


def _tagged(tag: str, text: str) -> Iterator[str]:
    yield ".TP"
    yield tag
    yield _text(text)


def _text(text: str) -> str:
    """Text without meaning to roff: no escapes, no macros, and dashes that can be copied."""
    escaped = text.replace("\\", "\\e").replace("-", "\\-").replace('"', "\\(dq")
    return f"\\&{escaped}" if escaped.startswith((".", "'")) else escaped


if __name__ == "__main__":
    click.echo(manual(), nl=False)
