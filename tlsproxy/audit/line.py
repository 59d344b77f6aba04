"""Audit lines: one JSON object per decision or event, which no content can split into two lines.

Qdrant's fields come first, under its names and in its order (lib/storage/src/audit.rs), so that readers of its audit
log read ours; ours follow. Fields without a value are omitted, as in Qdrant. `result` is the
decision, not the outcome (as in Qdrant): `status` and `reason` are that.

Names, paths and trace IDs are untrusted text. Everything but printable ASCII is escaped, so that no line break of any
alphabet and no control sequence of a terminal (C0, DEL, C1, bidirectional marks) gets into the file. A lone surrogate,
which strict JSON parsers refuse, becomes U+FFFD.

No key, token, vector or payload ever reaches this module, and it does no I/O.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import lru_cache
from json import JSONEncoder
from json.encoder import encode_basestring_ascii
from math import isfinite
from typing import TYPE_CHECKING, Final, Literal

from tlsproxy.wire.tracing import NO_TRACING, Tracing

if TYPE_CHECKING:
    from collections.abc import Mapping

AuthType = Literal["Certificate", "ApiKey", "Jwt", "None"]
EventKind = Literal[
    "handshake", "connection", "tcp_open", "tcp_close", "reload", "start", "stop", "audit", "lock", "unlock", "node"
]
EventResult = Literal["ok", "denied", "partial", "failed"]

TRACING_ID_LIMIT: Final = 256
"""A tracing ID of more bytes is cut to so many characters (Qdrant: audit.rs), and so are claims of tokens."""

_encode_number: Final = JSONEncoder().encode
_SURROGATE: Final = re.compile(r"[\ud800-\udfff]")
_MICROSECONDS: Final = 1_000_000
_DIGITS: Final = tuple(f"{number:03d}" for number in range(1000))
"""Three digits by look-up: a tenth of the cost of formatting."""


@dataclass(slots=True)
class Caller:
    """The caller in an audit line. Empty fields do not apply, and are omitted.

    ``subject`` is the claim of a token; if the certificate alone admits the caller, the line has the certificate's
    subject under that name. ``ca_sha256`` is the digest of the certificate's CA. ``key`` is the name of the API key or
    of the token's verifier, ``key_rights`` are its rights. ``token_rule`` matched the token's claims, ``token_role`` is
    its role, ``token_groups`` are the values of its groups' claim, which are few.
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
    token_rule: str = ""
    token_role: str = ""
    token_groups: tuple[str, ...] = ()


@dataclass(slots=True, init=False)
class Prepared:
    """The parts of an audit line that are the same for all requests with one head and caller, rendered once.

    `api` is the text of the path's field, `verdict` that of the decision, `caller_fields` that of the caller's fields.
    `probe`: an allowed health check or scrape, which has no line if it is served.
    """

    before_api: str
    before_remote: str
    before_tracing: str
    verdict: str
    caller_fields: str
    reason: str
    caller: Caller
    collection: str
    probe: bool
    api: str

    def __init__(  # noqa: PLR0913 - parts of a line, in their order
        self,
        before_api: str,
        before_remote: str,
        before_tracing: str,
        verdict: str,
        caller_fields: str,
        reason: str,
        caller: Caller,
        *,
        collection: str = "",
        probe: bool = False,
        api: str = "",
    ) -> None:
        self.before_api = before_api
        self.before_remote = before_remote
        self.before_tracing = before_tracing
        self.verdict = verdict
        self.caller_fields = caller_fields
        self.reason = reason
        self.caller = caller
        self.collection = collection
        self.probe = probe
        self.api = api

    def at(self, api: str | None) -> Prepared:
        """The same line with this path."""
        return Prepared(
            self.before_api,
            self.before_remote,
            self.before_tracing,
            self.verdict,
            self.caller_fields,
            self.reason,
            self.caller,
            collection=self.collection,
            probe=self.probe,
            api=f',"api":{json_string(api)}' if api else "",
        )

    def denied(self, error: str, reason: str) -> Prepared:
        """The same line with a refusal instead of the decision."""
        return replace(self, verdict=_verdict(error, allowed=False), reason=json_string(reason), probe=False)


@dataclass(frozen=True, slots=True)
class Refusal:
    """A refusal for `status` and the page; its audit line has more. Empty fields do not apply.

    ``operation`` is Qdrant's name, or ``handshake``, ``connection``, ``tcp``. ``identity`` is the certificate's name,
    ``presented`` that of one which a failed handshake presented, and which proves nothing.
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
    presented: str = ""


def json_string(text: str) -> str:
    """A JSON string literal in printable ASCII."""
    if not text.isascii():
        text = _SURROGATE.sub("\ufffd", text)
    return encode_basestring_ascii(text)


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
        ("auth_type", caller.auth_type),
        ("subject", caller.certificate_subject if caller.auth_type == "Certificate" else _shortened(caller.subject)),
    )
    by = _fields(
        ("key", caller.key),
        ("key_rights", _shortened(caller.key_rights)),
        ("token_subject", _shortened(caller.subject)),
        ("role", caller.role),
        ("rule", caller.rule),
        ("token_role", caller.token_role),
        ("token_rule", caller.token_rule),
        ("certificate_subject", caller.certificate_subject),
        ("certificate_sha256", caller.certificate_sha256),
        ("ca_sha256", caller.ca_sha256),
    )
    by = _groups(caller.token_groups) + by
    of_collection = _fields(("collection", collection))
    verdict = _verdict(error, allowed=allowed)
    return Prepared(
        _fields(("method", method)),
        f'{before},"remote":',
        of_collection,
        verdict,
        by,
        json_string(reason),
        caller,
        collection=collection or "",
        api=_fields(("api", api)),
    )


def _verdict(error: str | None, *, allowed: bool) -> str:
    return _fields(("result", "ok" if allowed else "denied"), ("error", error))


class Outcome:
    """The outcome of a request, which its record is.

    `when` is in seconds since the epoch. `grpc_status` is the status that the client got, None over REST. `id` is the
    gateway's request ID, `tracing` has the client's.
    """

    __slots__ = ("bytes_in", "bytes_out", "grpc_status", "id", "status", "tracing", "when")

    when: float
    id: str
    status: int
    grpc_status: int | None
    bytes_in: int
    bytes_out: int
    tracing: Tracing


def request_line(prepared: Prepared, outcome: Outcome, remote: str, duration: float, reason: str = "") -> str:
    """The line of one request, its newline included.

    `remote` is the peer's address as :func:`json_string` renders it, and maybe :func:`members` behind it (once for each
    connection), `duration` seconds.
    `reason` replaces the decision's if the request failed after it.
    """
    tracing = outcome.tracing
    tracing_id = trace = grpc = ""
    if tracing is not NO_TRACING:
        if tracing.tracing_id:
            tracing_id = f',"tracing_id":{json_string(_shortened(tracing.tracing_id))}'
        trace = f',"trace_id":"{tracing.trace_id}"' if tracing.trace_id else ""
    if outcome.grpc_status is not None:
        grpc = f',"grpc_status":{outcome.grpc_status}'
    when, took = int(outcome.when * _MICROSECONDS), int(duration * _MICROSECONDS)
    return (
        f'{{"timestamp":"{_until(when // 1000)}{_DIGITS[when % 1000]}Z"{prepared.before_api}{prepared.api}'
        f"{prepared.before_remote}{remote}"
        f'{prepared.before_tracing}{tracing_id}{prepared.verdict}{prepared.caller_fields},"request_id":"{outcome.id}"{trace}'
        f',"status":{outcome.status}{grpc},"bytes_in":{outcome.bytes_in},"bytes_out":{outcome.bytes_out}'
        f',"duration_ms":{took // 1000}.{_DIGITS[took % 1000]}'
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
    """The line of an event that is not a request, its newline included. `remote` is the bare address here.

    The fields of `detail` are on the same level as the others, so that `certificate_sha256` has one name in all kinds
    of lines. They never replace another field.
    """
    own = {"remote": remote, "result": result, "event": event, "reason": reason}
    names = {"timestamp", *own}
    fields = _fields(*own.items())
    for name, value in detail.items():
        if name not in names:
            fields += f",{json_string(name)}:{_value(value)}"
    return f'{{"timestamp":"{timestamp(when)}"{fields}}}\n'


def timestamp(when: float) -> str:
    """RFC 3339, UTC, microseconds."""
    millisecond, microsecond = divmod(int(when * _MICROSECONDS), 1000)
    return f"{_until(millisecond)}{_DIGITS[microsecond]}Z"


@lru_cache(maxsize=4)
def _until(millisecond: int) -> str:
    """Memoized: under load many requests share a millisecond."""
    second, rest = divmod(millisecond, 1000)
    return f"{_second(second)}.{_DIGITS[rest]}"


@lru_cache(maxsize=4)
def _second(second: int) -> str:
    """Memoized: it would be the larger part of a line's cost."""
    return datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%M:%S")


def members(fields: Mapping[str, str]) -> str:
    """Members of an object, each with a comma before it, as JSON."""
    return _fields(*fields.items())


def _fields(*fields: tuple[str, str | None]) -> str:
    return "".join(f',"{name}":{json_string(value)}' for name, value in fields if value)


def _groups(groups: tuple[str, ...]) -> str:
    return f',"token_groups":[{",".join(map(json_string, groups))}]' if groups else ""


def _shortened(text: str) -> str:
    if len(text.encode("utf-8", "surrogatepass")) > TRACING_ID_LIMIT:
        return text[:TRACING_ID_LIMIT]
    return text


def _value(value: str | int | float) -> str:  # noqa: PYI041 - compiled, an int that is passed as a float becomes one
    """JSON has no infinity and no NaN (RFC 8259 §6)."""
    if isinstance(value, str):
        return json_string(value)
    return _encode_number(value) if isfinite(value) else "null"
