"""Problems of a configuration, with file, line and column."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass

from tlsproxy.errors import TlsproxyError


@dataclass(frozen=True, slots=True)
class Problem:
    """``line`` and ``column`` count from 1; with ``line`` 0, ``file`` is an environment variable."""

    file: str
    line: int
    column: int
    key: str
    text: str

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}:{self.column}" if self.line else self.file
        return " ".join(part for part in (place, f"{self.key}:" if self.key else "", self.text) if part)


class ConfigError(TlsproxyError):
    """All problems of a configuration; ``str(error)`` has one on each line."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(map(str, self.problems)))


def nearest(given: str, known: Iterable[str]) -> str:
    """The most similar known word; "" if none is similar."""
    return next(iter(difflib.get_close_matches(given, sorted(known), n=1)), "")


def did_you_mean(given: str, known: Iterable[str]) -> str:
    """A hint for the end of a text: ` (did you mean 'roles'?)`; "" if no known word is similar."""
    near = nearest(given, known)
    return f" (did you mean {near!r}?)" if near else ""
