"""The description of a collection for a tenant: its configuration, without the numbers that count everybody's points.

Clients ask for it before their first request (LangChain and LlamaIndex check the vectors' sizes). Points, indexed
vectors, segments, updates in waiting, warnings and errors tell of all tenants, and are removed. A member that clients
require stays with a value that tells nothing: `{"segments_count": 5, "points_count": 90}` becomes
`{"segments_count": 0}`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from tlsproxy.qdrant.operations import Operation
from tlsproxy.wire.content_coding import Content
from tlsproxy.wire.cooperative import Steps
from tlsproxy.wire.protobuf import Field, delimited, fields

NAME: Final = "get_collection"
"""The operation."""
SHOWN: Final = ("status", "config", "created_at")
"""Members that are shown as they are. The status tells that points are being indexed, maybe another's: clients wait for
it.
"""
_OF_INDEX: Final = ("data_type", "params")
_OPTIMIZERS_FAIL: Final = {"error": "The administrator of this Qdrant can see it"}

# CollectionInfo
_SHOWN: Final = frozenset({1, 7, 13})
_OPTIMIZERS: Final = 2
_SCHEMA: Final = 8
_INDEX: Final = 2
"""The value of an entry of the schema, a PayloadSchemaInfo."""
_SHOWN_OF_INDEX: Final = frozenset({1, 2})
_NOT_OK: Final = b"\x08\x00" + delimited(2, _OPTIMIZERS_FAIL["error"].encode())


def is_described(operation: Operation) -> bool:
    """Whether it is answered with such a description."""
    return operation.name == NAME


def describing(result: Any) -> Steps[dict[str, Any]]:
    """The `result` over REST. Raises ValueError if it has not the form of Qdrant's."""
    if not isinstance(result, dict):
        raise ValueError("not a collection's description")  # noqa: TRY004 - wrong as a whole
    yield None
    schema = result.get("payload_schema")
    described = {name: result[name] for name in SHOWN if name in result}
    described["optimizer_status"] = "ok" if result.get("optimizer_status") == "ok" else _OPTIMIZERS_FAIL
    described["segments_count"] = 0
    described["payload_schema"] = {
        key: {name: index[name] for name in _OF_INDEX if name in index} | {"points": 0}
        for key, index in (schema.items() if isinstance(schema, dict) else ())
        if isinstance(index, dict)
    }
    return described


class DescriptionReducer:
    """The same of a GetCollectionInfoResponse."""

    __slots__ = ()

    hides_errors: Final = False

    def reducing(self, body: Content) -> Steps[bytes]:
        """``body`` is one message. Raises ValueError if it is malformed."""
        yield 2 * len(body)
        reduced = []
        for one in fields(bytes(body)):
            if one.number == 1:
                reduced.append(delimited(1, b"".join(_described(one.content()))))
            elif one.number == 2:  # noqa: PLR2004 - time
                reduced.append(one.raw)
        return b"".join(reduced)


def _described(info: bytes) -> Iterator[bytes]:
    for one in fields(info):
        if one.number in _SHOWN:
            yield one.raw
        elif one.number == _OPTIMIZERS:
            yield one.raw if one.content() == b"\x08\x01" else delimited(_OPTIMIZERS, _NOT_OK)
        elif one.number == _SCHEMA:
            yield delimited(_SCHEMA, b"".join(_of_entry(one)))


def _of_entry(entry: Field) -> Iterator[bytes]:
    for one in fields(entry.content()):
        if one.number == _INDEX:
            shown = (each.raw for each in fields(one.content()) if each.number in _SHOWN_OF_INDEX)
            yield delimited(_INDEX, b"".join(shown))
        else:
            yield one.raw
