"""Work in steps: for whoever must not be kept from other things by what a message holds.

A generator yields whenever it has done a little (a millisecond or two), and returns what came of it all.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import TypeAlias, TypeVar

T = TypeVar("T")
Steps: TypeAlias = Generator[None, None, T]
