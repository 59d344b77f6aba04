"""Whose a point is, found in its payload alone: by no filter, and by none of the gateway's code but its types."""

from __future__ import annotations

from typing import Any

from tlsproxy.authz.access import Condition, Confinements


def is_readable(payload: dict[str, Any] | None, confinements: Confinements) -> bool:
    """Whether a tenant may read the point: it has one of the values under each key, or all that makes it public."""
    found = payload or {}
    return all(
        all(_has(found, each) for each in one.conditions)
        or bool(one.public and all(_has(found, p) for p in one.public))
        for one in confinements
    )


def is_owned(payload: dict[str, Any] | None, confinements: Confinements) -> bool:
    """Whether a tenant may change the point: it is the tenant's, and nobody else's."""
    found = payload or {}
    return all(_has(found, each) and _has_no_other(found, each) for one in confinements for each in one.conditions)


def is_changeable(payload: dict[str, Any] | None, confinements: Confinements) -> bool:
    """Whether its tenant can change it: values of one type, and of booleans only one at each place."""
    if not is_owned(payload, confinements):
        return False
    for condition in (each for one in confinements for each in one.conditions):
        found = leaves_under(payload or {}, condition.key)
        kinds = {type(value) for value in values_under(payload or {}, condition.key) if value is not None}
        if len(kinds) > 1 or (kinds == {bool} and any(isinstance(one, list) and len(one) > 1 for one in found)):
            return False
    return True


def values_under(payload: Any, path: str) -> list[Any]:
    """Values of a payload under `a`, `a.b` or `a[].b`; the members of a list one by one."""
    return [member for one in leaves_under(payload, path) for member in (one if isinstance(one, list) else [one])]


def leaves_under(payload: Any, path: str) -> list[Any]:
    """The same, with lists as they are."""
    found = [payload]
    for step in path.split("."):
        name = step.removesuffix("[]")
        found = [one[name] for one in found if isinstance(one, dict) and name in one]
        if name != step:
            found = [member for one in found if isinstance(one, list) for member in one]
    return found


def _has(payload: dict[str, Any], condition: Condition) -> bool:
    return any(_is_one_of(value, condition) for value in values_under(payload, condition.key))


def _has_no_other(payload: dict[str, Any], condition: Condition) -> bool:
    return all(value is None or _is_one_of(value, condition) for value in values_under(payload, condition.key))


def _is_one_of(value: Any, condition: Condition) -> bool:
    return any(type(value) is type(one) and value == one for one in condition.values)
