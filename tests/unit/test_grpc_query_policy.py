"""Messages and answers under query policies, against slow twins that do the same to parsed messages."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from hypothesis import given
from hypothesis import strategies as st
from qdrant_client import grpc as pb
from qdrant_client.grpc import collections_service_pb2, points_service_pb2
from support import qdrant_messages as qdrant
from support.rows import rows

from tlsproxy.authz.access import ALLOWED, NO_NAMES, UNREAD, GlobalMode, Grant, Grants, Rights, Scope
from tlsproxy.authz.admission import Admission
from tlsproxy.authz.identity import Identity
from tlsproxy.authz.query_policy import NO_POLICY, KeyPath, QueryPolicy, hidden_keys, parse_key_path, spelled
from tlsproxy.authz.roles import Principal
from tlsproxy.errors import BadRequest, PolicyRefused
from tlsproxy.qdrant.answer_statistics import AnswerReducer
from tlsproxy.qdrant.composed_reducer import ComposedReducer, composed
from tlsproxy.qdrant.grpc_answers import ANSWERS, COPIES, MAX_NESTING, PARTS, AnswerPart, PointStripper, stripper_of
from tlsproxy.qdrant.grpc_answers import STEP as ANSWER_STEP
from tlsproxy.qdrant.grpc_decision import decide_call, decide_message, message_under_policy, operation_of
from tlsproxy.qdrant.grpc_payload_keys import LOOKS, checking_payload
from tlsproxy.qdrant.grpc_query_policy import _OPERATIONS, _PREFETCH, ROWS, Row, policy_of_message, under_policy
from tlsproxy.qdrant.grpc_rewrite import STEP, Reading
from tlsproxy.qdrant.grpc_schema import PARTS as SHAPE_PARTS
from tlsproxy.qdrant.grpc_schema import SHAPES
from tlsproxy.qdrant.operations import GRPC, READ, Operation
from tlsproxy.qdrant.query_policy import ROWS as TREATMENTS
from tlsproxy.qdrant.query_policy import Part, Treatment
from tlsproxy.qdrant.rest_decision import UNDER_POLICY
from tlsproxy.wire.cooperative import at_once
from tlsproxy.wire.protobuf import MAX_DEPTH, ProtobufError, delimited, integer

SALARY = QueryPolicy(hidden=hidden_keys([("salary",), ("contact", "email")]))
PART_POLICIES = {
    Part.LIMIT: QueryPolicy(max_limit=5),
    Part.OFFSET: QueryPolicy(max_offset=5),
    Part.PREFETCH: QueryPolicy(max_prefetch=5),
    Part.EXACT: QueryPolicy(forbids_exact=True),
    Part.TIMEOUT: QueryPolicy(timeout=5),
    Part.VECTORS: QueryPolicy(hides_vectors=True),
    Part.PAYLOAD: SALARY,
}
OUTPUTS: dict[str, Descriptor] = {
    f"/{service.full_name}/{method.name}": method.output_type
    for module in (collections_service_pb2, points_service_pb2)
    for service in module.DESCRIPTOR.services_by_name.values()
    for method in service.methods
}
HIDDEN = st.lists(st.sampled_from([("tenant",), ("a",), ("a", "b"), ("acme", "x"), ("ü",)]), max_size=2)
BOUND = st.none() | st.integers(1, 40)
POLICIES = st.builds(
    QueryPolicy,
    max_limit=BOUND,
    max_offset=BOUND,
    max_prefetch=st.none() | st.integers(0, 3),
    forbids_exact=st.booleans(),
    timeout=BOUND,
    hides_vectors=st.booleans(),
    hidden=HIDDEN.map(hidden_keys),
)


def method(name: str) -> Operation:
    found = operation_of(f"/qdrant.{name}")
    assert found is not None
    return found


def rewritten(name: str, message: Any, policy: QueryPolicy) -> Any:
    path = f"/qdrant.Points/{name}"
    operation = method(f"Points/{name}")
    present = policy_of_message(policy, operation)
    made = at_once(message_under_policy(operation, message.SerializeToString(), present))
    return qdrant.parse(qdrant.REQUESTS[path], made)


# The tables


@pytest.mark.parametrize("part", Part)
def test_every_method_is_read_and_stripped_as_its_treatment_says(part: Part) -> None:
    for operation in GRPC:
        treated = TREATMENTS[operation.name][part]
        assert treated is not Treatment.READ or operation.path in ROWS
        assert treated is not Treatment.STRIPPED or operation.path in ANSWERS
        assert operation.path not in ROWS or max(TREATMENTS[operation.name].values()) is not Treatment.FREE


def test_no_other_method_has_a_row() -> None:
    treated = {row.path: max(TREATMENTS[row.name][part] for part in Part) for row in GRPC}
    assert {path for path, one in treated.items() if one in {Treatment.READ, Treatment.STRIPPED}} == {
        *ROWS,
        "/qdrant.Collections/Get",
    }


RIGHTS = [Rights(GlobalMode.M), Rights(GlobalMode.R), Rights(grants=Grants(Grant("docs", write=True, extras=True)))]


@rows("rights", RIGHTS, ids=str)
@rows("part", PART_POLICIES)
def test_a_call_under_a_part_of_a_policy(part: Part, rights: Rights) -> None:
    """It is refused, or its message read, or its answer stripped, as the table says, and never more allowed."""
    policy = PART_POLICIES[part]
    for operation in GRPC:
        free, bounded = decide_call(held(rights), operation), decide_call(held(rights, policy), operation)
        treated = TREATMENTS[operation.name][part]
        if treated is Treatment.FREE or not (free.decision.allowed or free.decision is UNREAD):
            assert bounded == free
        elif treated is Treatment.REFUSED:
            if bounded.decision is UNREAD:  # by its collection first
                admission = held(rights, policy)
                refused, elsewhere = (
                    decide_message(admission, operation, name, NO_NAMES, confined=False) for name in ("docs", "other")
                )
                assert (refused == UNDER_POLICY) is bool(operation.requirement.scope is Scope.COLLECTION)
                assert elsewhere.reason != UNDER_POLICY.reason
            else:
                assert bounded.decision == UNDER_POLICY
        else:
            assert bounded.decision is (UNREAD if operation.path in ROWS else free.decision)
            stripper = PointStripper(operation, policy) if treated is Treatment.STRIPPED else None
            assert bounded.listing == (stripper or free.listing)


def test_a_method_without_a_row_is_refused_under_a_policy() -> None:
    new = Operation("count", "POST", "/qdrant.Points/CountMore", READ)
    points = Operation("scroll", "POST", "/qdrant.Points/ScrollMore", READ)
    for operation, policy in ((new, QueryPolicy(timeout=1)), (points, SALARY)):
        assert decide_call(held(RIGHTS[0]), operation).decision is ALLOWED
        assert decide_call(held(RIGHTS[0], policy), operation).decision == UNDER_POLICY
        with pytest.raises(PolicyRefused):
            at_once(under_policy(operation, b"", policy))


def held(rights: Rights, policy: QueryPolicy = NO_POLICY) -> Admission:
    identity = Identity(subject="CN=a", issuer="CN=ca", serial="1", sha256="00", not_after=2e9)
    return Admission(Principal(identity, "rule", "role", replace(rights, queries=policy), None), None)


def described(name: str) -> Descriptor:
    first, *within = name.split(".")
    descriptor: Descriptor = getattr(pb, first).DESCRIPTOR
    for one in within:
        descriptor = descriptor.nested_types_by_name[one]
    return descriptor


NUMBERS = {"limit": "limit", "sample": "limit", "group_size": "each", "offset": "offset", "timeout": "timeout"}
NUMBERS |= {"exact": "exact", "with_payload": "payload", "with_vectors": "vectors", "ids": "ids", "using": "using"}
KEYS = {"key", "keys", "group_by", "field_name"}
INTO = {"PrefetchQuery", "SearchPoints", "RecommendPoints", "DiscoverPoints", "QueryPoints", "WithLookup"}
INTO |= {"PointStruct", "PointsUpdateOperation"}
LOOKED = {"Filter", "Query", "SearchParams", "PointsSelector", "OrderBy"}


EACH = {row.message: row for row in (*ROWS.values(), *_OPERATIONS.values(), _PREFETCH)}


@rows("row", EACH.values(), ids=EACH)
def test_a_row_has_every_field_of_its_message_that_a_policy_concerns(row: Row) -> None:
    """By the fields' names. The time of a change is not bounded, nor is the point that a page of a scroll begins at."""
    fields = {field.name: field for field in described(row.message).fields}
    reads = "read_consistency" in fields
    for name, field in fields.items():
        kind = field.message_type.name if field.message_type is not None else ""
        if name in NUMBERS and not kind and (reads or name != "timeout") and ("query" in fields or name != "using"):
            member = row.each if name == "limit" and "sample" in fields else getattr(row, NUMBERS[name])
            assert field.number == (member if isinstance(member, int) else member.field), name
        elif name in {"ids", "with_payload", "with_vectors"}:
            assert field.number == getattr(row, NUMBERS[name])
        elif name in KEYS:
            assert field.number == row.below if "payload" in fields else field.number in row.keys, name
        elif name == "payload":
            assert field.number == row.entries
        elif kind in INTO:
            assert field.number in row.within, name
        elif kind in LOOKED:
            assert row.checked[field.number] == kind


def naming(descriptor: Descriptor) -> set[int]:
    """Fields that are payload keys by their name, but not those of values, models' options or vectors."""
    names = {"key", "variable", "datetime_key", "to"}
    return {one.number for one in descriptor.fields if one.name in names and one.type == FieldDescriptor.TYPE_STRING}


def test_every_message_with_a_payload_key_is_looked_at() -> None:
    """From each message that is looked at, down every field, but to what holds values alone."""
    values = {"Value", "Document", "Image", "InferenceObject", "VectorInput", "Match", "StartFrom"}
    for name, looks in LOOKS.items():
        for field in described(name).fields:
            nested = field.message_type
            if nested is None or nested.name in values:
                continue
            below = nested.full_name.removeprefix("qdrant.")
            deep = {nested.full_name: nested}
            left = [nested]
            while left:
                for inner in left.pop().fields:
                    one = inner.message_type
                    if one is not None and one.name not in values and one.full_name not in deep:
                        deep[one.full_name] = one
                        left.append(one)
            if any(naming(one) for one in deep.values()):
                assert looks[field.number] == below, (name, field.name)
        keys = {number for number, look in looks.items() if look in {"key", "variable"}}
        assert keys == naming(described(name)) - ({1} if name == "NestedCondition" else set())


@pytest.mark.parametrize("name", PARTS)
def test_a_part_of_an_answer_is_what_qdrant_describes(name: str) -> None:
    part = PARTS[name]
    fields = {one.number: one for one in described(name).fields}
    named = {*part.kept, *part.within, part.payload, part.vectors, part.schema} - {0}
    assert fields.keys() <= named
    assert named - fields.keys() <= {3}  # vectors_count, gone since 1.16
    for number, one in fields.items():
        assert (number == part.payload) == (one.name == "payload")
        assert (number == part.vectors) == (one.name == "vectors")
        assert (number == part.schema) == (one.name == "payload_schema")
        nested = one.message_type
        assert number not in part.within or nested.name == part.within[number]
        assert number in part.within or nested is None or nested.name not in PARTS


@rows("path", ANSWERS)
def test_an_answer_is_what_qdrant_describes(path: str) -> None:
    fields = {one.number: one for one in OUTPUTS[path].fields}
    answer: AnswerPart = ANSWERS[path]
    assert {fields[number].name for number in fields.keys() - answer.kept - answer.within.keys()} <= {"usage"}
    assert answer.kept <= fields.keys()
    assert {number: fields[number].message_type.name for number in answer.within} == dict(answer.within)


# Messages


DEFAULTS = {"limit": 10, "sample": 10, "group_size": 3}


def twin(message: Any, policy: QueryPolicy) -> None:
    """Changes a message and those within. Raises PolicyRefused, without a text."""
    name, fields = message.DESCRIPTOR.name, message.DESCRIPTOR.fields_by_name
    for path in named_paths(message):
        if policy.hidden and (path is None or policy.hidden.touch(path)):
            raise PolicyRefused("")
    refuse(any(policy.hidden.cover(path) for path in written_paths(message)))
    twin_bounds(message, fields, policy)
    if "with_payload" in fields and policy.hidden:
        twin_selector(message, policy, shows=name in {"ScrollPoints", "WithLookup"})
    if "with_vectors" in fields and policy.hides_vectors:
        message.with_vectors.CopyFrom(pb.WithVectorsSelector(enable=False))
    for one in requests_in(message):
        twin(one, policy)
    if name in {"QueryPoints", "QueryPointGroups"} and policy.max_prefetch is not None:
        refuse(count_prefetches(message) > policy.max_prefetch)


def refuse(wrong: bool) -> None:  # noqa: FBT001 - a condition
    if wrong:
        raise PolicyRefused("")


def requests_in(message: Any) -> Iterator[Any]:
    names = ("prefetch", "search_points", "recommend_points", "discover_points", "query_points")
    for name in names:
        yield from getattr(message, name, ())
    if "with_lookup" in message.DESCRIPTOR.fields_by_name and message.HasField("with_lookup"):
        yield message.with_lookup


def count_prefetches(message: Any) -> int:
    return sum(1 + count_prefetches(one) for one in message.prefetch)


def twin_bounds(message: Any, fields: Any, policy: QueryPolicy) -> None:
    twin_exact(message, fields, policy)
    if "ids" in fields and policy.max_limit is not None:
        refuse(len(message.ids) > policy.max_limit)
    if "limit" in fields and policy.max_limit is not None:
        twin_limit(message, fields, policy.max_limit)
        twin_mmr(message, fields, policy.max_limit)
    if "offset" in fields and fields["offset"].message_type is None and policy.max_offset is not None:
        refuse(message.offset > policy.max_offset)
    reads = {"read_consistency"} & set(fields)
    if "timeout" in fields and reads and policy.timeout is not None:
        if not message.HasField("timeout"):
            message.timeout = policy.timeout
        refuse(message.timeout > policy.timeout or not message.timeout)


def twin_exact(message: Any, fields: Any, policy: QueryPolicy) -> None:
    if not policy.forbids_exact:
        return
    if "exact" in fields:
        refuse(message.exact)
        if message.DESCRIPTOR.name == "CountPoints":
            message.exact = False
    if "params" in fields:
        refuse(message.params.exact)


def twin_mmr(message: Any, fields: Any, bound: int) -> None:
    if "query" in fields and message.query.WhichOneof("variant") == "nearest_with_mmr":
        refuse(message.query.nearest_with_mmr.mmr.candidates_limit > bound)


def twin_limit(message: Any, fields: Any, bound: int) -> None:
    first = "sample" if "sample" in fields else "limit"
    second = "limit" if first == "sample" else "group_size"
    default = {first: 10, second: 3}
    optional = {name for name in default if name in fields and fields[name].has_presence}
    given = {name: getattr(message, name) for name in default if name in fields}
    absent = [name for name in (second, first) if name in optional and not message.HasField(name)]
    for name in absent:
        others = 1
        for other in (first, second):
            if other != name and other in given and other not in absent[absent.index(name) :]:
                others *= max(1, given[other])
        given[name] = max((n for n in range(1, default[name] + 1) if n * others <= bound), default=1)
        setattr(message, name, given[name])
    refuse(given[first] * max(1, given.get(second, 1)) > bound)


def twin_selector(message: Any, policy: QueryPolicy, *, shows: bool) -> None:
    paths = [spelled(path) for path in sorted(policy.hidden.paths)]
    chosen = message.with_payload.WhichOneof("selector_options") if message.HasField("with_payload") else "absent"
    if chosen == "exclude" or (chosen == "absent" and shows) or (chosen == "enable" and message.with_payload.enable):
        message.with_payload.exclude.fields.extend(paths)
    elif chosen == "include" and message.with_payload.include.fields:
        parsed = [(text, path_of(text)) for text in message.with_payload.include.fields]
        refuse(any(path is None for _, path in parsed))
        kept = [text for text, path in parsed if path is not None and not policy.hidden.cover(path)]
        message.with_payload.include.fields[:] = kept


def path_of(text: str, above: KeyPath = ()) -> KeyPath | None:
    try:
        return (*above, *parse_key_path(text))
    except ValueError:
        return None


def named_paths(message: Any, above: KeyPath = ()) -> Iterator[KeyPath | None]:
    """Payload paths that a message names, but for requests within; None for one that cannot be read."""
    name = message.DESCRIPTOR.name
    if name == "NestedCondition":
        prefix = path_of(message.key, above) if has(message, "key") else above
        if has(message, "key"):
            yield prefix
        yield from named_paths(message.filter, prefix or ())
        return
    for field, value in message.ListFields():
        if field.message_type is not None and field.message_type.name in {"PointStruct", *NO_REQUESTS}:
            for one in value if field.is_repeated else [value]:
                yield from named_paths(one, above)
        elif field.name == "payload" and name != "PointStruct":
            below = path_of(message.key) if message.HasField("key") else ()
            yield from ((*(below or ()), key) for key in value)
        else:
            yield from (path_of(one, above) for one in keys_in(message, field.name, value))
    if name in {"SetPayloadPoints", "SetPayload"} and message.HasField("key"):
        yield path_of(message.key)
    if name in {"QueryPoints", "QueryPointGroups", "PrefetchQuery"} and message.query.WhichOneof("variant") == "text":
        yield path_of(message.using or "none")


def written_paths(message: Any) -> Iterator[KeyPath]:
    """Paths to all that the payloads of points to write have."""
    for operation in getattr(message, "operations", ()):
        yield from written_paths(operation.upsert)
    if message.DESCRIPTOR.name in {"UpsertPoints", "PointStructList"}:
        for point in message.points:
            yield from paths_in(point.payload, ())


def paths_in(payload: Any, above: KeyPath) -> Iterator[KeyPath]:
    for key, value in payload.items():
        yield (*above, key)
        pending = [value]
        while pending:
            one = pending.pop()
            pending += one.list_value.values
            yield from paths_in(one.struct_value.fields, (*above, key))


def keys_in(message: Any, name: str, value: Any) -> list[str]:
    if name in {"group_by", "field_name", "datetime_key", "to"}:
        return [value]
    if name == "key":
        return [] if "payload" in list(message.DESCRIPTOR.fields_by_name) else [value]
    if name in {"variable", "defaults"}:
        return [one for one in ([value] if name == "variable" else value) if not one.startswith("$")]
    return list(value) if name == "keys" else []


NO_REQUESTS = {name for look in LOOKS.values() for name in look.values()} | LOOKED
NO_REQUESTS |= {"PointsUpdateOperation", "PointStructList", "SetPayload", "DeletePayload", "UpdateVectors"}
NO_REQUESTS |= {"DeleteVectors", "DeletePoints"}


def has(message: Any, name: str) -> bool:
    return any(field.name == name for field, _ in message.ListFields())


ASKED = frozenset(
    {
        *("filter", "query", "params", "with_payload", "with_vectors", "limit", "group_size", "timeout", "prefetch"),
        *("with_lookup", "order_by", "offset", "must", "field", "key", "payload", "operations", "exact", "formula"),
        *(
            "points",
            "query_points",
            "include",
            "expression",
            "nested",
            "keys",
            "upsert",
            "set_payload",
            "text",
            "using",
        ),
    }
)
SMALL = st.integers(0, 12)


@st.composite
def asked(draw: st.DrawFn) -> tuple[str, Any]:
    path = draw(st.sampled_from(sorted(ROWS)))
    message = draw(qdrant.messages(qdrant.REQUESTS[path], ASKED))
    for one in (message, *requests_in(message)):
        for name in ("limit", "group_size", "sample", "timeout"):
            if has(one, name):
                setattr(one, name, draw(SMALL))
    return path.removeprefix("/qdrant.Points/"), message


@pytest.mark.fuzz
@given(asked(), POLICIES)
def test_a_message_is_what_its_twin_is(request: tuple[str, Any], policy: QueryPolicy) -> None:
    name, message = request
    expected = type(message).FromString(message.SerializeToString())
    refused = bool(policy.hidden) and name == "UpdateBatch" and any(unavailable(one) for one in message.operations)
    try:
        refuse(refused)
        twin(expected, policy)
    except PolicyRefused:
        with pytest.raises((PolicyRefused, BadRequest)):
            rewritten(name, message, policy)
    else:
        made = message if not policy else None
        try:
            made = rewritten(name, message, policy)
        except BadRequest:
            assert name == "UpdateBatch"
            assert any(one.WhichOneof("operation") is None for one in message.operations)
        else:
            assert made == expected
            assert rewritten(name, made, policy) == made or policy.hidden  # excluded once more


def unavailable(operation: Any) -> bool:
    return operation.WhichOneof("operation") in {"overwrite_payload", "clear_payload", "clear_payload_deprecated"}


@given(asked(), POLICIES, POLICIES)
def test_another_policy_never_widens(request: tuple[str, Any], one: QueryPolicy, other: QueryPolicy) -> None:
    name, message = request
    try:
        rewritten(name, message, one)
    except (PolicyRefused, BadRequest):
        with pytest.raises((PolicyRefused, BadRequest)):
            rewritten(name, message, one.merged(other))


def test_every_message_that_is_read_has_a_shape() -> None:
    rows = {row.message for row in EACH.values()}
    assert {*rows, *LOOKS, "WithLookup", "PointStruct", "PayloadIncludeSelector", "WithPayloadSelector"} <= {
        *SHAPES,
        *SHAPE_PARTS,
    }
    entry = pb.PointStruct(payload={"a": pb.Value(bool_value=True)}).SerializeToString()
    assert at_once(checking_payload(entry[2:], SALARY, Reading())) is None


# Answers


def hide(message: Any, policy: QueryPolicy) -> None:
    """Removes what is hidden from a parsed answer, at every depth."""
    if "usage" in message.DESCRIPTOR.fields_by_name:
        message.ClearField("usage")
    for field, value in message.ListFields():
        if field.name == "payload" and field.is_repeated:
            hide_keys(value, policy.hidden.tree)
        elif field.name == "payload_schema":
            for key in [one for one in value if (path := path_of(one)) is None or policy.hidden.cover(path)]:
                del value[key]
        elif field.name == "vectors" and policy.hides_vectors:
            message.ClearField("vectors")
        elif field.message_type is not None and not field.message_type.GetOptions().map_entry:
            for one in value if field.is_repeated else [value]:
                hide(one, policy)


def hide_keys(entries: Any, tree: Any) -> None:
    for key in [key for key in entries if key in tree]:
        if tree[key] is None:
            del entries[key]
            continue
        pending = [entries[key]]
        while pending:
            one = pending.pop()
            pending += one.list_value.values
            if one.WhichOneof("kind") == "struct_value":
                hide_keys(one.struct_value.fields, tree[key])


SHOWN = frozenset(
    {
        *("result", "groups", "hits", "lookup", "payload", "vectors", "struct_value", "list_value", "values", "fields"),
        *("usage", "time", "payload_schema", "value"),
    }
)


@pytest.mark.fuzz
@given(st.data(), st.sampled_from(sorted(ANSWERS)), POLICIES)
def test_an_answer_loses_what_is_hidden_and_nothing_else(data: st.DataObject, path: str, policy: QueryPolicy) -> None:
    stripper = stripper_of(operation := method(path.removeprefix("/qdrant.")), policy)
    assert (stripper is not None) == (bool(policy.hidden) or (policy.hides_vectors and "Points" in operation.path))
    if stripper is None:
        return
    answer = data.draw(qdrant.messages(OUTPUTS[path], SHOWN, depth=8))
    shown = qdrant.parse(OUTPUTS[path], at_once(stripper.reducing(answer.SerializeToString())))
    hide(answer, policy)
    assert shown == answer


def stripped(answer: bytes, path: str = "Points/Get", policy: QueryPolicy = SALARY) -> bytes:
    stripper = stripper_of(method(path), policy)
    assert stripper is not None
    return at_once(stripper.reducing(answer))


def test_what_readers_could_see_differently_is_left_out() -> None:
    """An entry with two keys, or two values; a field that a newer Qdrant has, at any depth. A point is shown as it is
    where nothing in the answer has the name of a hidden key.
    """
    name, salary = delimited(1, b"name"), delimited(1, b"salary")
    value = delimited(2, b"\x18\x01")
    for entry in (name + salary + value, salary + name + value, name + value + value, name + value + delimited(3, b"")):
        assert stripped(delimited(1, delimited(2, entry) + delimited(2, salary + value))) == delimited(1, b"")
    assert stripped(delimited(1, delimited(2, name + value + value))) == delimited(
        1, delimited(2, name + value + value)
    )
    assert stripped(delimited(1, delimited(2, name + value) + delimited(8, b""))) == delimited(
        1, delimited(2, name + value)
    )
    assert stripped(delimited(1, delimited(2, value + name))) == delimited(1, delimited(2, value + name))
    assert stripped(delimited(1, delimited(7, b"salary"))) == delimited(1, b"")
    assert stripped(delimited(9, b"salary")) == b""
    below = delimited(1, b"contact") + delimited(2, delimited(6, delimited(2, b"x")) + delimited(8, b"x"))
    kept = delimited(1, b"contact") + delimited(2, delimited(6, b""))
    assert stripped(delimited(1, delimited(2, below))) == delimited(1, delimited(2, kept))


def test_depth_and_length_of_an_answer() -> None:
    def nested(depth: int) -> bytes:
        value = delimited(6, delimited(1, delimited(1, b"email") + delimited(2, b"")))
        for _ in range(depth):
            value = delimited(7, delimited(1, value))
        return delimited(1, delimited(2, delimited(1, b"contact") + delimited(2, value)))

    assert b"email" not in stripped(nested(MAX_NESTING - 1))
    with pytest.raises(ValueError, match="nested too deeply"):
        stripped(nested(MAX_NESTING))
    with pytest.raises(ValueError, match="within a field"):
        stripped(b"\x0a\x05")
    stripper = stripper_of(method("Points/Get"), SALARY)
    assert stripper is not None
    long = delimited(1, b"") * 3 * ANSWER_STEP
    assert list(stripper.reducing(long)) == [COPIES * len(long), None, None, None]


def test_reducers_are_applied_one_after_the_other() -> None:
    """Those of a tenant under a policy: each has its own fields."""
    operation = method("Points/Scroll")
    both = composed(None, AnswerReducer(operation), stripper_of(operation, SALARY))
    assert isinstance(both, ComposedReducer)
    assert not both.hides_errors
    entry = delimited(1, b"salary") + delimited(2, b"\x18\x01")
    answer = delimited(2, delimited(2, entry)) + delimited(4, b"") + delimited(9, b"")
    assert at_once(both.reducing(answer)) == delimited(2, b"")
    assert composed(None, None) is None
    assert composed(None, one := AnswerReducer(operation)) is one


def test_depth_and_length_of_a_message() -> None:
    """Prefetches and filters nest as deep as Qdrant takes them; memory is asked for, and fields are counted."""

    def nested(number: int, depth: int) -> bytes:
        message = b""
        for _ in range(depth):
            message = delimited(number, message)
        return message

    strict = QueryPolicy(max_limit=5, hidden=SALARY.hidden)
    query_points, scroll = method("Points/Query"), method("Points/Scroll")
    deep = at_once(message_under_policy(query_points, delimited(2, nested(1, MAX_DEPTH - 1)), strict))
    assert deep.endswith(integer(8, 5))
    assert deep.count(integer(7, 5)) == MAX_DEPTH
    with pytest.raises(BadRequest, match="nested too deeply"):
        at_once(message_under_policy(query_points, delimited(2, nested(1, MAX_DEPTH)), strict))
    condition = b""
    for _ in range(MAX_DEPTH):
        condition = delimited(2, delimited(4, condition))
    assert at_once(message_under_policy(scroll, delimited(2, condition), strict))
    many = delimited(2, delimited(2, b"") * 3 * STEP)
    asked_for = [one for one in message_under_policy(scroll, many, strict) if one is not None]
    assert len(asked_for) >= 3
    with pytest.raises(ProtobufError, match="too many fields"):
        at_once(under_policy(scroll, many, strict, fields=2 * STEP))


def test_a_long_selection_of_keys_is_looked_at_in_steps() -> None:
    selector = delimited(6, delimited(2, delimited(1, b"a.b") * 3 * STEP))
    assert len(list(under_policy(method("Points/Scroll"), selector, SALARY))) >= 3
