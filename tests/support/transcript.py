"""Transcripts of our commands as golden files: what differs from run to run has a placeholder.

`make golden` writes the files anew, by the environment variable TLSPROXY_GOLDEN.
"""

from __future__ import annotations

import difflib
import os
import re
from pathlib import Path
from typing import Final

from click.testing import CliRunner

from tlsproxy.cli import main

GOLDEN: Final = Path(__file__).parents[1] / "data" / "golden"
WRITE: Final = "TLSPROXY_GOLDEN"
_PLACEHOLDERS: Final = tuple(
    (re.compile(pattern), text)
    for pattern, text in (
        (r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\dZ?", "<time>"),
        (r"\b\d\d:\d\d:\d\d\b", "<time>"),
        (r"\b(?:\d+ (?:second|minute|hour|day|week|month|year)s?|a moment)\b(?= left| ago|  |$)", "<duration>"),
        (r"\b\d+ %", "<share> %"),
        (r"\b(?:[0-9a-f]{64}|(?:[0-9A-F]{2}:){31}[0-9A-F]{2})\b", "<sha256>"),
        (r"\b[0-9a-f]{38,40}\b", "<serial>"),
        (r"(127\.0\.0\.1|localhost):\d{5}\b", r"\1:<port>"),
        (r"\bgeneration \d+", "generation <number>"),
        (r"^tlsproxy \S+", "tlsproxy <version>"),
        (r"last reload (?:ok|unchanged)", "last reload <ok or unchanged>"),
        (r"^(\s+)\d+(?= rest 127|  CN=)", r"\1<number>"),
        (r"^\d+ connections, .*", "<counts of connections and audit lines>"),
        (r"[█░#]{16}", "<bar>"),
        (r" \((?:Name or service not known|Temporary failure in name resolution)\)", " (<error of the resolver>)"),
        (r"^ {5,}", ""),
        (r"(?<=\S) {2,}", "  "),
    )
)


_EARLIER: Final = re.compile(
    r"last configuration change, at <time> UTC:|\w+  .*  \d+  \d+  \d+  \d+\.\d"
    r"|\s*warning: .*: (?:other_authority: .* predecessor of CN=Public Intermediate|older_certificate: ).*"
)
"""Lines that depend on the set-ups before, and are left out: whether there was a change, decisions, what was mended."""


class Transcript:
    """Commands and their output, in the directory of a configuration, which reads `/etc/tlsproxy`.

    Lines that ``usual`` has for a command, from a sound set-up, are left out: `…`.
    """

    def __init__(self, title: str, directory: Path, usual: dict[str, frozenset[str]]) -> None:
        self._directory = directory
        self._usual = usual
        self._kept: tuple[str, ...] = ("",)
        self.lines = [title]

    def keep(self, *beginnings: str) -> None:
        """Leave out all lines that begin otherwise."""
        self._kept = beginnings

    def run(self, command: str) -> None:
        """``command`` as it is typed, without `tlsproxy`."""
        usual = self._usual.get(kind_of(command), frozenset())
        code, output = output_of(command, self._directory)
        self.lines += ["", f"$ tlsproxy {placeheld(command, self._directory)}"]
        for line in output:
            if line not in usual and line.startswith(self._kept):
                self.lines.append(line)
            elif self.lines[-1] != "…":
                self.lines.append("…")
        if code:
            self.lines.append(f"[exit status {code}]")

    def compare(self, name: str) -> None:
        """Fail where the golden file has another text, unless it is to be written."""
        path, text = GOLDEN / f"{name}.txt", "\n".join([*self.lines, ""])
        if os.environ.get(WRITE):
            path.write_text(text)
        known = path.read_text() if path.exists() else ""
        diff = difflib.unified_diff(known.splitlines(), text.splitlines(), str(path), "now", lineterm="")
        assert known == text, "\n".join([*diff, "`make golden` writes it anew: read it as an operator would"])


def kind_of(command: str) -> str:
    """`check`, `reload --dry-run`: the command, but for options that ask for more."""
    words = command.split()
    return " ".join([words[0], *(word for word in words if word == "--dry-run")])


def output_of(command: str, directory: Path) -> tuple[int, list[str]]:
    """(exit status, lines of both outputs, with placeholders)."""
    done = CliRunner().invoke(main, command.split())
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    lines = (placeheld(line, directory) for line in done.output.splitlines())
    return done.exit_code, [line for line in lines if not _EARLIER.fullmatch(line)]


def placeheld(line: str, directory: Path) -> str:
    text = line.replace(str(directory), "/etc/tlsproxy").rstrip()
    for pattern, placeholder in _PLACEHOLDERS:
        text = pattern.sub(placeholder, text)
    return text
