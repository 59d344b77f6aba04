"""Steps of the demo: a line with a tick or a cross for each, and a count of failures."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from grpc import RpcError, StatusCode
from qdrant_client.http.exceptions import UnexpectedResponse

from tlsproxy.errors import TlsproxyError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_FORBIDDEN = 403


class StepError(TlsproxyError):
    """An unexpected result of a step."""


class Step:
    """A running step; ``result`` is printed behind its title."""

    def __init__(self) -> None:
        self.result = ""


class Report:
    """Prints each step when it ends; ``failed`` counts the crosses."""

    def __init__(self) -> None:
        self.failed = 0

    @contextmanager
    def step(self, title: str) -> Iterator[Step]:
        step = Step()
        try:
            yield step
        except Exception as error:  # noqa: BLE001 - any failure is a cross, and exit status 1
            self.failed += 1
            print(f"✗ {title}: {type(error).__name__}: {error}", flush=True)
        else:
            print(f"✓ {title}{': ' if step.result else ''}{step.result}", flush=True)


def refusal(call: Callable[[], Any]) -> str:
    """The gateway's text of refusal of ``call``. Raises StepError if it is not refused with 403."""
    try:
        call()
    except UnexpectedResponse as error:
        if error.status_code != _FORBIDDEN:
            raise StepError(f"expected 403, got {error.status_code}: {error.content!r}") from error
        return f"403 {error.content.decode(errors='replace')}"
    except RpcError as error:
        ended: Any = error  # the error is the call as well, which its type does not say
        if ended.code() is not StatusCode.PERMISSION_DENIED:
            raise StepError(f"expected PERMISSION_DENIED, got {ended.code()}: {ended.details()}") from error
        return f"PERMISSION_DENIED {ended.details()}"
    raise StepError("expected a refusal, but it was allowed")
