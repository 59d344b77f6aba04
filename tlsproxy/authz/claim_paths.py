"""Claims by path, in rules and in filters of roles: `groups`, `realm_access.roles`, `https://acme.example/org`.

A path is the exact name of a claim. Else it is split at a dot, the longest name first: `kubernetes.io.namespace` is the
member `namespace` of the claim `kubernetes.io`. The longest name that is there decides, no shorter one is tried. Only
objects have members: a list has values.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final, TypeAlias

Scalar: TypeAlias = str | int | bool
"""A value of a claim that can be compared: no fraction, null, object, list in a list, or empty text."""

LONGEST_PATH: Final = 256


def claim_at(claims: Mapping[str, Any], path: str) -> Any:
    """The claim at a path; None where it is absent."""
    if path in claims:
        return claims[path]
    dot = path.rfind(".")
    while dot >= 0:
        if path[:dot] in claims:
            inner = claims[path[:dot]]
            return claim_at(inner, path[dot + 1 :]) if isinstance(inner, dict) else None
        dot = path.rfind(".", 0, dot)
    return None


def values_at(claims: Mapping[str, Any], path: str) -> tuple[Scalar, ...]:
    """The values of a claim, each once: of a list its members, else the claim itself."""
    claim = claim_at(claims, path)
    members = claim if isinstance(claim, list) else [claim]
    values = (value for value in members if isinstance(value, str | int) and value != "")
    return tuple({(type(value), value): value for value in values}.values())  # True == 1


def literal(value: Scalar) -> str:
    """A number or boolean as JSON has it, so that `true`, `1` and the text "1" are three values; "" for a text."""
    return "" if isinstance(value, str) else json.dumps(value)
