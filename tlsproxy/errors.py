"""Every error that tlsproxy raises on purpose, and what a client is told when one ends its request.

A leaf of :class:`RequestError` knows its REST status, its gRPC status, the slug under which it is counted and audited,
and the form of its body. Qdrant answers in three forms, and clients depend on them: its authentication layer sends the
bare text without a content type, its handlers send JSON, its download and upload handlers send text/plain.
This module imports nothing of ours.
"""

from __future__ import annotations

from enum import Enum
from typing import ClassVar


class FailureKind(Enum):
    """The cause of a failure, and so when the same is worth trying again."""

    INPUT = "input"
    """The bytes of a file: when they change."""
    AGE = "age"
    """A date that has passed, in a file: as for INPUT. Who used the file before that goes on with it."""
    TIME = "time"
    """A clock or a date: at the ``moment`` that the error names."""
    ENVIRONMENT = "environment"
    """A resolver, a file system, descriptors, memory, other processes: after a pause, longer each time."""


class TlsproxyError(Exception):
    """The root of all of them. ``moment`` is in seconds since the epoch, and is there for ``TIME``."""

    kind: FailureKind = FailureKind.INPUT
    moment: float | None = None


class Form(Enum):
    """How the text of a refusal is put into a response body."""

    BARE = "bare"
    JSON = "json"
    TEXT = "text"
    EMPTY = "empty"


class GrpcStatus(Enum):
    """The gRPC status codes that we send (grpc/status.h)."""

    CANCELLED = 1
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    UNAUTHENTICATED = 16


class MaterialError(TlsproxyError):
    """A certificate, key, CA or CRL file that cannot be used. ``path`` names the file the reason is about."""

    def __init__(
        self, path: str, text: str, kind: FailureKind = FailureKind.INPUT, moment: float | None = None
    ) -> None:
        super().__init__(f"{path}: {text}")
        self.path = path
        self.text = text
        self.kind = kind
        self.moment = moment


class RequestError(TlsproxyError):
    """A request that ends here. ``str(error)`` is the text that the client is shown."""

    status: ClassVar[int] = 500
    grpc: ClassVar[GrpcStatus] = GrpcStatus.INTERNAL
    reason: ClassVar[str] = "internal"
    form: ClassVar[Form] = Form.JSON


class BadRequest(RequestError):
    """Not a request of the strict subset of HTTP/1.1 that we accept (RFC 9112), or not one that we can name."""

    status = 400
    grpc = GrpcStatus.INVALID_ARGUMENT
    reason = "bad_request"


class HeadTooLarge(BadRequest):
    status = 431
    reason = "head_too_large"


class UpgradeRefused(BadRequest):
    reason = "upgrade_refused"


class VersionRefused(BadRequest):
    status = 505
    reason = "http_version"


class ExpectationFailed(BadRequest):
    status = 417
    reason = "expectation"


class BodyTooLarge(RequestError):
    """Qdrant answers an oversized JSON body with 400, not 413 (semantics of actix's Json extractor there)."""

    status = 400
    grpc = GrpcStatus.RESOURCE_EXHAUSTED
    reason = "body_too_large"


class UnexpectedBody(BadRequest):
    """A body on a route that asks for no credential: no caller is accountable for it."""

    reason = "unexpected_body"

    def __init__(self) -> None:
        super().__init__("This route takes no body")


class RoleBodyTooLarge(BodyTooLarge):
    """Larger than a role may send, which Qdrant does not know: HTTP's own status."""

    status = 413
    reason = "role_body_too_large"

    def __init__(self, limit: int) -> None:
        super().__init__(f"The body is larger than the caller's role may send (limit: {limit} bytes)")


class Unconfined(RequestError):
    """What a caller may not ask for whose role confines it to some of the points."""

    status = 403
    grpc = GrpcStatus.PERMISSION_DENIED
    reason = "not_confined"

    def __init__(self, text: str) -> None:
        super().__init__(f"Forbidden: {text}")


class CodingRefused(RequestError):
    """A body that must be read, in a content coding that is not read here."""

    status = 415
    grpc = GrpcStatus.UNIMPLEMENTED
    reason = "content_coding"


class RequestTimeout(RequestError):
    status = 408
    grpc = GrpcStatus.DEADLINE_EXCEEDED
    reason = "client_timeout"


class ReaderTooSlow(RequestTimeout):
    """The client does not take its answer."""

    reason = "client_stalled"


class RightLost(RequestError):
    """What was allowed when it began, and would not be now. ``reason`` is that of the connection's end."""

    status = 403
    grpc = GrpcStatus.PERMISSION_DENIED

    def __init__(self, reason: str) -> None:
        super().__init__(f"The right to this has ended: {reason}")
        self.reason = reason  # type: ignore[misc]


class UpstreamUnreachable(RequestError):
    status = 502
    grpc = GrpcStatus.UNAVAILABLE
    reason = "upstream_unreachable"


class UpstreamBroken(RequestError):
    """The upstream closed before its response, or sent what is not HTTP/1.1."""

    status = 502
    grpc = GrpcStatus.UNAVAILABLE
    reason = "upstream_broken"


class UpstreamChanged(RequestError):
    """It ran for too long at an upstream that is not the present one."""

    status = 503
    grpc = GrpcStatus.UNAVAILABLE
    reason = "upstream_changed"


class UpstreamTimeout(RequestError):
    status = 504
    grpc = GrpcStatus.DEADLINE_EXCEEDED
    reason = "upstream_timeout"


class Overloaded(RequestError):
    status = 503
    grpc = GrpcStatus.UNAVAILABLE
    reason = "overloaded"


class NoMemory(Overloaded):
    """The budget of what is read is used up."""

    grpc = GrpcStatus.RESOURCE_EXHAUSTED


class TooLargeToRead(BodyTooLarge):
    """Reading it would take more memory than there is for all that are read."""

    reason = "inspection_too_large"

    def __init__(self, budget: int) -> None:
        super().__init__(f"Reading this takes more memory than there is for all of it (limit: {budget} bytes)")


class GaveWay(RequestError):
    """A holder waited for its own client, with more than its caller's fair share while another caller had less."""

    status = 503
    grpc = GrpcStatus.RESOURCE_EXHAUSTED
    reason = "gave_way"

    def __init__(self) -> None:
        super().__init__("This gave way to a caller that had less than its fair share; it waited for its own client")


class AuditUnavailable(RequestError):
    """A decision that cannot be written down is not carried out."""

    status = 503
    grpc = GrpcStatus.UNAVAILABLE
    reason = "audit_unavailable"
