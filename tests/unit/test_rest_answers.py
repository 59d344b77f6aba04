"""REST answers that are read whole and changed: the envelope, changes one behind the other, and what is no answer."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from tlsproxy.qdrant.rest_answers import ChangedAnswer, error_of
from tlsproxy.wire.cooperative import Steps, at_once


def doubled(result: Any) -> Steps[Any]:
    yield None
    return result * 2


def appended(result: Any) -> Steps[Any]:
    yield None
    if not isinstance(result, list):
        raise ValueError("no list")  # noqa: TRY004 - wrong as a whole
    return [*result, 3]


def test_each_change_gets_what_the_one_before_it_left() -> None:
    body = b'{"result":[1],"status":"ok","time":0.5,"usage":{"hardware":{"cpu":7}},"more":1}'
    reduced = at_once(ChangedAnswer((doubled, appended)).reducing(body))
    assert reduced == b'{"result":[1,1,3],"status":"ok","time":0.5}'


@pytest.mark.parametrize("body", [b"", b"[]", b"{}", b'{"result":[1]', b'{"result":7}', b"\x1f\x8b\x08\x00"])
def test_what_is_no_answer_is_an_error(body: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        at_once(ChangedAnswer((appended,)).reducing(body))


def test_what_cannot_be_written_again_is_an_error() -> None:
    deep = b'{"result":[%b1%b]}' % (b"[" * 300, b"]" * 300)
    with pytest.raises(ValueError, match="ecursion"):
        at_once(ChangedAnswer((appended,)).reducing(deep))


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b'{"status":{"error":"Not found"},"time":0.1,"result":{"payload":1},"usage":{}}', "Not found"),
        (b'{"status":"error"}', None),
        (b'{"status":{"error":{"payload":1}}}', None),
        (b"[]", None),
        (b"", None),
        (b'{"status":{"error":"%b"}}' % (b"x" * 65_536), None),
    ],
)
def test_of_an_error_the_text_remains(body: bytes, text: str | None) -> None:
    error = error_of(body)
    assert (orjson.loads(error)["status"] == {"error": text}) if text is not None else error == b""
