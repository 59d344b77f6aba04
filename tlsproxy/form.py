"""Form of the program: the modules that run for requests compiled by mypyc, or all of it plain Python."""

from __future__ import annotations

from typing import Literal


def form() -> Literal["compiled", "plain"]:
    """Form of this module, which is compiled with the others."""
    return "plain" if __file__.endswith(".py") else "compiled"
