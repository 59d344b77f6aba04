"""The lock file as an input: read apart from all others, and more often.

A lock is for the night when files are broken or hang and no CA is at hand. So it waits for no other input, and nothing
but `tlsproxy unlock` or its end lifts it: a file that is broken, unreadable, gone or lost an entry keeps what holds.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Final

from tlsproxy.config.locks import LIMIT, LockFile, lock_path, read_lock_file, write_lock_file
from tlsproxy.errors import FailureKind, MaterialError
from tlsproxy.snapshot import bounded_io
from tlsproxy.snapshot.reading import UnstableInputs, read_argument
from tlsproxy.snapshot.states import Fault, Input, InputState
from tlsproxy.text import printable
from tlsproxy.threads import in_thread

if TYPE_CHECKING:
    from pathlib import Path

JUDGED_AGAIN: Final = 5.0
"""Seconds after which a fault is judged again, for locks that are over by then."""
READ_TIMEOUT: Final = 2.0
"""Seconds for a file system to answer."""


def lock_state(file: LockFile) -> InputState[LockFile]:
    return InputState.of(file, (write_lock_file(file),))


NO_LOCKS: Final = lock_state(LockFile())


def first_locks(config_path: Path) -> InputState[LockFile]:
    """The locks of a start, none without a file. Blocks. Raises MaterialError: it is unknown who is locked."""
    path = lock_path(config_path)
    found = _outcome(path)
    if isinstance(found, MaterialError):
        raise found
    return NO_LOCKS if found is None else lock_state(read_lock_file(path, found))


class LockFileWatch:
    """``state`` are the locks that hold by the file, or did; ``fault`` is why the file is not in force as it is."""

    def __init__(self, config_path: Path, state: InputState[LockFile]) -> None:
        self.path = lock_path(config_path)
        self.state = state
        self.fault: Fault | None = None
        self._found: bytes | str | None = ""
        self._judged = float("-inf")

    @property
    def subject(self) -> Input:
        return Input("locks", str(self.path))

    async def read(self, now: float) -> bool:
        """Read the file. Whether its fault is another one. ``now`` is seconds since the epoch."""
        found = await in_thread(_outcome, self.path)
        outcome = str(found) if isinstance(found, MaterialError) else found
        judged = self.fault is None or abs(now - self._judged) < JUDGED_AGAIN
        if isinstance(found, UnstableInputs) or (outcome == self._found and judged):
            return False
        self._found, self._judged = outcome, now
        text = await in_thread(self._adopt, found, now)
        before = "" if self.fault is None else self.fault.text
        self.fault = Fault(text, FailureKind.INPUT, None, "", now, kept=True) if text else None
        return text != before

    def _adopt(self, found: bytes | MaterialError | None, now: float) -> str:
        """Take over the file's locks. The reason why they are not all in force, or that others are."""
        former, lost = self.state.value, 0
        try:
            if isinstance(found, MaterialError):
                raise found
            if found is not None:
                file = read_lock_file(self.path, found)
                merged = file.after(former, now)
                lost = len(merged.locks) - len(file.locks)
                if merged != former:
                    self.state = lock_state(merged)
        except MaterialError as error:
            holding = len(former.in_force(now))
            return f"{error}; {_counted(holding)} in force as before" if holding else str(error)
        if found is None:
            kept = [_held(len(former.in_force(now))), _drained(former)]
            text = "; ".join(filter(None, kept))
            return f"{self.path}: is gone: {text}" if text else ""
        return f"{self.path}: does not have all locks any more: {_held(lost)}" if lost else ""


def _held(locks: int) -> str:
    return f"{_counted(locks)} in force until `tlsproxy unlock`, or `tlsproxy unlock --all`" if locks else ""


def _drained(file: LockFile) -> str:
    names = ", ".join(printable(entry.node) for entry in file.drained)
    return f"drained until `tlsproxy node NAME up`: {names}" if names else ""


def _counted(locks: int) -> str:
    return f"{locks} lock{'s' * (locks != 1)}"


def _outcome(path: Path) -> bytes | MaterialError | None:
    """None where there is no file."""
    try:
        return bounded_io.answer(path, partial(lock_data, path), READ_TIMEOUT)
    except MaterialError as error:
        return error.with_traceback(None)


def lock_data(path: Path) -> bytes | None:
    """The content of a lock file; None where there is none, or a link to none. Raises MaterialError."""
    try:
        path.stat()
    except FileNotFoundError:
        return None
    except OSError:
        pass  # the reading says which
    return read_argument(path, LIMIT)
