"""SIGABRT: what a process hears that is about to be killed since it does not answer, from our supervisor or systemd.

Python runs a signal's handler between two bytecodes of the main thread, even while the event loop is busy in one
callback. (``add_signal_handler`` would wait for the loop.)
"""

from __future__ import annotations

import os
import signal
from types import FrameType
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from tlsproxy.audit.log import AuditLog, NoAudit

WRITING: Final = 2.0
"""Seconds in which the audit lines that wait are written."""
_EXIT: Final = 128 + signal.SIGABRT
"""As a shell tells it. No core is dumped: it would hold private keys."""


def write_out_and_end(audit: AuditLog | NoAudit) -> None:
    """Sets the handler of SIGABRT: it writes waiting audit lines for at most :data:`WRITING` seconds, then exits."""

    def handle(_number: int, _frame: FrameType | None) -> None:
        try:
            audit.write_out(WRITING)
        finally:
            os._exit(_EXIT)

    signal.signal(signal.SIGABRT, handle)
