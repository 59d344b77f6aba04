"""All errors that tlsproxy raises on purpose, and the response of those that end a request.

A subclass of :class:`RequestError` has its REST status, its gRPC status, the reason under which it is counted and
audited, and the form of its body. Qdrant answers in three forms, on which clients depend: its authentication layer
sends the bare text without a content type, its handlers send JSON, its download and upload handlers send text/plain.
"""

from __future__ import annotations

from enum import Enum
from typing import ClassVar

import orjson


class FailureKind(Enum):
    """The cause of a failure, which decides when to try again."""

    INPUT = "input"
    """The content of a file: when it changes."""
    AGE = "age"
    """A date in a file that has passed: as for INPUT. If the file is in force already, it stays so."""
    TIME = "time"
    """A date in the future: at the error's ``moment``."""
    ENVIRONMENT = "environment"
    """A resolver, a file system, descriptors, memory, other processes: after a pause that grows each time."""


class TlsproxyError(Exception):
    """The base of all errors. ``moment`` is in seconds since the epoch, and is set for ``TIME``."""

    kind: FailureKind = FailureKind.INPUT
    moment: float | None = None


class Form(Enum):
    """The form in which a refusal's text is put into a response body."""

    BARE = "bare"
    JSON = "json"
    TEXT = "text"
    EMPTY = "empty"


def error_body(text: str) -> bytes:
    """Response body of a refusal in Qdrant's JSON form."""
    return orjson.dumps({"status": {"error": text}, "time": 0.0})


class GrpcStatus(Enum):
    """The gRPC status codes that we send (grpc/status.h)."""

    CANCELLED = 1
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    UNAUTHENTICATED = 16


class MaterialError(TlsproxyError):
    """A certificate, key, CA or CRL file that cannot be used. ``path`` is that of the file.

    ``unmatched``: it does not belong to another file, as while both are replaced one after the other.
    """

    def __init__(
        self,
        path: str,
        text: str,
        kind: FailureKind = FailureKind.INPUT,
        moment: float | None = None,
        *,
        unmatched: bool = False,
    ) -> None:
        super().__init__(f"{path}: {text}")
        self.unmatched = unmatched
        self.path = path
        self.text = text
        self.kind = kind
        self.moment = moment


class RequestError(TlsproxyError):
    """An error that ends a request. ``str(error)`` is the text for the client."""

    status: ClassVar[int] = 500
    grpc: ClassVar[GrpcStatus] = GrpcStatus.INTERNAL
    reason: ClassVar[str] = "internal"
    form: ClassVar[Form] = Form.JSON


class BadRequest(RequestError):
    """A request outside of the strict subset of HTTP/1.1 that is accepted (RFC 9112), or with invalid content."""

    status = 400
    grpc = GrpcStatus.INVALID_ARGUMENT
    reason = "bad_request"


class HeadTooLarge(BadRequest):
    status = 431
    reason = "head_too_large"


class AmbiguousPath(BadRequest):
    """A path that could be read in two ways. To Qdrant it would be a route or a name that does not exist."""

    status = 404
    reason = "ambiguous_path"
    form = Form.EMPTY


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
    """A body on a route that needs no credential: no caller is accountable for it."""

    reason = "unexpected_body"

    def __init__(self) -> None:
        super().__init__("This route takes no body")


class RoleBodyTooLarge(BodyTooLarge):
    """A body beyond a role's limit. Qdrant has no such limit, so it is HTTP's own status."""

    status = 413
    reason = "role_body_too_large"

    def __init__(self, limit: int) -> None:
        super().__init__(f"The body is larger than the caller's role may send (limit: {limit} bytes)")


class Unconfined(RequestError):
    """A request that cannot be confined to the caller's points."""

    status = 403
    grpc = GrpcStatus.PERMISSION_DENIED
    reason = "not_confined"

    def __init__(self, text: str) -> None:
        super().__init__(f"Forbidden: {text}")


class PointMissing(RequestError):
    """A point that does not exist, or is not the caller's: which of the two is not told."""

    status = 404
    grpc = GrpcStatus.NOT_FOUND
    reason = "point_missing"


class PolicyRefused(RequestError):
    """A request beyond the query policy of the caller's role."""

    status = 403
    grpc = GrpcStatus.PERMISSION_DENIED
    reason = "query_policy"

    def __init__(self, text: str) -> None:
        super().__init__(f"Forbidden: {text}")


class CodingRefused(RequestError):
    """A body that must be read, in a content coding that is not supported."""

    status = 415
    grpc = GrpcStatus.UNIMPLEMENTED
    reason = "content_coding"


class RequestTimeout(RequestError):
    status = 408
    grpc = GrpcStatus.DEADLINE_EXCEEDED
    reason = "client_timeout"


class ReaderTooSlow(RequestTimeout):
    """The client does not read its response."""

    reason = "client_stalled"


class RightLost(RequestError):
    """A request in progress that is no longer allowed. ``reason`` is that of the connection's end."""

    status = 403
    grpc = GrpcStatus.PERMISSION_DENIED

    def __init__(self, reason: str) -> None:
        super().__init__(f"The right to this has ended: {reason}")
        self.reason = reason  # type: ignore[misc]


class UpstreamUnreachable(RequestError):
    status = 502
    grpc = GrpcStatus.UNAVAILABLE
    reason = "upstream_unreachable"

    def __init__(self, text: str = "The upstream cannot be reached") -> None:
        super().__init__(text)


class UpstreamTlsFailed(RequestError):
    """TLS with the upstream failed. Clients are not told how: the log, metrics and readiness say it."""

    status = 502
    grpc = GrpcStatus.UNAVAILABLE
    reason = "upstream_tls"

    def __init__(self) -> None:
        super().__init__("The upstream cannot be reached securely; its operator can see why")


class UpstreamBroken(RequestError):
    """The upstream closed before its response, or violated HTTP/1.1."""

    status = 502
    grpc = GrpcStatus.UNAVAILABLE
    reason = "upstream_broken"


class UpstreamKeyRefused(RequestError):
    """Qdrant refused the gateway's own API key, or wants one: no fault of the client's."""

    status = 502
    grpc = GrpcStatus.UNAVAILABLE
    reason = "upstream_key_refused"

    def __init__(self) -> None:
        super().__init__("The gateway's own key for Qdrant is missing or wrong; its operator can set it")


class UpstreamChanged(RequestError):
    """The request ran for too long at a former upstream."""

    status = 503
    grpc = GrpcStatus.UNAVAILABLE
    reason = "upstream_changed"


class UpstreamTimeout(RequestError):
    status = 504
    grpc = GrpcStatus.DEADLINE_EXCEEDED
    reason = "upstream_timeout"


class DeadlineExceeded(RequestError):
    """The client's own deadline has passed."""

    status = 504
    grpc = GrpcStatus.DEADLINE_EXCEEDED
    reason = "deadline_exceeded"

    def __init__(self) -> None:
        super().__init__("Deadline exceeded")


class Overloaded(RequestError):
    status = 503
    grpc = GrpcStatus.UNAVAILABLE
    reason = "overloaded"


class OutOfDescriptors(Overloaded):
    """The process has no file descriptor left for an upstream connection."""

    reason = "out_of_descriptors"

    def __init__(self) -> None:
        super().__init__("The gateway has too many open files to connect to the upstream")


class NoMemory(Overloaded):
    """The memory budget of bodies that are read is used up."""

    grpc = GrpcStatus.RESOURCE_EXHAUSTED


class TooLargeToRead(BodyTooLarge):
    """Reading the body would take more memory than the budget of all bodies that are read."""

    reason = "inspection_too_large"

    def __init__(self, budget: int) -> None:
        super().__init__(f"Reading this takes more memory than there is for all of it (limit: {budget} bytes)")


class GaveWay(RequestError):
    """A request that waited for its own client held more than its caller's fair share while another caller had less."""

    status = 503
    grpc = GrpcStatus.RESOURCE_EXHAUSTED
    reason = "gave_way"

    def __init__(self) -> None:
        super().__init__("This gave way to a caller that had less than its fair share; it waited for its own client")


class AuditUnavailable(RequestError):
    """A decision that cannot be audited is not carried out."""

    status = 503
    grpc = GrpcStatus.UNAVAILABLE
    reason = "audit_unavailable"
