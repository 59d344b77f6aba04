"""A finding of a check: a path in the configuration and a text. The loader adds line and column."""

from __future__ import annotations

from dataclasses import dataclass

from tlsproxy.config.positions import Path


@dataclass(frozen=True, slots=True)
class Finding:
    """An error, unless it is a warning."""

    path: Path
    text: str
    warning: bool = False
