"""Profiles of valgrind's tool callgrind: events of a program by function, and the difference of two profiles. Pure."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Final

INSTRUCTIONS: Final = "Ir"
SYSTEM_CALLS: Final = "sysCount"
_COMPILED: Final = ("CPyDef_", "CPyPy_")
"""mypyc's C functions: `CPyDef_MODULE___CLASS___METHOD`, and with `CPyPy_` its entry from the interpreter."""

Key = tuple[str, str, str]
"""(event, object file, function)"""


@dataclass(slots=True)
class Profile:
    """``events``: their numbers, each without those of the functions that the function calls."""

    events: dict[Key, float] = field(default_factory=dict)

    @classmethod
    def read(cls, lines: Iterable[str]) -> Profile:
        """A profile written with ``--compress-strings=no --compress-pos=no --dump-line=no``."""
        events: Counter[Key] = Counter()
        names: list[str] = []
        library = function = ""
        is_call = False
        for line in lines:
            key, _, value = line.rstrip("\n").partition("=")
            if line[:1].isdigit():
                if not is_call:  # else they are those of the function that is called, and of all that it calls
                    events.update(
                        {(n, library, function): int(v) for n, v in zip(names, line.split()[1:], strict=False)}
                    )
                is_call = False
            elif key == "calls":
                is_call = True
            elif key == "ob":
                library = PurePath(value).name
            elif key == "fn":
                function = value
            elif line.startswith("events:"):
                names = line.split()[1:]
        return cls(dict(events))

    def each(self, smaller: Profile, requests: float) -> Profile:
        """For one request, of which ``smaller`` has so many less."""
        keys = self.events.keys() | smaller.events.keys()
        return Profile({key: (self.events.get(key, 0) - smaller.events.get(key, 0)) / requests for key in keys})

    def total(self, event: str) -> float:
        return sum(number for (name, _, _), number in self.events.items() if name == event)

    def by_function(self, event: str) -> list[tuple[str, float]]:
        """The most first."""
        return self._by(event, lambda library, function: f"{function} [{library}]")

    def by_module(self, event: str) -> list[tuple[str, float]]:
        """By object file, and what mypyc made by its Python module."""
        return self._by(event, _module)

    def _by(self, event: str, label: Callable[[str, str], str]) -> list[tuple[str, float]]:
        sums: defaultdict[str, float] = defaultdict(float)
        for (name, library, function), number in self.events.items():
            if name == event:
                sums[label(library, function)] += number
        return sorted(sums.items(), key=lambda row: row[1], reverse=True)


def _module(library: str, function: str) -> str:
    prefix = next((prefix for prefix in _COMPILED if function.startswith(prefix)), None)
    return library if prefix is None else f"compiled {function.removeprefix(prefix).partition('___')[0]}"
