"""A response 401 or 403 of the upstream, withheld until it is known whether Qdrant refused the gateway's own key.

Then its request fails with :class:`tlsproxy.errors.UpstreamKeyRefused`: the client's credentials had no part in it.
"""

from __future__ import annotations

import re
from typing import Final, Protocol

from tlsproxy.errors import RequestError, UpstreamKeyRefused
from tlsproxy.proxy.upstream.collected_response import CollectedResponse
from tlsproxy.qdrant.own_key import LONGEST, refuses_request
from tlsproxy.wire.content_coding import decoding
from tlsproxy.wire.cooperative import at_once
from tlsproxy.wire.http1_response import ResponseHead

_CODING: Final = re.compile(rb"^content-encoding:[ \t]*([!-~]+)[ \t]*\r$", re.IGNORECASE | re.MULTILINE)


class Responded(Protocol):
    """A request, as far as its response goes."""

    def response_head(self, head: ResponseHead) -> None: ...
    def response_body(self, data: bytes) -> None: ...
    def response_done(self) -> None: ...
    def upstream_lost(self, error: RequestError, *, stale: bool, answered: bool) -> None: ...


class DeniedResponse:
    """``raw``: the body as it came; None once it has been passed on to the request, with all that follows."""

    __slots__ = ("_collected", "_head", "_raw", "_refused", "_request")

    def __init__(self, request: Responded, head: ResponseHead) -> None:
        self._request = request
        self._head = head
        self._collected = CollectedResponse()
        self._collected.begin(head)
        self._raw: bytes | None = b""
        self._refused = False

    def body(self, data: bytes) -> None:
        """Raises ValueError for chunks that are none."""
        if self._raw is None:
            self._request.response_body(data)
            return
        self._raw += data
        self._collected.feed(data)
        if self._collected.complete or len(self._raw) > 2 * LONGEST:
            self._judge(self._raw)

    def _judge(self, raw: bytes) -> None:
        """Passed on while the connection is still the request's: the client may pause it."""
        self._raw = None
        self._refused = refuses_request(self._head.status, self._plain_content())
        if not self._refused:
            self._request.response_head(self._head)
            self._request.response_body(raw)

    def _plain_content(self) -> bytes:
        """The decoded body; empty for one in a coding that is not read, or too large to be a refusal of the key."""
        coding = _CODING.search(self._head.fields)
        try:
            return bytes(at_once(decoding(self._collected.content, coding and coding[1].decode(), LONGEST)))
        except RequestError:
            return b""

    def done(self) -> None:
        if self._refused:
            self._request.upstream_lost(UpstreamKeyRefused(), stale=False, answered=False)
        else:
            self._request.response_done()

    @property
    def answered(self) -> bool:
        """Whether the request has had the beginning of the response."""
        return self._raw is None and not self._refused
