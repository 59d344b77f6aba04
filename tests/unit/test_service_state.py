"""The state that operators ask for: what takes as long as thousands of roles, locks and inputs do is no loop's work."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from snapshot_site import site

from tlsproxy.admin.readiness import Readiness
from tlsproxy.service.state import ServiceState


def test_status_and_the_result_of_a_reload_are_put_together_beside_the_loop(tmp_path: Path) -> None:
    generation = site(tmp_path).build()
    makers: list[int] = []

    def noting(value: Any) -> Callable[..., Any]:
        def asked(*_: object) -> Any:
            makers.append(threading.get_ident())
            return value

        return asked

    async def given(value: Any) -> Any:
        return value

    served = SimpleNamespace(
        generation=generation,
        ready=lambda: given(Readiness({}, {})),
        figures=lambda _subject: given({"decisions": {"slots": []}}),
    )
    reloader = SimpleNamespace(
        warnings=noting(()),
        status=noting({}),
        reload=lambda *_, **__: given(None),
        lifetimes=(),
        faults=(),
        last=SimpleNamespace(result="ok"),
    )
    told = SimpleNamespace(status=noting(None))
    state = ServiceState(
        served,  # type: ignore[arg-type]
        [],
        reloader,  # type: ignore[arg-type]
        key_sets=told,  # type: ignore[arg-type]
        bundles=SimpleNamespace(status=lambda: None),  # type: ignore[arg-type]
        jumps=told,  # type: ignore[arg-type]
        locks=told,  # type: ignore[arg-type]
    )

    async def run() -> None:
        assert (await state.status(""))["generation"]["number"] == generation.number
        assert (await state.reload("admin", force=False)) == {"restart_needed": (), "warnings": []}
        assert len(makers) == 8
        assert threading.get_ident() not in makers

    asyncio.run(run())
