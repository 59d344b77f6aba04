"""What the tests of streams share."""

from __future__ import annotations

import asyncio


class StreamOwner:
    """Is told everything, and does nothing about it. ``lost``: how it ended."""

    def __init__(self) -> None:
        self.lost: asyncio.Future[Exception | None] = asyncio.get_running_loop().create_future()

    def pause_writing(self) -> None:
        pass

    def resume_writing(self) -> None:
        pass

    def deadline_passed(self) -> None:
        pass

    def connection_lost(self, error: Exception | None) -> None:
        self.lost.set_result(error)
