"""Qdrant's gRPC messages as its client library describes them: random ones, mutations, and what they name."""

from __future__ import annotations

from functools import cache
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message_factory import GetMessageClass
from hypothesis import strategies as st
from qdrant_client.grpc import collections_service_pb2, points_service_pb2, snapshots_service_pb2

SERVICES = (collections_service_pb2, points_service_pb2, snapshots_service_pb2)
REQUESTS: dict[str, Descriptor] = {
    f"/{service.full_name}/{method.name}": method.input_type
    for module in SERVICES
    for service in module.DESCRIPTOR.services_by_name.values()
    for method in service.methods
}
"""The request of each method, by its path."""
RESPONSES: dict[str, Descriptor] = {
    f"/{service.full_name}/{method.name}": method.output_type
    for module in SERVICES
    for service in module.DESCRIPTOR.services_by_name.values()
    for method in service.methods
}
"""The response of each."""
NAMING = frozenset({"collection_name", "collection", "alias_name", "old_alias_name", "new_alias_name"})
"""What a field is called that holds a collection's name, or an alias."""

MAX_DEPTH = 4
NAMES = ["docs", "other", "third"]
_SCALARS: dict[int, st.SearchStrategy[Any]] = {
    FieldDescriptor.TYPE_STRING: st.sampled_from(["", "docs", "tenant", "acme", "a.b", "ü"]),
    FieldDescriptor.TYPE_BOOL: st.booleans(),
    FieldDescriptor.TYPE_DOUBLE: st.floats(allow_nan=False),
    FieldDescriptor.TYPE_FLOAT: st.floats(allow_nan=False, width=32),
    FieldDescriptor.TYPE_UINT32: st.integers(0, 2**32 - 1),
    FieldDescriptor.TYPE_UINT64: st.integers(0, 2**64 - 1),
    FieldDescriptor.TYPE_INT64: st.integers(-(2**63), 2**63 - 1),
    FieldDescriptor.TYPE_INT32: st.integers(-(2**31), 2**31 - 1),
    FieldDescriptor.TYPE_ENUM: st.integers(0, 3),
}


def parse(descriptor: Descriptor, content: bytes) -> Any:
    """Raises google.protobuf's DecodeError."""
    return GetMessageClass(descriptor).FromString(content)


@cache
def leads_to_names(descriptor: Descriptor) -> bool:
    """Whether a collection can be named in it or below it."""
    left, known = [descriptor], {descriptor.full_name}
    while left:
        for field in left.pop().fields:
            if field.name in NAMING:
                return True
            if field.message_type is not None and field.message_type.full_name not in known:
                known.add(field.message_type.full_name)
                left.append(field.message_type)
    return False


@cache
def _telling(descriptor: Descriptor, also: frozenset[str]) -> list[FieldDescriptor]:
    return [
        field
        for field in descriptor.fields
        if field.name in NAMING or field.name in also or (field.message_type and leads_to_names(field.message_type))
    ]


@st.composite
def messages(
    draw: st.DrawFn, descriptor: Descriptor, also: frozenset[str] = frozenset(), *, depth: int = MAX_DEPTH
) -> Any:
    """Fields that may name collections, and those called as in ``also``, are there more often than others."""
    message = GetMessageClass(descriptor)()
    chosen = [field for field in _telling(descriptor, also) if draw(st.booleans())]
    if descriptor.fields:
        chosen += draw(st.lists(st.sampled_from(list(descriptor.fields)), max_size=2))
    for field in {field.name: field for field in chosen}.values():
        nested = field.message_type
        if nested is None:
            kind = st.sampled_from(NAMES) if field.name in NAMING else _SCALARS[field.type]
            value = draw(st.lists(kind, max_size=3)) if field.is_repeated else draw(kind)
            if field.is_repeated:
                getattr(message, field.name).extend(value)
            else:
                setattr(message, field.name, value)
        elif depth and nested.GetOptions().map_entry:
            for key in draw(st.lists(st.sampled_from(["tenant", "a", ""]), max_size=2)):
                value = draw(messages(nested.fields_by_name["value"].message_type, also, depth=depth - 1))
                getattr(message, field.name)[key].CopyFrom(value)
        elif depth and field.is_repeated:
            getattr(message, field.name).extend(draw(st.lists(messages(nested, also, depth=depth - 1), max_size=2)))
        elif depth:
            getattr(message, field.name).CopyFrom(draw(messages(nested, also, depth=depth - 1)))
    if depth == MAX_DEPTH and "collection_name" in descriptor.fields_by_name:
        message.collection_name = "docs"
    return message


OF_NO_POINT = {"Formula", "Document", "Image", "InferenceObject"}
"""A formula has conditions, which may be of ids: over the caller's own points, as in any filter."""


def messages_in(message: Any) -> list[Any]:
    """Those directly in it."""
    nested = [value for field, value in message.ListFields() if field.message_type is not None]
    return [one for value in nested for one in (value if hasattr(value, "__len__") else [value])]


def ids_in(query: Any) -> list[int]:
    """The numbers of the points that a query takes vectors of."""
    if query.DESCRIPTOR.name in OF_NO_POINT:
        return []
    return [query.num] if query.DESCRIPTOR.name == "PointId" else [n for one in messages_in(query) for n in ids_in(one)]


@st.composite
def mutated(draw: st.DrawFn, content: bytes) -> bytes:
    """Cut, doubled in part, flipped in a bit, or with something put in: once, or a few times."""
    for _ in range(draw(st.integers(1, 3))):
        begin = draw(st.integers(0, len(content)))
        end = draw(st.integers(begin, len(content)))
        way = draw(st.sampled_from(["cut", "double", "flip", "put"]))
        if way == "cut":
            content = content[:begin] + content[end:]
        elif way == "double":
            content = content[:end] + content[begin:]
        elif way == "flip" and begin < len(content):
            flipped = content[begin] ^ 1 << draw(st.integers(0, 7))
            content = content[:begin] + bytes([flipped]) + content[begin + 1 :]
        else:
            content = content[:begin] + draw(st.binary(max_size=6) | unknown_fields) + content[begin:]
    return content


@st.composite
def pieces(draw: st.DrawFn, content: bytes) -> list[bytes]:
    cuts = sorted(draw(st.lists(st.integers(0, len(content)), max_size=6)))
    return [content[begin:end] for begin, end in zip([0, *cuts], [*cuts, len(content)], strict=True)]


unknown_fields = st.sampled_from(
    [
        b"\xea\x03\x04docs",  # field 61, a string
        b"\xf8\x03\x01",  # field 63, a number
        b"\x0b\x0c",  # an empty group
        b"\x0a\x05other",
        b"\x12\x00",
        b"\x72\x07\x0a\x05other",  # field 14: lookup_from of a query
        b"\x00",
    ]
)
