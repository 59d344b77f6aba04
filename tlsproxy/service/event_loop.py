"""The event loop that the processes of the service run on."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

loop_factory: Callable[[], asyncio.AbstractEventLoop] | None

try:
    import uvloop
except ImportError:  # where it does not exist, asyncio's own loop does the same, slower
    loop_factory = None
else:
    loop_factory = uvloop.new_event_loop
