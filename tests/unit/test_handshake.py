from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import orjson

from tlsproxy.proxy.frontend.handshake import AcceptedConnection


def test_a_session_that_is_resumed_all_the_same_is_ended() -> None:
    """Where the C library cannot be told to keep none: nobody is let in whose certificate was not verified now."""
    lines: list[str] = []
    closed: list[float] = []
    reception = AcceptedConnection.__new__(AcceptedConnection)
    reception.address = "192.0.2.1"
    reception.entry = None
    reception.stream = SimpleNamespace(close=closed.append)  # type: ignore[assignment]
    reception._opened = 0.0
    reception._gateway = SimpleNamespace(  # type: ignore[assignment]
        metrics=SimpleNamespace(handshake=lambda *_: None, refused=lambda _: None),
        audit=SimpleNamespace(write=lines.append),
    )
    tls: Any = SimpleNamespace(session_reused=True, get_verified_chain=list)
    reception.handshake_done(tls)
    assert reception.entry is None
    assert len(closed) == 1
    reception._session = None
    reception.drain()
    assert len(closed) == 2, "a drain waits for no client that was refused"
    (line,) = map(orjson.loads, lines)
    assert (line["event"], line["result"], line["reason"]) == ("handshake", "denied", "session_resumed")
