"""Messages confined to a tenant's points, against a slow twin that does the same to parsed messages."""

from __future__ import annotations

import copy
import json
from typing import Any
from uuid import UUID

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st
from qdrant_client import grpc as pb
from qdrant_client import models
from qdrant_client.conversions.conversion import GrpcToRest, RestToGrpc
from support import qdrant_messages as qdrant
from support.qdrant_messages import OF_NO_POINT, ids_in, messages_in
from support.rows import rows
from support.tenant_roles import confinement

from tlsproxy.authz.access import Condition, Confinement, Confinements
from tlsproxy.errors import BadRequest, Unconfined
from tlsproxy.qdrant import tenant_texts
from tlsproxy.qdrant.grpc_decision import confine_message as confining
from tlsproxy.qdrant.grpc_decision import operation_of
from tlsproxy.qdrant.grpc_rewrite import COPIES, FIELD, SMALL, STEP, Reading
from tlsproxy.qdrant.grpc_tenancy import CONFINED, is_confinable_call, method_of_confined
from tlsproxy.qdrant.grpc_tenancy import confined as confined_message
from tlsproxy.qdrant.operations import GRPC, Operation
from tlsproxy.qdrant.point_ids import PointId
from tlsproxy.qdrant.rest_tenancy import Confined, confine
from tlsproxy.qdrant.router import recognise
from tlsproxy.qdrant.scoring import Facts
from tlsproxy.wire.cooperative import at_once
from tlsproxy.wire.protobuf import MAX_DEPTH, ProtobufError, delimited

ACME = confinement(tenant="acme")
TWO = confinement(tenant="acme", a="x")
DIFFERING = confinement(tenant="acme") + confinement(tenant="other")
OURS = pb.Condition(field=pb.FieldCondition(key="tenant", match=pb.Match(keyword="acme")))
OTHERS = pb.Condition(field=pb.FieldCondition(key="tenant", match=pb.Match(keyword="other")))
ONLY = pb.Filter(must=[OURS])
OWN = pb.Filter(must_not=[OTHERS])
NARROWED = pb.Filter(must=[OURS, pb.Condition(filter=OWN)])
NOT_OURS = pb.Condition(
    field=pb.FieldCondition(key="tenant", match=pb.Match(except_keywords=pb.RepeatedStrings(strings=["acme"])))
)
ALONE = pb.Filter(must=[OURS], must_not=[NOT_OURS])
NARROWED_ALONE = pb.Filter(must=[OURS, pb.Condition(filter=OWN)], must_not=[NOT_OURS])
WEIGHTED = ("docs", "tenant")
FACTS = Facts((1, 20), frozenset(WEIGHTED), frozenset())


def confine_message(
    operation: Operation, message: bytes, confinements: Confinements, facts: Facts | None = FACTS
) -> bytes:
    return at_once(confining(operation, "docs", message, confinements, facts)).content


def method(name: str) -> Operation:
    found = operation_of(f"/qdrant.Points/{name}")
    assert found is not None
    return found


def confined(name: str, message: Any, confinements: Confinements = ACME) -> Any:
    if hasattr(message, "collection_name") and not message.collection_name:
        message.collection_name = "docs"
    content = message if isinstance(message, bytes) else message.SerializeToString()
    return sent(method(name), confine_message(method(name), content, confinements))


def sent(operation: Operation, content: bytes) -> Any:
    """The message of the method that is called upstream."""
    return qdrant.parse(qdrant.REQUESTS[method_of_confined(operation)], content)


def test_which_methods_a_tenant_has() -> None:
    """Written down once more: whatever is new in the table of operations stays refused until somebody says how."""
    assert {row.path.removeprefix("/qdrant.Points/") for row in GRPC if is_confinable_call(row)} == {
        "ClearPayload",
        "Count",
        "Delete",
        "DeletePayload",
        "DeleteVectors",
        "Discover",
        "DiscoverBatch",
        "Facet",
        "Get",
        "OverwritePayload",
        "Query",
        "QueryBatch",
        "QueryGroups",
        "Recommend",
        "RecommendBatch",
        "RecommendGroups",
        "Scroll",
        "Search",
        "SearchBatch",
        "SearchGroups",
        "SearchMatrixOffsets",
        "SearchMatrixPairs",
        "SetPayload",
        "UpdateBatch",
        "UpdateVectors",
        "Upsert",
    }
    for row in GRPC:
        if not is_confinable_call(row):
            with pytest.raises(Unconfined):
                confine_message(row, b"\x0a\x04docs", ACME)


# The slow twin: it changes parsed messages, by the fields' names.

SEARCHES = ("prefetch", "search_points", "query_points", "recommend_points", "discover_points")
INPUTS = frozenset({"query", "positive", "negative", "positive_vectors", "negative_vectors", "target", "context"})


def narrow(message: Any, name: str, confinements: Confinements, *, alone: bool = False) -> None:
    own = copy.deepcopy(getattr(message, name))
    narrowed = narrowed_by(confinements, alone=alone)
    if own.SerializeToString():
        narrowed.must.add().filter.CopyFrom(own)
    getattr(message, name).CopyFrom(narrowed)


def narrowed_by(confinements: Confinements, *, alone: bool = False) -> Any:
    narrowed = pb.Filter()
    for key, value in texts(confinements):
        narrowed.must.add().field.CopyFrom(pb.FieldCondition(key=key, match=pb.Match(keyword=value)))
        if alone:
            others = pb.Match(except_keywords=pb.RepeatedStrings(strings=[value]))
            narrowed.must_not.add().field.CopyFrom(pb.FieldCondition(key=key, match=others))
    return narrowed


def texts(confinements: Confinements) -> list[tuple[str, str]]:
    return [(one.key, str(one.values[0])) for each in confinements for one in each.conditions]


def twin(message: Any, confinements: Confinements, *, marks: bool) -> None:
    """Raises Unconfined or BadRequest, without a text."""
    fields = message.DESCRIPTOR.fields_by_name
    twin_refusals(message, confinements)
    if message.DESCRIPTOR.name in {"UpsertPoints", "PointStructList"}:
        for point in message.points:
            twin_payload(point.payload, confinements, marks=True, makes=True)
    elif "payload" in fields:
        marks |= message.DESCRIPTOR.name == "OverwritePayload"
        if marks and message.HasField("key"):
            raise Unconfined("")
        payload = {} if message.HasField("key") else message.payload
        twin_payload(payload, confinements, marks=marks, makes=False)
    twin_filters(message, confinements)
    for name in SEARCHES:
        for one in getattr(message, name, ()):
            twin(one, confinements, marks=marks)
    for operation in getattr(message, "operations", ()):
        twin_operation(operation)
        twin(getattr(operation, operation.WhichOneof("operation")), confinements, marks=False)


def twin_operation(operation: Any) -> None:
    """An operation of an older form, or one that clears payloads, as the one that is sent."""
    chosen = operation.WhichOneof("operation")
    if chosen == "delete_deprecated":
        operation.delete_points.points.CopyFrom(operation.delete_deprecated)
    elif chosen == "clear_payload_deprecated":
        operation.overwrite_payload.points_selector.CopyFrom(operation.clear_payload_deprecated)
    elif chosen == "clear_payload":
        cleared = copy.deepcopy(operation.clear_payload)
        overwrite = pb.PointsUpdateOperation.OverwritePayload()
        if cleared.HasField("points"):
            overwrite.points_selector.CopyFrom(cleared.points)
        if cleared.HasField("shard_key_selector"):
            overwrite.shard_key_selector.CopyFrom(cleared.shard_key_selector)
        operation.overwrite_payload.CopyFrom(overwrite)


def twin_cleared(message: Any) -> Any:
    """ClearPayloadPoints as the SetPayloadPoints that is sent."""
    renamed = {"points": "points_selector"}
    return pb.SetPayloadPoints(**{renamed.get(field.name, field.name): value for field, value in message.ListFields()})


def twin_retrieval(message: Any, confinements: Confinements) -> Any:
    """A scroll of these points; None where one of the ids is none."""
    ids: dict[object, Any] = {}
    for one in message.ids:
        if not is_id(one):
            return None
        ids.setdefault(UUID(one.uuid) if one.uuid else one.num, one)
    scroll = pb.ScrollPoints(limit=max(1, len(ids)))
    scroll.filter.must.append(pb.Condition(has_id=pb.HasIdCondition(has_id=ids.values())))
    scroll.filter.must.extend(narrowed_by(confinements).must)
    scroll.with_payload.enable = False
    for field, value in message.ListFields():
        if field.message_type is None:
            setattr(scroll, field.name, value)
        elif field.name != "ids":
            getattr(scroll, field.name).CopyFrom(value)
    return scroll


def twin_filters(message: Any, confinements: Confinements) -> None:
    for field in message.DESCRIPTOR.fields:
        if field.name in {"filter", "update_filter"}:
            narrow(message, field.name, confinements, alone=field.name == "update_filter")
        elif field.message_type is not None and field.message_type.name == "PointsSelector":
            twin_selector(getattr(message, field.name), confinements)
    if message.DESCRIPTOR.name in {"CountPoints", "FacetCounts"}:
        message.exact = True


def twin_search(message: Any, confinements: Confinements, *, exact: bool) -> None:
    """Of the searches of a message, at every depth: their parameters."""
    exact |= message.DESCRIPTOR.name.endswith("Groups")
    if "params" in message.DESCRIPTOR.fields_by_name:
        using = message.using if hasattr(message, "using") else message.vector_name
        scored = twin_scored(message)
        if scored == "text" or (scored in {"sparse", *INFERRED} and using in WEIGHTED):
            message.params.idf.SetInParent()
        if scored in {"dense", "multi_dense", *INFERRED} or message.params.HasField("quantization"):
            message.params.quantization.rescore = True
        if exact:
            message.params.exact = True
        if message.HasField("params"):
            message.params.ClearField("indexed_only")
            if message.params.HasField("idf"):
                narrow(message.params.idf, "corpus", confinements)
    elif message.DESCRIPTOR.name == "SearchMatrixPoints" and message.using in WEIGHTED:
        raise Unconfined("")
    for name in SEARCHES:
        for one in getattr(message, name, ()):
            twin_search(one, confinements, exact=exact)


INFERRED = {"document", "image", "object", "id"}


def twin_scored(message: Any) -> str:
    """What the message is by: the kind of vector, "text", or ""."""
    if "sparse_indices" in message.DESCRIPTOR.fields_by_name:
        return "sparse" if message.HasField("sparse_indices") else "dense" if message.vector else ""
    if "query" in message.DESCRIPTOR.fields_by_name and message.query.WhichOneof("variant") == "text":
        return "text"
    kinds = {kind for one in inputs_of(message) for kind in kinds_in(one)}
    return kinds.pop() if len(kinds) == 1 else "document" if kinds else ""


def inputs_of(message: Any) -> list[Any]:
    """Messages of a search that are its inputs, or lead to them."""
    found = [value for field, value in message.ListFields() if field.name in INPUTS]
    return [one for value in found for one in (value if hasattr(value, "__len__") else [value])]


def kinds_in(message: Any) -> list[str]:
    """The kinds of all inputs in a message."""
    name = message.DESCRIPTOR.name
    if name == "PointId":
        return ["id"]
    if name == "Vector":
        numbers = {field.number for field, _ in message.ListFields()}
        dense, sparse = ({1}, {1, 3}, {101}, {103}), ({1, 2}, {102})
        return ["dense" if numbers in dense else "sparse" if numbers in sparse else "document"]
    if name == "VectorInput":
        return [str(message.WhichOneof("variant")).replace("multi_dense", "dense")]
    return [kind for one in messages_in(message) for kind in kinds_in(one)]


def twin_refusals(message: Any, confinements: Confinements) -> None:
    present = {field.name for field, _ in message.ListFields()}
    if "with_lookup" in present:
        raise Unconfined("")
    for one in inputs_of(message):
        twin_input(one)
    if any(map(ids_in, inputs_of(message))) and "lookup_from" in present:
        twin_place(message.lookup_from)
    kept = {key for key, _ in texts(confinements)}
    for path in getattr(message, "keys", ()):
        if not elsewhere(path, kept):
            raise Unconfined("")
    if "key" in present and "payload" in message.DESCRIPTOR.fields_by_name and not elsewhere(message.key, kept):
        raise Unconfined("")
    for operation in getattr(message, "operations", ()):
        chosen = operation.WhichOneof("operation")
        if chosen is None:
            raise Unconfined("")


def elsewhere(path: str, kept: set[str]) -> bool:
    return bool(path) and path.isascii() and path.partition(".")[0] not in kept


CHOICES = {"Query": "variant", "VectorInput": "variant", "TargetVector": "target", "VectorExample": "example"}


def twin_input(message: Any) -> None:
    """Each message with a choice of inputs has chosen, and ids are ids."""
    name = message.DESCRIPTOR.name
    chosen = name not in CHOICES or message.WhichOneof(CHOICES[name]) is not None
    if not chosen or (name == "PointId" and not is_id(message)):
        raise BadRequest("")
    for one in [] if name in OF_NO_POINT else messages_in(message):
        twin_input(one)


def is_id(one: Any) -> bool:
    if one.WhichOneof("point_id_options") == "num":
        return True
    try:
        return bool(UUID(one.uuid))
    except ValueError:
        return False


def twin_place(lookup: Any) -> None:
    """A shard key has chosen, and a fallback is one for a single key."""
    selector = lookup.shard_key_selector
    keys = [*selector.shard_keys, *([selector.fallback] if selector.HasField("fallback") else [])]
    if any(one.WhichOneof("key") is None for one in keys):
        raise BadRequest("")
    if selector.HasField("fallback") and len(selector.shard_keys) != 1:
        raise BadRequest("")


def twin_selector(selector: Any, confinements: Confinements) -> None:
    if selector.WhichOneof("points_selector_one_of") is None:
        raise BadRequest("")
    ids = copy.deepcopy(selector.points.ids) if selector.HasField("points") else None
    narrow(selector, "filter", confinements, alone=True)
    if ids is not None:
        narrowed = copy.deepcopy(selector.filter)
        selector.filter.ClearField("must")
        selector.filter.must.add().has_id.SetInParent()
        selector.filter.must[0].has_id.has_id.extend(ids)
        selector.filter.must.extend(narrowed.must)


def twin_payload(payload: Any, confinements: Confinements, *, marks: bool, makes: bool) -> None:
    pairs = set(texts(confinements))
    if not makes and any(key in payload for key, _ in pairs):
        raise Unconfined("")
    if len({key for key, _ in pairs}) < len(pairs):
        raise Unconfined("")
    for key, value in pairs:
        if key in payload and payload[key] != pb.Value(string_value=value):
            raise Unconfined("")
        if marks:
            payload[key].string_value = value


ALSO = frozenset(
    {
        "quantization",
        "rescore",
        "vector",
        "sparse",
        "sparse_indices",
        "document",
        "text",
        "exact",
        "indexed_only",
        "using",
        "vector_name",
    }
)
ALSO |= frozenset({"query", "nearest", "params", "idf", "filter", "update_filter", "points_selector", "operations"})
ALSO |= {
    "points",
    "payload",
    "string_value",
    "upsert",
    "delete_points",
    "overwrite_payload",
    "dense",
    "nearest_with_mmr",
    "ids",
    "num",
    "uuid",
}


def outcome(path: str, content: bytes, confinements: Confinements) -> Any:
    """The new message, parsed; or None where it is refused."""
    operation = operation_of(path)
    assert operation is not None
    try:
        return sent(operation, confine_message(operation, content, confinements))
    except (BadRequest, Unconfined):
        return None


def expected(path: str, message: Any, confinements: Confinements) -> Any:
    if path.endswith("/Get"):
        return twin_retrieval(message, confinements)
    changed = twin_cleared(message) if path.endswith("/ClearPayload") else copy.deepcopy(message)
    try:
        twin(changed, confinements, marks=path.endswith(("/OverwritePayload", "/ClearPayload")))
        twin_search(changed, confinements, exact=False)
    except (BadRequest, Unconfined):
        return None
    return changed


def settle(message: Any) -> None:
    """What any limited caller is refused: a request of a batch that names another collection."""
    for name in SEARCHES[1:]:
        for one in getattr(message, name, ()):
            one.collection_name = ""


@pytest.mark.fuzz
@given(st.data(), st.sampled_from([ACME, TWO, DIFFERING]))
def test_whatever_is_asked_is_confined_as_the_twin_does_it(data: st.DataObject, confinements: Confinements) -> None:
    path = data.draw(st.sampled_from(sorted(CONFINED)))
    message = data.draw(qdrant.messages(qdrant.REQUESTS[path], ALSO))
    settle(message)
    assert outcome(path, message.SerializeToString(), confinements) == expected(path, message, confinements)


@pytest.mark.fuzz
@given(st.data())
def test_no_damage_lets_a_message_escape(data: st.DataObject) -> None:
    path = data.draw(st.sampled_from(sorted(CONFINED)))
    message = data.draw(qdrant.messages(qdrant.REQUESTS[path], ALSO))
    settle(message)
    content = data.draw(qdrant.mutated(message.SerializeToString()))
    try:
        parsed = qdrant.parse(qdrant.REQUESTS[path], content)
    except DecodeError:
        return  # nor will Qdrant
    changed = outcome(path, content, ACME)
    assert changed is None or changed == expected(path, parsed, ACME)


# Reads


@rows("name", ["Count", "Scroll", "Facet", "Search", "SearchGroups", "Query", "QueryGroups", "SearchMatrixPairs"])
@rows(("own", "narrowed"), [(None, ONLY), (pb.Filter(), ONLY), (OWN, NARROWED)])
def test_a_filter_is_narrowed(name: str, own: Any, narrowed: Any) -> None:
    request = qdrant.GetMessageClass(qdrant.REQUESTS[method(name).path])(collection_name="docs", filter=own)
    changed = confined(name, request)
    assert changed.filter == narrowed
    changed.ClearField("filter")
    request.ClearField("filter")
    if name in {"Count", "Facet"}:
        request.exact = True
    elif name.endswith("Groups"):
        request.params.exact = True
    assert changed == request


VECTOR = pb.VectorInput(dense=pb.DenseVector(data=[0.5]))
ID = pb.VectorInput(id=pb.PointId(num=1))
EXAMPLES = [
    pb.Query(nearest=ID),
    pb.Query(nearest_with_mmr=pb.NearestInputWithMmr(nearest=ID, mmr=pb.Mmr())),
    pb.Query(recommend=pb.RecommendInput(positive=[VECTOR, ID])),
]


def asked(name: str, message: Any) -> list[tuple[str, tuple[PointId, ...], Any]]:
    """The questions that are asked first: collection, ids, shard key."""
    message.collection_name = "docs"
    made = at_once(confining(method(name), "docs", message.SerializeToString(), ACME, FACTS))
    found = []
    for one in made.questions:
        own, others = json.loads(one.body)["searches"]
        assert own["filter"]["must"][0] == others["filter"]["must"][0] == {"has_id": list(one.ids)}
        found.append((one.collection, one.ids, own.get("shard_key")))
    return found


@pytest.mark.parametrize("query", EXAMPLES, ids=str)
def test_examples_are_asked_for(query: Any) -> None:
    inner = pb.PrefetchQuery(prefetch=[pb.PrefetchQuery(), pb.PrefetchQuery(query=query)])
    for request in (pb.QueryPoints(query=query), pb.QueryPoints(prefetch=[inner])):
        assert asked("Query", request) == [("docs", (1,), None)]
        batch = pb.QueryBatchPoints(query_points=[pb.QueryPoints(), request, request])
        assert asked("QueryBatch", batch) == [("docs", (1,), None)]
    assert asked("QueryGroups", pb.QueryPointGroups(query=query)) == [("docs", (1,), None)]


NUMBERS = [pb.PointId(num=number) for number in range(4)]
TARGET = pb.TargetVector(single=pb.VectorExample(id=NUMBERS[3]))
CONTEXT = pb.ContextExamplePair(
    positive=pb.VectorExample(id=NUMBERS[1]), negative=pb.VectorExample(vector=pb.Vector(data=[0.5]))
)


def test_examples_of_older_methods_are_asked_for() -> None:
    recommend = pb.RecommendPoints(
        positive=NUMBERS[1:3], negative=NUMBERS[2:], positive_vectors=[pb.Vector(data=[1.0])]
    )
    groups = pb.RecommendPointGroups(positive=NUMBERS[1:3], negative=NUMBERS[2:])
    discover = pb.DiscoverPoints(target=TARGET, context=[CONTEXT, CONTEXT])
    assert asked("Recommend", recommend) == asked("RecommendGroups", groups) == [("docs", (1, 2, 3), None)]
    assert asked("Discover", discover) == [("docs", (3, 1), None)]
    assert asked("RecommendBatch", pb.RecommendBatchPoints(recommend_points=[recommend])) == [("docs", (1, 2, 3), None)]
    assert asked("DiscoverBatch", pb.DiscoverBatchPoints(discover_points=[discover] * 2)) == [("docs", (3, 1), None)]
    assert asked("Discover", pb.DiscoverPoints(context=[CONTEXT])) == [("docs", (1,), None)]
    assert asked("Recommend", pb.RecommendPoints(positive_vectors=[pb.Vector(data=[1.0])])) == []


@pytest.mark.parametrize(
    ("selector", "shard_key"),
    [
        (None, None),
        (pb.ShardKeySelector(shard_keys=[pb.ShardKey(keyword="a"), pb.ShardKey(number=7)]), ["a", 7]),
        (
            pb.ShardKeySelector(shard_keys=[pb.ShardKey(keyword="a")], fallback=pb.ShardKey(keyword="b")),
            {"target": "a", "fallback": "b"},
        ),
    ],
)
def test_examples_of_another_collection_are_asked_for_there(selector: Any, shard_key: Any) -> None:
    lookup = pb.LookupLocation(collection_name="other", vector_name="v", shard_key_selector=selector)
    query, one = pb.Query(nearest=ID), (1,)
    expected = [("other", one, shard_key)]
    assert asked("Query", pb.QueryPoints(query=query, lookup_from=lookup)) == expected
    below = pb.PrefetchQuery(query=query, lookup_from=lookup)
    assert asked("Query", pb.QueryPoints(query=query, prefetch=[below])) == [*expected, ("docs", one, None)]
    assert asked("QueryGroups", pb.QueryPointGroups(query=query, lookup_from=lookup)) == expected
    recommend = pb.RecommendPoints(positive=[NUMBERS[1]], lookup_from=lookup)
    groups = pb.RecommendPointGroups(positive=[NUMBERS[1]], lookup_from=lookup)
    discover = pb.DiscoverPoints(context=[CONTEXT], lookup_from=lookup)
    assert asked("Recommend", recommend) == asked("RecommendGroups", groups) == asked("Discover", discover) == expected
    assert asked("Query", pb.QueryPoints(query=pb.Query(nearest=VECTOR), lookup_from=lookup)) == []


def test_a_shard_key_has_one_form() -> None:
    a, b = pb.ShardKey(keyword="a"), pb.ShardKey(keyword="b")
    for selector in (
        pb.ShardKeySelector(shard_keys=[pb.ShardKey()]),
        pb.ShardKeySelector(fallback=a),
        pb.ShardKeySelector(shard_keys=[a, b], fallback=a),
    ):
        lookup = pb.LookupLocation(collection_name="other", shard_key_selector=selector)
        with pytest.raises(BadRequest):
            asked("Query", pb.QueryPoints(query=pb.Query(nearest=ID), lookup_from=lookup))


def test_payloads_of_another_collection_are_of_all_points() -> None:
    lookup = pb.WithLookup(collection="docs")
    for name, request in (
        ("QueryGroups", pb.QueryPointGroups(with_lookup=lookup)),
        ("RecommendGroups", pb.RecommendPointGroups(with_lookup=lookup)),
        ("SearchGroups", pb.SearchPointGroups(with_lookup=lookup)),
    ):
        with pytest.raises(Unconfined, match="would read points of others"):
            confined(name, request)


def test_words_are_counted_over_ones_own_points() -> None:
    params = pb.SearchParams(idf=pb.IdfParams(corpus=OWN))
    for name, request in (("Search", pb.SearchPoints(params=params)), ("Query", pb.QueryPoints(params=params))):
        assert confined(name, request).params.idf.corpus == NARROWED
    assert confined("Query", pb.QueryPoints(prefetch=[pb.PrefetchQuery(params=params)])).prefetch[
        0
    ].params.idf.corpus == (NARROWED)


def test_scores_are_of_the_vectors_themselves() -> None:
    """Whatever is asked of the codes, and of segments that are indexed, which depend on all points."""
    own = pb.QuantizationSearchParams(ignore=False, rescore=False, oversampling=2.0)
    narrowed = pb.QuantizationSearchParams(ignore=False, rescore=True, oversampling=2.0)
    rescored = pb.QuantizationSearchParams(rescore=True)
    for params, expected in (
        (None, pb.SearchParams(quantization=rescored)),
        (pb.SearchParams(quantization=own), pb.SearchParams(quantization=narrowed)),
        (pb.SearchParams(indexed_only=True, hnsw_ef=9), pb.SearchParams(hnsw_ef=9, quantization=rescored)),
        (pb.SearchParams(exact=False), pb.SearchParams(exact=False, quantization=rescored)),
    ):
        assert confined("Search", pb.SearchPoints(vector=[0.5], params=params)).params == expected
        grouped = confined("SearchGroups", pb.SearchPointGroups(vector=[0.5], params=params)).params
        expected.exact = True
        assert grouped == expected
    of_no_vector = pb.QueryPoints(params=pb.SearchParams(quantization=pb.QuantizationSearchParams()))
    assert confined("Query", of_no_vector).params == pb.SearchParams(quantization=rescored)
    assert not confined("Query", pb.QueryPoints()).HasField("params")


@pytest.mark.parametrize(
    ("name", "message", "text"),
    [
        ("Search", delimited(7, delimited(3, b"\x15\0\0\0\0")), "field 2 of QuantizationSearchParams has another type"),
        ("Search", delimited(7, b"\x15\0\0\0\0"), "field 2 of SearchParams has another type"),
        ("Search", delimited(7, b"\x25\0\0\0\0"), "field 4 of SearchParams has another type"),
        ("Count", b"\x1d\0\0\0\0", "field 3 of CountPoints has another type"),
        ("Facet", b"\x2d\0\0\0\0", "field 5 of FacetCounts has another type"),
    ],
)
def test_a_flag_of_another_type_is_refused(name: str, message: bytes, text: str) -> None:
    with pytest.raises(BadRequest, match=text):
        confined(name, delimited(1, b"docs") + message)


DOCUMENT, IMAGE, OBJECT = pb.Document(text="x", model="m"), pb.Image(model="m"), pb.InferenceObject(model="m")
QUANTIZED = pb.SearchParams(quantization=pb.QuantizationSearchParams(rescore=True))
OF_OWN_WORDS = pb.SearchParams(idf=pb.IdfParams(corpus=ONLY))
BOTH = pb.SearchParams(quantization=QUANTIZED.quantization, idf=OF_OWN_WORDS.idf)


@pytest.mark.parametrize(
    ("vector", "weighted", "plain"),
    [
        (pb.VectorInput(dense=pb.DenseVector(data=[0.5])), QUANTIZED, QUANTIZED),
        (pb.VectorInput(multi_dense=pb.MultiDenseVector()), QUANTIZED, QUANTIZED),
        (pb.VectorInput(sparse=pb.SparseVector(values=[0.5], indices=[1])), OF_OWN_WORDS, None),
        (pb.VectorInput(document=DOCUMENT), BOTH, QUANTIZED),
        (pb.VectorInput(image=IMAGE), BOTH, QUANTIZED),
        (pb.VectorInput(object=OBJECT), BOTH, QUANTIZED),
    ],
    ids=lambda one: "" if one is None else one.DESCRIPTOR.name,
)
def test_the_kind_of_a_vector_decides_what_its_scores_are_of(vector: Any, weighted: Any, plain: Any) -> None:
    """`docs` is a sparse vector with IDF, `other` none: where words are counted, they are the caller's own."""
    nearest = pb.Query(nearest=vector)
    with_mmr = pb.Query(nearest_with_mmr=pb.NearestInputWithMmr(nearest=vector, mmr=pb.Mmr()))
    for using, expected in (("docs", weighted), ("other", plain)):
        for query in (nearest, with_mmr):
            asked = confined("Query", pb.QueryPoints(query=query, using=using))
            grouped = confined("QueryGroups", pb.QueryPointGroups(query=query, using=using))
            below = confined("Query", pb.QueryPoints(prefetch=[pb.PrefetchQuery(query=query, using=using)]))
            assert grouped.params.exact
            grouped.params.ClearField("exact")
            assert asked.params == grouped.params == below.prefetch[0].params == (expected or pb.SearchParams())
            assert asked.HasField("params") is (expected is not None)


def test_words_of_a_text_query_are_counted_whatever_the_vector() -> None:
    query = qdrant.parse(pb.Query.DESCRIPTOR, delimited(12, b""))
    assert confined("Query", pb.QueryPoints(query=query, using="other")).params == OF_OWN_WORDS
    everybodys = pb.SearchParams(idf=pb.IdfParams())
    assert confined("Query", pb.QueryPoints(params=everybodys)).params == OF_OWN_WORDS


# Changes


def text(value: str) -> Any:
    return pb.Value(string_value=value)


SELECTOR = pb.PointsSelector(filter=OWN)
BY_IDS = pb.PointsSelector(points=pb.PointsIdsList(ids=[pb.PointId(num=1)]))
Batch = pb.PointsUpdateOperation
POINTS = [pb.PointStruct(id=pb.PointId(num=1)), pb.PointStruct(payload={"a": text("b"), "tenant": text("acme")})]
CHANGES: list[tuple[str, Any, Any]] = [
    ("Upsert", pb.UpsertPoints(points=POINTS, update_filter=OWN), Batch(upsert=Batch.PointStructList(points=POINTS))),
    ("Delete", pb.DeletePoints(points=SELECTOR), Batch(delete_points=Batch.DeletePoints(points=SELECTOR))),
    ("UpdateVectors", pb.UpdatePointVectors(), Batch(update_vectors=Batch.UpdateVectors())),
    (
        "DeleteVectors",
        pb.DeletePointVectors(points_selector=SELECTOR),
        Batch(delete_vectors=Batch.DeleteVectors(points_selector=SELECTOR)),
    ),
    (
        "SetPayload",
        pb.SetPayloadPoints(payload={"a": text("b")}, points_selector=SELECTOR),
        Batch(set_payload=Batch.SetPayload(payload={"a": text("b")}, points_selector=SELECTOR)),
    ),
    (
        "OverwritePayload",
        pb.SetPayloadPoints(payload={"a": text("b")}, points_selector=SELECTOR),
        Batch(overwrite_payload=Batch.OverwritePayload(payload={"a": text("b")}, points_selector=SELECTOR)),
    ),
    (
        "DeletePayload",
        pb.DeletePayloadPoints(keys=["a", "b.tenant"], points_selector=SELECTOR),
        Batch(delete_payload=Batch.DeletePayload(keys=["a", "b.tenant"], points_selector=SELECTOR)),
    ),
]


@pytest.mark.parametrize(("name", "request_", "operation"), CHANGES, ids=[name for name, _, _ in CHANGES])
def test_changes(name: str, request_: Any, operation: Any) -> None:
    changed = confined(name, copy.deepcopy(request_))
    (inner,) = confined("UpdateBatch", pb.UpdateBatchPoints(operations=[operation])).operations
    for one in (changed, getattr(inner, inner.WhichOneof("operation"))):
        if name == "Upsert":
            assert [dict(point.payload) for point in one.points] == [
                {"tenant": text("acme")},
                {"a": text("b"), "tenant": text("acme")},
            ]
            assert one.update_filter == (NARROWED_ALONE if one is changed else ALONE)
        elif name == "UpdateVectors":
            assert one.update_filter == ALONE
        else:
            selector = one.points if name == "Delete" else one.points_selector
            assert selector == pb.PointsSelector(filter=NARROWED_ALONE)
        if name == "SetPayload":
            assert dict(one.payload) == {"a": text("b")}
        if name == "OverwritePayload":
            assert dict(one.payload) == {"a": text("b"), "tenant": text("acme")}


@rows(
    ("name", "request_"),
    [
        ("Upsert", pb.UpsertPoints(points=[pb.PointStruct(payload={"tenant": text("other")})])),
        ("Upsert", pb.UpsertPoints(points=[pb.PointStruct(payload={"tenant": pb.Value()})])),
        ("Upsert", pb.UpsertPoints(points=[pb.PointStruct(payload={"tenant": pb.Value(bool_value=True)})])),
        ("SetPayload", pb.SetPayloadPoints(points_selector=SELECTOR, payload={"tenant": text("other")})),
        ("SetPayload", pb.SetPayloadPoints(points_selector=SELECTOR, payload={"tenant": text("acme")})),
        ("OverwritePayload", pb.SetPayloadPoints(points_selector=SELECTOR, payload={"tenant": text("acme")})),
        ("SetPayload", pb.SetPayloadPoints(points_selector=SELECTOR, key="")),
        ("SetPayload", pb.SetPayloadPoints(points_selector=SELECTOR, key="tenant")),
        ("OverwritePayload", pb.SetPayloadPoints(points_selector=SELECTOR, key="a")),
        ("OverwritePayload", pb.SetPayloadPoints(points_selector=SELECTOR, payload={"tenant": text("other")})),
        *(
            ("DeletePayload", pb.DeletePayloadPoints(points_selector=SELECTOR, keys=["a", key]))
            for key in ("tenant", "tenant.x", "tenant[]", '"tenant"', "", "ä")
        ),
        ("UpdateBatch", pb.UpdateBatchPoints(operations=[Batch()])),
    ],
    ids=str,
)
def test_what_cannot_be_confined(name: str, request_: Any) -> None:
    with pytest.raises(Unconfined):
        confined(name, request_)


@pytest.mark.parametrize(
    ("name", "request_"),
    [
        ("Delete", pb.DeletePoints()),
        ("Delete", pb.DeletePoints(points=pb.PointsSelector())),
        ("SetPayload", pb.SetPayloadPoints()),
        ("DeletePayload", pb.DeletePayloadPoints()),
        ("DeleteVectors", pb.DeletePointVectors()),
        ("UpdateBatch", pb.UpdateBatchPoints(operations=[Batch(delete_points=Batch.DeletePoints())])),
    ],
)
def test_a_change_without_points_is_not_one_of_all_points(name: str, request_: Any) -> None:
    with pytest.raises(BadRequest):
        confined(name, request_)


@pytest.mark.parametrize(
    ("name", "request_", "says"),
    [
        ("Delete", pb.DeletePoints(points=pb.PointsSelector()), "Either points or a filter is expected"),
        ("Delete", pb.DeletePoints(), "Field 3 of DeletePoints is missing"),
        ("Query", pb.QueryPoints(query=pb.Query()), "A Query has one field"),
        (
            "SetPayload", pb.SetPayloadPoints(points_selector=SELECTOR, payload={"tenant": text("acme")}),
            f"Forbidden: {tenant_texts.SET.format('tenant')}",
        ),
        (
            "SetPayload", pb.SetPayloadPoints(points_selector=SELECTOR, key="tenant.a"),
            f"Forbidden: {tenant_texts.BELOW_A_KEY}",
        ),
        (
            "Upsert", pb.UpsertPoints(points=[pb.PointStruct(payload={"tenant": text("other")})]),
            f"Forbidden: {tenant_texts.MARKED.format('tenant')}",
        ),
        ("UpdateBatch", pb.UpdateBatchPoints(operations=[Batch()]), f"Forbidden: {tenant_texts.NOT_OF_A_BATCH}"),
    ],
    ids=range(7),
)  # fmt: skip
def test_a_refusal_says_what_cannot_be(name: str, request_: Any, says: str) -> None:
    with pytest.raises((BadRequest, Unconfined)) as refusal:
        confined(name, request_)
    assert str(refusal.value) == says


DOCS = delimited(1, b"docs")
OTHER_FILTER = delimited(5, delimited(2, OTHERS.SerializeToString()))
MARK = delimited(3, delimited(1, b"tenant") + delimited(2, text("acme").SerializeToString()))
OTHER_MARK = delimited(3, delimited(1, b"tenant") + delimited(2, text("other").SerializeToString()))
QUERY_BY_VECTOR = delimited(1, VECTOR.SerializeToString())
QUERY_BY_ID = delimited(1, ID.SerializeToString())


@rows(
    ("name", "message"),
    [
        ("Query", DOCS + OTHER_FILTER * 2),
        ("Query", DOCS + delimited(3, QUERY_BY_VECTOR) + delimited(3, QUERY_BY_ID)),
        ("Query", DOCS + delimited(3, QUERY_BY_VECTOR + QUERY_BY_ID)),
        ("Query", DOCS + delimited(3, delimited(1, VECTOR.SerializeToString() + ID.SerializeToString()))),
        ("Query", DOCS + delimited(3, delimited(8, b"") + QUERY_BY_ID)),
        ("Query", DOCS + delimited(2, delimited(4, b"") * 2)),
        ("Query", DOCS + delimited(2, delimited(9, b""))),
        ("Query", DOCS + delimited(16, b"")),
        ("Query", DOCS + delimited(3, delimited(13, b""))),
        ("Query", DOCS + b"\x28\x01"),  # the filter as a number
        ("Query", DOCS + delimited(6, delimited(7, b""))),
        ("Query", DOCS + delimited(6, delimited(6, b"") * 2)),
        ("Upsert", DOCS + delimited(3, delimited(2, b""))),
        ("Upsert", DOCS + delimited(3, delimited(3, delimited(1, b"a") * 2))),
        ("Upsert", DOCS + delimited(3, delimited(3, delimited(1, b"tenant") + delimited(2, b"\x22\x04acme\x28\x01")))),
        ("Delete", DOCS + delimited(3, delimited(2, b"") + delimited(1, b"\x0a\x02\x08\x01"))),
        ("Delete", DOCS + delimited(3, delimited(2, b"")) + delimited(3, delimited(1, b"\x0a\x02\x08\x01"))),
        ("UpdateBatch", DOCS + delimited(3, delimited(9, delimited(1, b"\x12\x00")) + delimited(10, b""))),
        ("DeletePayload", DOCS + delimited(5, b"\x12\x00") + delimited(3, b"tenant\xff")),
    ],
)
def test_nothing_hides_where_readers_differ(name: str, message: bytes) -> None:
    with pytest.raises((BadRequest, Unconfined)):
        confined(name, message)


@pytest.mark.parametrize(("name", "message", "says"), [
    ("Upsert", DOCS + delimited(3, MARK + OTHER_MARK), "A payload's key is there twice"),
    ("Upsert", DOCS + delimited(3, MARK * 2), "A payload's key is there twice"),
    ("Query", DOCS + delimited(99, b""), "Malformed message: field 99 of QueryPoints is not known here"),
])  # fmt: skip
def test_a_refusal_says_where_readers_differ(name: str, message: bytes, says: str) -> None:
    with pytest.raises(BadRequest, match=f"^{says}$"):
        confined(name, message)


def test_a_list_of_values_is_not_multiplied_without_end() -> None:
    groups = (Confinement((Condition("group", tuple(f"g{number}" for number in range(1000))),)),)
    for count in (200, 201):
        content = pb.SearchBatchPoints(collection_name="docs", search_points=[pb.SearchPoints()] * count)
        if count == 200:
            assert confine_message(method("SearchBatch"), content.SerializeToString(), groups)
            continue
        with pytest.raises(BadRequest, match=r"^Too many queries or operations at once"):
            confine_message(method("SearchBatch"), content.SerializeToString(), groups)


def test_two_conditions_on_one_key() -> None:
    """As on REST: what meets both cannot be written where they differ, and is marked once where they do not."""
    request = pb.UpsertPoints(points=[pb.PointStruct()])
    with pytest.raises(Unconfined):
        confined("Upsert", request, DIFFERING)
    with pytest.raises(Unconfined):
        confined("SetPayload", pb.SetPayloadPoints(points_selector=SELECTOR), DIFFERING)
    content = pb.UpsertPoints(collection_name="docs", points=[pb.PointStruct()]).SerializeToString()
    assert confine_message(method("Upsert"), content, ACME * 2).count(MARK) == 1


def test_depth_is_bounded() -> None:
    def nested(depth: int) -> bytes:
        message = b""
        for _ in range(depth):
            message = delimited(1, message)
        return DOCS + message.replace(b"\x0a", b"\x12", 1)

    deep = MAX_DEPTH - 5  # google.protobuf counts the filter's messages, too
    innermost = confined("Query", nested(deep))
    for _ in range(deep):
        assert innermost.filter == ONLY
        (innermost,) = innermost.prefetch
    assert innermost.filter == ONLY
    assert confine_message(method("Query"), nested(MAX_DEPTH), ACME)
    for depth in (MAX_DEPTH + 1, 5000):
        with pytest.raises(BadRequest, match=r"^Malformed message: messages are nested too deeply$"):
            confined("Query", nested(depth))
    many = delimited(2, delimited(1, b"")) * 200  # each of a batch may go as deep again
    assert len(confined("Query", DOCS + many).prefetch) == 200
    with pytest.raises(BadRequest, match="nested too deeply"):
        confined("Query", DOCS + many + nested(MAX_DEPTH + 1).removeprefix(DOCS))


def test_what_is_looked_at_is_bounded() -> None:
    """The fields of messages within count as well."""

    def written(message: bytes) -> bytes:
        return at_once(confined_message(method("Upsert"), "docs", message, (), FACTS, fields=600)).content

    points = delimited(3, b"") * 599
    assert len(written(DOCS + points)) == len(DOCS + points) + 2
    for message in (DOCS + points + delimited(3, b""), DOCS + delimited(3, delimited(1, b"")) * 300):
        with pytest.raises(ProtobufError, match=r"^too many fields$"):
            written(message)


def test_memory_is_asked_for_the_messages_that_are_open() -> None:
    """For a nested one beside that around it, and no longer for the one before."""
    reading = Reading()
    assert reading.begin(bytes(SMALL)) is None
    assert reading.begin(bytes(SMALL + 1)) == COPIES * (2 * SMALL + 1)
    reading.end(bytes(SMALL))
    assert reading.memory == COPIES * (SMALL + 1)
    each = pb.QueryPoints(collection_name="docs", query=pb.Query(nearest=VECTOR), using="v" * SMALL).SerializeToString()
    batch = DOCS + delimited(2, each) * 3
    outer, *nested = list(confining(method("QueryBatch"), "docs", batch, ACME, FACTS))
    assert outer == COPIES * len(batch)
    assert nested == [COPIES * (len(batch) + len(each)) + FIELD * read for read in (2, 2 + 6, 2 + 12)]


def test_a_message_of_many_fields_is_confined_in_steps() -> None:
    points = DOCS + delimited(3, b"") * (3 * STEP - 1)
    asked = [one for one in confining(method("Upsert"), "docs", points, ACME) if one is not None]
    assert asked == [COPIES * len(points) + FIELD * STEP * read for read in (1, 2, 3)]


def test_prefetches_of_groups_are_as_exact_as_the_groups() -> None:
    """Before and after a prefetch, which is not exact of itself."""
    request = pb.QueryPointGroups(prefetch=[pb.PrefetchQuery(query=pb.Query(nearest=VECTOR))] * 2)
    found = confined("QueryGroups", request)
    assert [one.params.exact for one in (found, *found.prefetch)] == [True] * 3
    apart = confined("Query", pb.QueryPoints(prefetch=[pb.PrefetchQuery(query=pb.Query(nearest=VECTOR))]))
    assert [one.params.exact for one in (apart, *apart.prefetch)] == [False] * 2


def test_a_vectors_name_that_is_no_text_is_left_to_qdrant() -> None:
    name = delimited(4, b"\xff")
    assert name in confine_message(method("Query"), DOCS + delimited(3, QUERY_BY_VECTOR) + name, ACME)


# As on REST


def rest(path: str, body: dict[str, Any]) -> Confined:
    return at_once(confine(recognise("POST", f"/collections/docs/points/{path}"), body, TWO, FACTS))


conditions: st.SearchStrategy[Any] = st.sampled_from(
    [
        models.FieldCondition(key="b", match=models.MatchValue(value=1)),
        models.FieldCondition(key="tenant", match=models.MatchValue(value="other")),
        models.HasIdCondition(has_id=[1, 2]),
        models.IsEmptyCondition(is_empty=models.PayloadField(key="b")),
    ]
)
filters = st.builds(
    models.Filter,
    must=st.none() | st.lists(conditions, min_size=1, max_size=2),
    should=st.none() | st.lists(conditions, min_size=1, max_size=2),
    must_not=st.none() | st.lists(conditions, min_size=1, max_size=2),
)


@pytest.mark.fuzz
@given(filters)
def test_both_apis_narrow_a_filter_alike(own: models.Filter) -> None:
    request = pb.ScrollPoints(collection_name="docs", filter=RestToGrpc.convert_filter(own))
    body = json.loads(own.model_dump_json(exclude_none=True))
    narrowed = GrpcToRest.convert_filter(confined("Scroll", request, TWO).filter)
    assert without_empty(narrowed) == without_empty(models.Filter(**rest("scroll", {"filter": body}).body["filter"]))


def without_empty(value: Any) -> Any:
    """An empty list of conditions is none: the client's conversions have either."""
    if isinstance(value, models.Filter):
        value = json.loads(value.model_dump_json(exclude_none=True))
    if isinstance(value, list):
        return [without_empty(one) for one in value]
    return {key: without_empty(one) for key, one in value.items() if one != []} if isinstance(value, dict) else value


QUERIES: list[Any] = [
    models.NearestQuery(nearest=[0.5]),
    models.NearestQuery(nearest=[[0.5]]),
    models.NearestQuery(nearest=models.SparseVector(indices=[1], values=[0.5])),
    models.NearestQuery(nearest=models.Document(text="x", model="m")),
    models.NearestQuery(nearest=[0.5], mmr=models.Mmr(diversity=0.5)),
    models.NearestQuery(nearest=1),
    models.NearestQuery(nearest=1, mmr=models.Mmr(diversity=0.5)),
    models.NearestQuery(nearest="5c56c793-69f3-4fbf-87e6-c4bf54c28c26"),
    models.TextQuery(text="x"),
    models.FusionQuery(fusion=models.Fusion.RRF),
    models.RrfQuery(rrf=models.Rrf(k=2)),
    models.OrderByQuery(order_by="a"),
    models.SampleQuery(sample=models.Sample.RANDOM),
    models.FormulaQuery(formula=models.SumExpression(sum=["$score", 1.0])),
    models.RecommendQuery(recommend=models.RecommendInput(positive=[[0.5], 3], negative=[1, 3])),
    models.RecommendQuery(recommend=models.RecommendInput(positive=[[0.5]])),
    models.DiscoverQuery(discover=models.DiscoverInput(target=[0.5], context=[])),
    models.DiscoverQuery(discover=models.DiscoverInput(target=9, context=[models.ContextPair(positive=1, negative=2)])),
    models.ContextQuery(context=models.ContextPair(positive=1, negative=2)),
    models.RelevanceFeedbackQuery(
        relevance_feedback=models.RelevanceFeedbackInput(
            target=4,
            feedback=[models.FeedbackItem(example=2, score=0.5)],
            strategy=models.NaiveFeedbackStrategy(naive=models.NaiveFeedbackStrategyParams(a=1.0, b=1.0, c=1.0)),
        )
    ),
]


@rows("query", QUERIES, ids=str)
def test_both_apis_confine_the_same_queries(query: Any) -> None:
    body = {"query": json.loads(query.model_dump_json(exclude_none=True))}
    request = pb.QueryPoints(collection_name="docs", query=RestToGrpc.convert_query(query))
    by_rest = rest("query", body)
    made = at_once(confining(method("Query"), "docs", request.SerializeToString(), TWO, FACTS))
    by_grpc = pb.QueryPoints.FromString(made.content)
    assert by_grpc.query == request.query
    assert made.questions == by_rest.questions
    assert by_grpc.HasField("params") is ("params" in by_rest.body)
    if by_grpc.HasField("params"):
        params = models.SearchParams(**by_rest.body["params"])
        assert by_grpc.params.quantization.rescore is bool(params.quantization and params.quantization.rescore)
        assert by_grpc.params.HasField("idf") is (params.idf is not None)
