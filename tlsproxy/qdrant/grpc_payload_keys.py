"""The payload keys that a gRPC message names, its flag `exact` and its limits within, checked under a query policy.

Filters, orders, formulas, selectors of points and parameters of a search are read whole, and not rewritten.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Final

from tlsproxy.authz.query_policy import KeyPath, KeyTree, QueryPolicy, parse_key_path
from tlsproxy.qdrant.grpc_rewrite import Reading
from tlsproxy.qdrant.query_policy import check_key, check_limit, exact_refused, hidden_refused
from tlsproxy.wire.cooperative import Steps
from tlsproxy.wire.protobuf import Field, ProtobufError

_KEY: Final = "key"
_VARIABLE: Final = "variable"
_EXACT: Final = "exact"
_LIMIT: Final = "candidates_limit"
_RESERVED: Final = b"$"
"""Begins the variables of a formula that are no payload paths, such as `$score`."""

_EXPRESSION: Final = dict.fromkeys((10, 11, 12, 14, 15, 16, 20), "Expression")
_DECAYS: Final = dict.fromkeys((17, 18, 19), "DecayParamsExpression")
LOOKS: Final[Mapping[str, Mapping[int, str]]] = {
    "Filter": {1: "Condition", 2: "Condition", 3: "Condition", 4: "MinShould"},
    "MinShould": {1: "Condition"},
    "Condition": {
        1: "FieldCondition",
        2: "IsEmptyCondition",
        4: "Filter",
        5: "IsNullCondition",
        6: "NestedCondition",
    },
    "FieldCondition": {1: _KEY},
    "IsEmptyCondition": {1: _KEY},
    "IsNullCondition": {1: _KEY},
    "NestedCondition": {2: "Filter"},
    "PointsSelector": {2: "Filter"},
    "SearchParams": {2: _EXACT, 6: "IdfParams"},
    "IdfParams": {1: "Filter"},
    "OrderBy": {1: _KEY},
    "Query": {5: "OrderBy", 8: "Formula", 9: "NearestInputWithMmr"},
    "NearestInputWithMmr": {2: "Mmr"},
    "Mmr": {3: _LIMIT},
    "Formula": {1: "Expression", 2: "Formula.DefaultsEntry"},
    "Formula.DefaultsEntry": {1: _VARIABLE},
    "Expression": {
        2: _VARIABLE,
        3: "Condition",
        4: "GeoDistance",
        6: _KEY,
        7: "MultExpression",
        8: "SumExpression",
        9: "DivExpression",
        13: "PowExpression",
        21: "MaxExpression",
        22: "MinExpression",
        **_EXPRESSION,
        **_DECAYS,
    },
    "GeoDistance": {2: _KEY},
    "MultExpression": {1: "Expression"},
    "SumExpression": {1: "Expression"},
    "DivExpression": {1: "Expression", 2: "Expression"},
    "PowExpression": {1: "Expression", 2: "Expression"},
    "DecayParamsExpression": {1: "Expression", 2: "Expression"},
    "MaxExpression": {1: "Expression"},
    "MinExpression": {1: "Expression"},
}
"""Of each message, the fields that name a payload key, say `exact` or are a limit, and the messages in which such may
stand.
"""


_ALWAYS: Final = frozenset(("Query", "SearchParams"))
"""Messages with more than keys."""


def check_exact(one: Field, policy: QueryPolicy) -> None:
    if one.integer() and policy.forbids_exact:
        raise exact_refused()


def text_of(content: bytes) -> str:
    try:
        return content.decode()
    except UnicodeDecodeError:
        raise ProtobufError("a key is not UTF-8") from None


def key_path(content: bytes) -> KeyPath:
    text = text_of(content)
    try:
        return parse_key_path(text)
    except ValueError:
        raise ProtobufError("a key is no payload path") from None


def check_path(content: bytes, above: KeyPath, policy: QueryPolicy) -> None:
    if policy.hidden:
        check_key((*above, *key_path(content)), policy)


def _from_above(message: str, found: Iterator[Field]) -> Iterable[Field]:
    """The fields of a message in their order, but for a condition's key (1), which is above its filter (2)."""
    return sorted(found, key=lambda one: one.number) if message == "NestedCondition" else found


def checking(message: str, content: bytes, policy: QueryPolicy, reading: Reading) -> Steps[None]:
    """Checks a message and those within. Without recursion: filters nest as deep as clients like.

    Raises :class:`PolicyRefused`, :class:`ProtobufError`.
    """
    if not (policy.hidden or message in _ALWAYS):
        return
    pending: list[tuple[str, bytes, KeyPath]] = [(message, content, ())]
    while pending:
        name, content, above = pending.pop()
        looks = LOOKS[name]
        for one in _from_above(name, reading.fields_of(name, content)):
            if reading.is_step():
                yield reading.memory
            look = looks.get(one.number)
            if name == "NestedCondition" and one.number == 1 and policy.hidden:
                above = (*above, *key_path(one.content()))
                check_key(above, policy)
            elif look == _KEY or (look == _VARIABLE and not one.content().startswith(_RESERVED)):
                check_path(one.content(), above, policy)
            elif look == _EXACT:
                check_exact(one, policy)
            elif look == _LIMIT:
                check_limit(one.integer(), policy.max_limit, _LIMIT)
            elif look is not None and look in LOOKS:
                pending.append((look, one.content(), above))


_STRUCT: Final = 6
_LIST: Final = 7
"""Fields of Value."""


def checking_payload(entry: bytes, policy: QueryPolicy, reading: Reading) -> Steps[None]:
    """Checks an entry of the payload of a point to write: it has nothing hidden.

    Raises :class:`PolicyRefused`, :class:`ProtobufError`.
    """
    pending = _below(entry, policy.hidden.tree, reading)
    while pending:
        name, content, tree = pending.pop()
        for one in reading.fields_of(name, content):
            if reading.is_step():
                yield reading.memory
            if name == "Struct":
                pending += _below(one.content(), tree, reading)
            elif name == "ListValue":
                pending.append(("Value", one.content(), tree))
            elif one.number in {_STRUCT, _LIST}:
                pending.append(("Struct" if one.number == _STRUCT else "ListValue", one.content(), tree))


def _below(entry: bytes, tree: KeyTree, reading: Reading) -> list[tuple[str, bytes, KeyTree]]:
    """Checks the key of an entry; its value, where something below the key is hidden."""
    key, value = entry_of(entry, reading)
    below = tree.get(key, {})
    if below is None:
        raise hidden_refused(key)
    return [("Value", value, below)] if below else []


def entry_of(content: bytes, reading: Reading) -> tuple[str, bytes]:
    """Key and value of an entry of a map; an absent one is empty."""
    found = {one.number: one.content() for one in reading.fields_of("Struct.FieldsEntry", content)}
    return text_of(found.get(1, b"")), found.get(2, b"")
