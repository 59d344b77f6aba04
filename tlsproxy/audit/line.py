"""Audit record → line: one JSON object for each decision and each event, which nothing in it can break into two.

Qdrant's fields come first, under its names and in its order (lib/storage/src/audit.rs), so that readers of its audit
log read ours; ours follow. A field that has no value is left out, as Qdrant does. `result` says what was decided, not
whether it then succeeded (as in Qdrant): `status` and `reason` say that.

Names, paths and trace ids are a stranger's text. All that is not printable ASCII is escaped, so that neither a line
break of any alphabet nor a terminal's control sequence (C0, DEL, C1, bidirectional marks) gets into the file as
itself. A lone surrogate, which strict JSON readers refuse, becomes U+FFFD.

This module never sees a key, a token, a vector or a payload, and writes nothing anywhere.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import lru_cache
from json import JSONEncoder
from math import isfinite
from typing import TYPE_CHECKING, Final, Literal, Protocol

from tlsproxy.wire.tracing import NO_TRACING, Tracing

if TYPE_CHECKING:
    from collections.abc import Mapping

AuthType = Literal["Certificate", "ApiKey", "Jwt", "None"]
EventKind = Literal["handshake", "connection", "tcp_open", "tcp_close", "reload", "start", "stop", "audit"]
EventResult = Literal["ok", "denied", "partial", "failed"]

TRACING_ID_LIMIT: Final = 256
"""A trace id of more bytes than this is cut to as many characters (Qdrant: audit.rs), and so is what a token says."""

_encode: Final = JSONEncoder(ensure_ascii=True).encode
_SURROGATE: Final = re.compile("[\ud800-\udfff]")
_MICROSECONDS: Final = 1_000_000
_DIGITS: Final = tuple(f"{number:03d}" for number in range(1000))
"""Three at a time: a tenth of what formatting costs."""


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asked. An empty field is one that does not apply, and is left out of the line.

    ``subject`` is the claim of a token; where the certificate alone admitted its holder, Qdrant's field is its subject.
    ``ca_sha256`` is the digest of the CA that the certificate rests on.
    ``key`` is the name of an API key, or of what a token was signed with; ``key_rights`` is what that gave.
    """

    auth_type: AuthType
    role: str = ""
    rule: str = ""
    certificate_subject: str = ""
    certificate_sha256: str = ""
    ca_sha256: str = ""
    subject: str = ""
    key: str = ""
    key_rights: str = ""


@dataclass(frozen=True, slots=True)
class Prepared:
    """What is the same for every request with the same head and caller, rendered once: the text between the rest.

    `verdict` is what was decided, `caller` as whose request.
    """

    before_remote: str
    before_tracing: str
    verdict: str
    caller: str
    reason: str
    who: Caller
    collection: str = ""

    def denied(self, error: str, reason: str) -> Prepared:
        """The same request, refused after all."""
        return replace(self, verdict=_verdict(error, allowed=False), reason=json_string(reason))


@dataclass(frozen=True, slots=True)
class Refusal:
    """A refusal in short, for whoever looks now; its line has more. An empty field is one that does not apply.

    ``operation`` is Qdrant's name, or ``handshake``, ``connection``, ``tcp``. ``identity`` is the certificate's name.
    """

    when: float
    remote: str
    operation: str
    reason: str
    identity: str = ""
    key: str = ""
    rule: str = ""
    role: str = ""
    collection: str = ""


def json_string(text: str) -> str:
    """A JSON string literal in printable ASCII."""
    if not text.isascii():
        text = _SURROGATE.sub("\ufffd", text)
    return _encode(text)


def prepare(
    *,
    method: str | None,
    api: str | None,
    caller: Caller,
    collection: str | None,
    allowed: bool,
    error: str | None,
    reason: str,
) -> Prepared:
    """`method` is Qdrant's name of the operation, `api` the path without its query, `error` the text of a refusal."""
    before = _fields(
        ("method", method),
        ("api", api),
        ("auth_type", caller.auth_type),
        ("subject", caller.certificate_subject if caller.auth_type == "Certificate" else _shortened(caller.subject)),
    )
    by = _fields(
        ("key", caller.key),
        ("key_rights", _shortened(caller.key_rights)),
        ("role", caller.role),
        ("rule", caller.rule),
        ("certificate_subject", caller.certificate_subject),
        ("certificate_sha256", caller.certificate_sha256),
        ("ca_sha256", caller.ca_sha256),
    )
    said = _fields(("collection", collection))
    verdict = _verdict(error, allowed=allowed)
    return Prepared(f'{before},"remote":', said, verdict, by, json_string(reason), caller, collection or "")


def _verdict(error: str | None, *, allowed: bool) -> str:
    return _fields(("result", "ok" if allowed else "denied"), ("error", error))


class Outcome(Protocol):
    """What became of a request, and what was said of it.

    `when` is seconds since the epoch. `grpc_status` is what the client of a gRPC call was told. `id` is ours; of
    `tracing`, `said` is the client's word (Qdrant's `tracing_id`), `trace_id` one that was found well-formed.
    """

    @property
    def when(self) -> float: ...
    @property
    def id(self) -> str: ...
    @property
    def status(self) -> int: ...
    @property
    def grpc_status(self) -> int | None: ...
    @property
    def bytes_in(self) -> int: ...
    @property
    def bytes_out(self) -> int: ...
    @property
    def tracing(self) -> Tracing: ...


def request_line(prepared: Prepared, outcome: Outcome, remote: str, duration: float, reason: str = "") -> str:
    """The line of one request, its newline included.

    `remote` is the peer's address as :func:`json_string` renders it (once for each connection), `duration` seconds.
    `reason` replaces the decision's where something went wrong after it.
    """
    tracing = outcome.tracing
    said = trace = grpc = ""
    if tracing is not NO_TRACING:
        said = _fields(("tracing_id", _shortened(tracing.tracing_id)))
        trace = f',"trace_id":"{tracing.trace_id}"' if tracing.trace_id else ""
    if outcome.grpc_status is not None:
        grpc = f',"grpc_status":{outcome.grpc_status}'
    millisecond, microsecond = divmod(int(outcome.when * _MICROSECONDS), 1000)  # as `timestamp`, without its call
    took, rest = divmod(int(duration * _MICROSECONDS), 1000)
    return (
        f'{{"timestamp":"{_until(millisecond)}{_DIGITS[microsecond]}Z"{prepared.before_remote}{remote}'
        f'{prepared.before_tracing}{said}{prepared.verdict}{prepared.caller},"request_id":"{outcome.id}"{trace}'
        f',"status":{outcome.status}{grpc},"bytes_in":{outcome.bytes_in},"bytes_out":{outcome.bytes_out}'
        f',"duration_ms":{took}.{_DIGITS[rest]}'
        f',"reason":{json_string(reason) if reason else prepared.reason}}}\n'
    )


def event_line(
    *,
    when: float,
    event: EventKind,
    remote: str | None,
    result: EventResult,
    reason: str,
    detail: Mapping[str, str | int | float],
) -> str:
    """The line of what is not a request, its newline included. `remote` is the bare address here.

    The fields of `detail` stand beside the others, so that `certificate_sha256` is found under one name in every kind
    of line. They never replace one of the others.
    """
    own = {"remote": remote, "result": result, "event": event, "reason": reason}
    known = {"timestamp", *own}
    fields = _fields(*own.items())
    for name, value in detail.items():
        if name not in known:
            fields += f",{json_string(name)}:{json_string(value) if isinstance(value, str) else _number(value)}"
    return f'{{"timestamp":"{timestamp(when)}"{fields}}}\n'


def timestamp(when: float) -> str:
    """RFC 3339, UTC, microseconds."""
    millisecond, microsecond = divmod(int(when * _MICROSECONDS), 1000)
    return f"{_until(millisecond)}{_DIGITS[microsecond]}Z"


@lru_cache(maxsize=4)
def _until(millisecond: int) -> str:
    """Under load many requests share one."""
    second, rest = divmod(millisecond, 1000)
    return f"{_second(second)}.{_DIGITS[rest]}"


@lru_cache(maxsize=4)
def _second(second: int) -> str:
    """Rendered once for each second: the larger part of a line's cost otherwise."""
    return datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%M:%S")


def _fields(*fields: tuple[str, str | None]) -> str:
    return "".join(f',"{name}":{json_string(value)}' for name, value in fields if value)


def _shortened(text: str | None) -> str | None:
    if text is not None and len(text.encode("utf-8", "surrogatepass")) > TRACING_ID_LIMIT:
        return text[:TRACING_ID_LIMIT]
    return text


def _number(value: float) -> str:
    """JSON has no infinity and no NaN (RFC 8259 §6)."""
    return _encode(value) if isfinite(value) else "null"
