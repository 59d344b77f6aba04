"""Responses made by the gateway: refusals with Qdrant's status, body and form, and its own answers."""

from __future__ import annotations

import time
from email.utils import formatdate
from functools import lru_cache
from http import HTTPStatus
from typing import Final

from tlsproxy.errors import Form, error_body

CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"
"""Response to `expect: 100-continue`, before the body is sent (RFC 9110 §10.1.1)."""

_CONTENT_TYPE = {
    Form.JSON: b"content-type: application/json\r\n",
    Form.TEXT: b"content-type: text/plain; charset=utf-8\r\n",
    Form.BARE: b"",
    Form.EMPTY: b"",
}


def refused(status: int, text: str, form: Form, retry_after: int) -> tuple[bytes, bytes]:
    """Refusal as (header lines, body).

    A 503 always has `retry-after`, at least 1; other statuses have it where ``retry_after`` is not 0.
    """
    fields = _CONTENT_TYPE[form]
    if retry_after or status == HTTPStatus.SERVICE_UNAVAILABLE:
        fields += b"retry-after: %d\r\n" % (retry_after or 1)
    if form is Form.JSON:
        return fields, error_body(text)
    return fields, b"" if form is Form.EMPTY else text.encode()


def response(status: int, fields: bytes, body: bytes, *, close: bool, to_head: bool) -> bytes:
    """Head and body. ``to_head``: the head alone, with the body's length, for HEAD (RFC 9110 §9.3.2)."""
    head = b"HTTP/1.1 %d %b\r\n%bcontent-length: %d\r\ndate: %b\r\n%b\r\n" % (
        status,
        HTTPStatus(status).phrase.encode(),
        fields,
        len(body),
        _date(int(time.time())),
        b"connection: close\r\n" if close else b"",
    )
    return head if to_head else head + body


@lru_cache(maxsize=1)
def _date(second: int) -> bytes:
    return formatdate(second, usegmt=True).encode()
