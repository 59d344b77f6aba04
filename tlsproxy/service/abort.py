"""SIGABRT, sent by our supervisor or systemd to a process that does not answer: it writes its audit lines and exits.

Python runs a signal handler between two bytecodes of the main thread, even while the event loop is stuck in a callback;
``add_signal_handler`` would wait for the loop.
"""

from __future__ import annotations

import os
import signal
from types import FrameType
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from tlsproxy.audit.log import AuditLog, NoAudit

WRITING: Final = 2.0
"""Seconds for writing the queued audit lines."""
_EXIT: Final = 128 + signal.SIGABRT
"""A shell's status for SIGABRT. There is no core dump: it would hold private keys."""


def write_out_and_end(audit: AuditLog | NoAudit) -> None:
    """Install the handler of SIGABRT: it writes queued audit lines for at most :data:`WRITING` seconds, and exits."""

    def handle(_number: int, _frame: FrameType | None) -> None:
        try:
            audit.write_out(WRITING)
        finally:
            os._exit(_EXIT)

    signal.signal(signal.SIGABRT, handle)
