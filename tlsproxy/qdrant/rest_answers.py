"""Changes of a REST answer that is read whole, for example to take hidden parts of points out of it.

Qdrant's envelope is opened once; each change gets the `result` that the one before it left. Of the envelope `status`
and `time` remain: `usage` counts what was read of points, hidden parts included.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import orjson

from tlsproxy.wire.content_coding import Content
from tlsproxy.wire.cooperative import Steps
from tlsproxy.wire.strict_json import counting, memory_of

MAX_ERROR: Final = 65_536
"""Bytes of an error that is read."""

ResultChange = Callable[[Any], Steps[Any]]
"""Changes a result, perhaps in place, and returns it. Raises ValueError if it has not the form of Qdrant's, and
:class:`tlsproxy.errors.RequestError` for the answer that the client gets instead.
"""


_ENVELOPE: Final = ("status", "time")


@dataclass(frozen=True, slots=True)
class ChangedAnswer:
    """A reducer of these changes, in their order. Errors of the upstream keep their text.

    ``memory``: bytes that the changes themselves take, until the answer is here.
    """

    changes: tuple[ResultChange, ...]
    memory: int = 0

    @property
    def hides_errors(self) -> bool:
        return False

    def reducing(self, body: Content) -> Steps[bytes]:
        """The changed answer. Raises as :data:`ResultChange`."""
        yield memory_of(body, (yield from counting(body)))
        answer = orjson.loads(body)
        if not isinstance(answer, dict) or "result" not in answer:
            raise ValueError("not Qdrant's envelope")
        yield None
        result = answer["result"]
        for change in self.changes:
            result = yield from change(result)
        yield None
        try:
            return orjson.dumps({"result": result} | {name: answer[name] for name in _ENVELOPE if name in answer})
        except orjson.JSONEncodeError as error:  # nested beyond its limit, and no ValueError
            raise ValueError(str(error)) from None


def error_of(body: Content) -> bytes:
    """An error of the upstream without anything else; empty where it is long, or has not the form of Qdrant's."""
    try:
        answer = orjson.loads(body[:MAX_ERROR])
    except orjson.JSONDecodeError:
        return b""
    status = answer.get("status") if isinstance(answer, dict) else None
    if not isinstance(status, dict) or not isinstance(status.get("error"), str):
        return b""
    return orjson.dumps({"status": {"error": status["error"]}, "time": 0.0})
