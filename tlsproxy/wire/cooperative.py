"""Work in steps: for whoever must not be kept from other things by what a message holds.

A generator yields whenever it has done a little (a millisecond or two), and returns what came of it all. A step that
yields a number needs so many bytes of memory from there on, beside what the work was given: it goes on once they may be
used.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import TypeAlias, TypeVar

T = TypeVar("T")
Steps: TypeAlias = Generator[int | None, None, T]
