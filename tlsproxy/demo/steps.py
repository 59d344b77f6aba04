"""How the demo tells what it does: one line for each step, a tick or a cross, and whether all of them held."""

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
    """A step saw something else than it should have."""


class Step:
    """A step under way. What it puts into ``saw`` stands behind its title."""

    def __init__(self) -> None:
        self.saw = ""


class Report:
    """Prints each step as it ends. ``failed`` counts the crosses."""

    def __init__(self) -> None:
        self.failed = 0

    @contextmanager
    def step(self, title: str) -> Iterator[Step]:
        step = Step()
        try:
            yield step
        except Exception as error:  # noqa: BLE001 - whatever broke is shown, the step is a cross, and the demo ends in 1
            self.failed += 1
            print(f"✗ {title}: {type(error).__name__}: {error}", flush=True)
        else:
            print(f"✓ {title}{': ' if step.saw else ''}{step.saw}", flush=True)


def refusal(call: Callable[[], Any]) -> str:
    """The text with which the gateway refuses ``call``. Raises :class:`StepError` when it does anything else."""
    try:
        call()
    except UnexpectedResponse as error:
        if error.status_code != _FORBIDDEN:
            raise StepError(f"expected 403, got {error.status_code}: {error.content!r}") from error
        return f"403 {error.content.decode(errors='replace')}"
    except RpcError as error:
        ended: Any = error  # what a stub raises is its call as well, which its type does not say
        if ended.code() is not StatusCode.PERMISSION_DENIED:
            raise StepError(f"expected PERMISSION_DENIED, got {ended.code()}: {ended.details()}") from error
        return f"PERMISSION_DENIED {ended.details()}"
    raise StepError("expected a refusal, but it was allowed")
