"""The table of Qdrant's messages against their descriptors, and the scanner against google.protobuf."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st
from qdrant_client import grpc as pb
from support import qdrant_messages as qdrant
from support.rows import rows

from tlsproxy.authz.access import Scope
from tlsproxy.errors import BadRequest
from tlsproxy.qdrant.grpc_decision import MAX_NAMES, collection_finder, operation_of
from tlsproxy.qdrant.grpc_nesting import NESTING
from tlsproxy.qdrant.grpc_schema import CHANGED, COLLECTION, INNER, OTHER, PARTS, REQUESTS, SHAPES
from tlsproxy.qdrant.operations import GRPC, Operation
from tlsproxy.wire.protobuf import ProtobufError, Scanner

DESCRIBED = sorted(path for path in REQUESTS if not path.startswith("/qdrant.StorageRead/"))


def described(name: str) -> Descriptor:
    """``A of a batch`` is an A; a dot leads to a message within one."""
    first, *within = name.removesuffix(" of a batch").split(".")
    descriptor: Descriptor = getattr(pb, first).DESCRIPTOR
    for one in within:
        descriptor = descriptor.nested_types_by_name[one]
    return descriptor


def test_every_method_on_a_collection_has_its_message() -> None:
    about = {row.path for row in GRPC if row.requirement.scope is Scope.COLLECTION or row.requirement.grantable}
    assert set(REQUESTS) == about
    assert {path: REQUESTS[path] for path in DESCRIBED} == {
        path: message.name for path, message in qdrant.REQUESTS.items() if path in about
    }
    files = sorted(set(REQUESTS) - set(DESCRIBED))
    assert [path for path in files if path in qdrant.REQUESTS] == []
    assert len(files) == 8


@rows("name", [*SHAPES, *PARTS])
def test_a_shape_is_what_qdrant_describes(name: str) -> None:
    shape = (SHAPES | PARTS)[name]
    if f"/qdrant.StorageRead/{name.removesuffix('Request')}" in REQUESTS:
        assert (shape.names, shape.nested) == ({1: COLLECTION}, {})
        return
    fields = {field.number: field for field in described(name).fields}
    looked_at = [shape.names.keys(), shape.nested.keys(), shape.present.keys()]
    assert sorted(fields) == sorted([*shape.skipped, *(number for numbers in looked_at for number in numbers)])
    assert {number for number, field in fields.items() if field.is_repeated} == shape.repeated
    for number in shape.names:
        assert fields[number].name in qdrant.NAMING
        assert fields[number].type == FieldDescriptor.TYPE_STRING
    for number, nested in shape.nested.items():
        assert fields[number].message_type.full_name == described(nested).full_name
    for number in shape.skipped:
        assert fields[number].name not in qdrant.NAMING
        assert fields[number].message_type is None or not qdrant.leads_to_names(fields[number].message_type)


def _within(descriptor: Descriptor, known: dict[str, Descriptor]) -> dict[str, Descriptor]:
    """Every message that can be in one of these."""
    for field in descriptor.fields:
        if field.message_type is not None and field.message_type.full_name not in known:
            known[field.message_type.full_name] = field.message_type
            _within(field.message_type, known)
    return known


def test_what_nests_without_end_is_what_qdrant_describes() -> None:
    """The messages from which one can come back to one that was there before, and the fields on the way."""
    every: dict[str, Descriptor] = {}
    for path in DESCRIBED:
        request = described(REQUESTS[path])
        every |= _within(request, {request.full_name: request})
    below = {name: _within(descriptor, {}).keys() for name, descriptor in every.items()}
    endless = {name for name in every if name in below[name]}
    deep = {name for name in every if name in endless or below[name] & endless}
    expected = {
        name.removeprefix("qdrant."): {
            field.number: field.message_type.full_name.removeprefix("qdrant.")
            for field in every[name].fields
            if field.message_type is not None and field.message_type.full_name in deep
        }
        for name in deep
    }
    batched = {name: rows for name, rows in NESTING.items() if name.endswith(" of a batch")}
    assert {name: rows for name, rows in NESTING.items() if name not in batched} == expected
    assert batched == {name: expected[name.removesuffix(" of a batch")] for name in SHAPES if name.endswith("batch")}


def test_names_are_what_they_are_taken_for() -> None:
    kinds = {name: set(shape.names.values()) for name, shape in SHAPES.items()}
    assert {name for name, kind in kinds.items() if kind == {OTHER}} == {"LookupLocation", "WithLookup"}
    assert {name for name, kind in kinds.items() if kind == {INNER}} == {
        name for name in SHAPES if name.endswith(" of a batch")
    }
    assert {name for name, kind in kinds.items() if kind == {CHANGED}} == {"CreateAlias", "RenameAlias", "DeleteAlias"}
    assert {name for name, kind in kinds.items() if not kind} == {
        *("PrefetchQuery", "ChangeAliases", "AliasOperations", "PointsUpdateOperation")
    }
    assert {name for name, shape in SHAPES.items() if set(shape.nested.values()) & {"LookupLocation", "WithLookup"}} > {
        row for path, row in REQUESTS.items() if operation(path).names_others and "Batch" not in path
    }


def operation(path: str) -> Operation:
    found = operation_of(path)
    assert found is not None
    return found


KINDS = {
    **dict.fromkeys(("LookupLocation", "WithLookup"), OTHER),
    **dict.fromkeys(("CreateAlias", "RenameAlias", "DeleteAlias"), CHANGED),
}
BATCHED = {name: name for name in pb.PointsUpdateOperation.DESCRIPTOR.fields_by_name} | {
    "upsert": "upsert_points",
    "delete": "delete_points",
}


def twin(message: Any, *, top: bool = True) -> set[tuple[str, str]]:
    """Every name in a parsed message, found by what its field is called."""
    found = set()
    kind = COLLECTION if top else KINDS.get(message.DESCRIPTOR.name, INNER)
    for field in message.DESCRIPTOR.fields:
        if field.name in qdrant.NAMING:
            found.add((kind, getattr(message, field.name)))
    for field, value in message.ListFields():
        batched = message.DESCRIPTOR.name == "PointsUpdateOperation"
        if batched:
            found.add((BATCHED[field.name.removesuffix("_deprecated")], ""))
        if field.message_type is not None and (qdrant.leads_to_names(field.message_type) or field.name == "operations"):
            for one in value if field.is_repeated else [value]:
                found |= twin(one, top=False)
    return found


def scan(message: str, pieces: list[bytes]) -> set[tuple[str, str]] | None:
    """None where it is refused."""
    scanner = Scanner(SHAPES, message, longest=255, names=1000, fields=10_000, nesting=NESTING)
    try:
        for piece in pieces:
            scanner.feed(piece)
        scanner.close()
    except ProtobufError:
        return None
    return set(scanner.found)


@pytest.mark.fuzz
@given(st.data())
def test_the_scanner_finds_what_google_protobuf_finds(data: st.DataObject) -> None:
    path = data.draw(st.sampled_from(DESCRIBED))
    message = data.draw(qdrant.messages(qdrant.REQUESTS[path]))
    content = message.SerializeToString()
    assert scan(REQUESTS[path], data.draw(qdrant.pieces(content))) == twin(message)
    assert scan(REQUESTS[path], [bytes([byte]) for byte in content]) == twin(message)


@pytest.mark.fuzz
@given(st.data())
def test_or_it_refuses(data: st.DataObject) -> None:
    path = data.draw(st.sampled_from(DESCRIBED))
    message = data.draw(qdrant.messages(qdrant.REQUESTS[path]))
    content = data.draw(qdrant.mutated(message.SerializeToString()))
    found = scan(REQUESTS[path], [content])
    assert scan(REQUESTS[path], data.draw(qdrant.pieces(content))) == found
    assert scan(REQUESTS[path], [bytes([byte]) for byte in content]) == found
    try:
        parsed = qdrant.parse(qdrant.REQUESTS[path], content)
    except DecodeError:
        return  # nor will Qdrant
    assert found in (None, twin(parsed))


QUERY = "/qdrant.Points/Query"


def named(path: str, message: Any) -> tuple[str, tuple[str, ...]]:
    reading = collection_finder(operation(path))
    reading.feed(message if isinstance(message, bytes) else message.SerializeToString())
    collection, names = reading.named()
    return collection, names.read


def lookup(name: str) -> Any:
    return pb.LookupLocation(collection_name=name)


def test_a_querys_collections() -> None:
    prefetch = pb.PrefetchQuery(prefetch=[pb.PrefetchQuery(lookup_from=lookup("b"))], lookup_from=lookup("c"))
    query = pb.QueryPoints(collection_name="a", prefetch=[prefetch, prefetch], lookup_from=lookup("d"))
    collection, others = named(QUERY, query)
    assert collection == "a"
    assert sorted(others) == ["b", "c", "d"]
    groups = pb.QueryPointGroups(
        collection_name="a", with_lookup=pb.WithLookup(collection="b"), lookup_from=lookup("c")
    )
    assert sorted(named("/qdrant.Points/QueryGroups", groups)[1]) == ["b", "c"]


@pytest.mark.parametrize("inner", ["", "a"])
def test_a_batch_is_about_its_own_collection(inner: str) -> None:
    batch = pb.QueryBatchPoints(
        collection_name="a", query_points=[pb.QueryPoints(collection_name=inner, lookup_from=lookup("b"))]
    )
    assert named("/qdrant.Points/QueryBatch", batch) == ("a", ("b",))


@rows(
    ("path", "message", "text"),
    [
        (QUERY, b"", "no collection is named"),
        (QUERY, b"\x0a\x00", "no collection is named"),
        (QUERY, pb.QueryPoints(collection_name="a", lookup_from=pb.LookupLocation()), "a lookup names no collection"),
        (QUERY, b"\x0a\x01a\x0a\x01a", "field 1 of QueryPoints is there twice"),
        (QUERY, b"\x0a\x01a\x82\x01\x00", "field 16 of QueryPoints is not known here"),
        (QUERY, b"\x0a\x01a\x72\x03\x2a\x01b", "field 5 of LookupLocation is not known here"),
        (QUERY, b"\x0a\x01\xff", "a name is not UTF-8"),
        (QUERY, b"\x0a\x80\x02" + b"a" * 256, "field 1 of QueryPoints has more than 255 bytes"),
        (QUERY, b"\x08\x01", "field 1 of QueryPoints has another type"),
        (QUERY, b"\x0a\x01", "the message ends within a field"),
        (
            "/qdrant.Points/SearchBatch",
            pb.SearchBatchPoints(collection_name="a", search_points=[pb.SearchPoints(collection_name="b")]),
            "a request of a batch names another collection than the batch",
        ),
        (
            QUERY,
            pb.QueryPoints(
                collection_name="a",
                prefetch=[pb.PrefetchQuery(lookup_from=lookup(f"c{number}")) for number in range(MAX_NAMES)],
            ),
            "too many names",
        ),
    ],
)
def test_what_is_refused_and_how(path: str, message: Any, text: str) -> None:
    with pytest.raises(BadRequest, match=rf"^Malformed message: {text}$"):
        named(path, message)


@rows("path", sorted(set(REQUESTS) - set(DESCRIBED)))
def test_files_of_shards_are_a_collections(path: str) -> None:
    assert named(path, b"\x0a\x04docs") == ("docs", ())
    if not path.endswith("ReadMulti"):
        assert named(path, b"\x0a\x04docs\x10\x01\x1a\x01f") == ("docs", ())
    with pytest.raises(BadRequest):
        named(path, b"\x0a\x04docs\x32\x00")


def test_no_shape_is_unused() -> None:
    reached: set[str] = set()
    left = list(REQUESTS.values())
    while left:
        name = left.pop()
        if name not in reached:
            reached.add(name)
            left += SHAPES[name].nested.values()
    assert reached == set(SHAPES)
