"""Payload keys that filters, formulas and payloads of REST bodies refer to, held against hidden ones.

Every condition must have one of the documented forms, so that no key is passed over: serde tries the forms of a
condition in turn, ignores members that a form does not have, and reads a struct from an array too. To it
`{"key": "a", "is_empty": {"key": "salary"}}` is a condition on `salary`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

from tlsproxy.authz.query_policy import KeyPath, KeyTree, QueryPolicy, parse_key_path
from tlsproxy.errors import BadRequest
from tlsproxy.qdrant.query_policy import check_key, hidden_refused, unknown_refused
from tlsproxy.qdrant.rest_collections import expect_object, wrong_type
from tlsproxy.wire.cooperative import Pace, Steps

_CONDITION: Final = 5
"""Units of work of a condition, an expression or a variable."""
_CLAUSES: Final = frozenset(("must", "must_not", "should", "min_should"))
_FIELD: Final = frozenset(
    {
        *("key", "match", "range", "geo_bounding_box", "geo_radius", "geo_polygon", "values_count"),
        *("is_empty", "is_null"),
    }
)
_KEYLESS: Final = frozenset(("has_id", "has_vector", "slice"))
_SEVERAL: Final = frozenset(("sum", "mult", "max", "min"))
_ONE: Final = frozenset(("neg", "abs", "sqrt", "exp", "log10", "ln", "acosh"))
_NAMED: Final = {
    "div": frozenset(("left", "right", "by_zero_default")),
    "pow": frozenset(("base", "exponent")),
    **dict.fromkeys(("exp_decay", "gauss_decay", "lin_decay"), frozenset(("x", "target", "scale", "midpoint"))),
}
"""Expressions of several named ones."""


@dataclass(frozen=True, slots=True)
class Filters:
    """Checks under one policy. All raise :class:`tlsproxy.errors.PolicyRefused` and :class:`BadRequest`."""

    policy: QueryPolicy
    pace: Pace = field(default_factory=Pace, compare=False, repr=False)

    def checking(self, value: Any, where: str) -> Steps[None]:
        """A filter; None is none."""
        if self.policy.hidden and value is not None:
            yield from self._checking(expect_object(value, where), where)

    def _checking(self, filter_: dict[str, Any], where: str) -> Steps[None]:
        """The conditions of a filter: lists, each with the path of the nested objects that it is about."""
        pending: list[tuple[list[Any], KeyPath]] = [([filter_], ())]
        while pending:
            conditions, within = pending.pop()
            for condition in conditions:
                if self.pace.is_step(_CONDITION):
                    yield None
                pending += self._below(expect_object(condition, where), within, where)

    def _below(self, condition: dict[str, Any], within: KeyPath, where: str) -> list[tuple[list[Any], KeyPath]]:
        """Checks the key of a condition, and returns the lists of conditions in it."""
        names = condition.keys()
        if names <= _CLAUSES:
            return [(_conditions(name, condition[name]), within) for name in condition]
        if "key" in names and names <= _FIELD:
            for name in ("is_empty", "is_null"):
                if not isinstance(condition.get(name), bool | None):
                    raise wrong_type(f"{where}.{name}", "true or false")
            self._check(condition["key"], within, where)
            return []
        if len(names) == 1:
            (name,) = names
            if name in _KEYLESS:
                return []
            if name in {"is_empty", "is_null"}:
                self._check(_only_key(condition[name], where), within, where)
                return []
            if name == "nested":
                nested = expect_object(condition[name], where)
                if nested.keys() != {"key", "filter"}:
                    raise unknown_refused(where)
                return [([nested["filter"]], self._check(nested["key"], within, where))]
        raise unknown_refused(where)

    def _check(self, key: Any, within: KeyPath, where: str) -> KeyPath:
        path = (*within, *_path(key, where))
        check_key(path, self.policy)
        return path

    def checking_formula(self, formula: Any, defaults: Any) -> Steps[None]:
        """A formula, and the defaults of its variables."""
        if not self.policy.hidden:
            return
        if defaults is not None:
            yield from self._defaults(expect_object(defaults, "defaults"))
        pending: list[list[Any]] = [[formula]]
        while pending:
            for expression in pending.pop():
                if self.pace.is_step(_CONDITION if isinstance(expression, dict | str) else 1):
                    yield None
                if isinstance(expression, dict):
                    yield from self._expression(expression, pending)
                elif isinstance(expression, str):
                    self._variable(expression)
                elif not isinstance(expression, int | float):
                    raise unknown_refused("formula")

    def _expression(self, expression: dict[str, Any], pending: list[list[Any]]) -> Steps[None]:
        """Checks an expression, and adds those in it to ``pending``."""
        name = next(iter(expression)) if len(expression) == 1 else ""
        value = expression.get(name)
        if name in _SEVERAL:
            if not isinstance(value, list):
                raise wrong_type(name, "an array")
            pending.append(value)
        elif name in _ONE:
            pending.append([value])
        elif name in _NAMED:
            if not expect_object(value, name).keys() <= _NAMED[name]:
                raise unknown_refused(name)
            pending.append([one for one in expect_object(value, name).values() if one is not None])
        elif name == "geo_distance":
            if expect_object(value, name).keys() != {"origin", "to"}:
                raise unknown_refused(name)
            self._check(expect_object(value, name)["to"], (), name)
        elif name == "datetime_key":
            self._check(value, (), name)
        elif name != "datetime":
            yield from self._checking(expression, "formula")

    def _defaults(self, defaults: dict[str, Any]) -> Steps[None]:
        for variable in defaults:
            if self.pace.is_step(_CONDITION):
                yield None
            self._variable(variable)

    def _variable(self, name: str) -> None:
        """A variable: `$score` and the like, or a payload key."""
        if not name.startswith("$"):
            self._check(name, (), "formula")

    def checking_payload(self, payload: Any) -> Steps[None]:
        """A payload to write: it has nothing hidden."""
        hidden = self.policy.hidden
        if not hidden or payload is None:
            return
        pending: list[tuple[list[Any], KeyTree]] = [([expect_object(payload, "payload")], hidden.tree)]
        while pending:
            values, tree = pending.pop()
            for value in values:
                if self.pace.is_step():
                    yield None
                if isinstance(value, list):
                    pending.append((value, tree))
                elif isinstance(value, dict):
                    pending += _parts(value, tree)


def _parts(value: dict[str, Any], tree: KeyTree) -> list[tuple[list[Any], KeyTree]]:
    """The members of an object that may have something hidden below them."""
    parts: list[tuple[list[Any], KeyTree]] = []
    for key, below in tree.items():
        if key in value:
            if below is None:
                raise hidden_refused(key)
            parts.append(([value[key]], below))
    return parts


def _path(value: Any, where: str) -> KeyPath:
    if not isinstance(value, str):
        raise wrong_type(where, "a payload path")
    try:
        return parse_key_path(value)
    except ValueError:
        raise BadRequest(f"Format error in JSON body: {where} has a key that is no payload path") from None


def _conditions(name: str, clause: Any) -> list[Any]:
    """The conditions of a clause; a single one may come without an array."""
    if clause is None:
        return []
    if name == "min_should":
        if not expect_object(clause, name).keys() <= {"conditions", "min_count"}:
            raise unknown_refused(name)
        clause = clause.get("conditions")
        if not isinstance(clause, list):
            raise wrong_type(name, "an object with conditions")
    return clause if isinstance(clause, list) else [clause]


def _only_key(value: Any, where: str) -> Any:
    if expect_object(value, where).keys() != {"key"}:
        raise unknown_refused(where)
    return value["key"]
