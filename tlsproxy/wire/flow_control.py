"""Connection flow control for one direction, including bytes that the relay itself inserts.

Windows go from end to end: what a receiver grants, its sender gets. What the relay takes out of the stream it grants
the sender itself, at once; what it puts in uses the receiver's room without the sender's knowing, and is kept back from
the receiver's next grants (``debt``). A sender that is thereby further than its receiver has to wait here.
"""

from __future__ import annotations

from collections import deque

from tlsproxy.wire.http2 import FIRST_WINDOW, MAX_WINDOW, Code, Http2Error


def overspent() -> Http2Error:
    """Error of a sender whose ``credit`` is below 0."""
    return Http2Error(Code.FLOW_CONTROL_ERROR, "more DATA than the connection's window has room for")


class InitialWindow:
    """SETTINGS_INITIAL_WINDOW_SIZE of one receiver, from its SETTINGS to their acknowledgement (RFC 9113 §6.5.3).

    ``agreed`` is by those that are acknowledged, ``least`` what a sender may use: a smaller window counts at once, a
    larger one once its receiver knows that it does.
    """

    __slots__ = ("_offered", "agreed", "least")

    def __init__(self, agreed: int = FIRST_WINDOW) -> None:
        self.agreed = self.least = agreed
        self._offered: deque[int] = deque()

    @property
    def unsettled(self) -> int:
        """How many SETTINGS are not acknowledged."""
        return len(self._offered)

    @property
    def latest(self) -> int:
        return self._offered[-1] if self._offered else self.agreed

    @property
    def most(self) -> int:
        """The most that a sender which has heard of any part of them uses."""
        return max((self.agreed, *self._offered))

    def offer(self, size: int | None) -> None:
        """SETTINGS of the receiver's, be it that they say nothing of windows."""
        self._offered.append(size if size is not None else self.latest)
        self.least = min((self.agreed, *self._offered))

    def settle(self) -> None:
        """The earliest of them that are left are acknowledged. Whoever acknowledges none changes nothing."""
        if self._offered:
            self.agreed = self._offered.popleft()
            self.least = min((self.agreed, *self._offered))

    def may_settle(self, most: int) -> bool:
        """Whether the earliest of them may be acknowledged while a sender uses up to ``most``."""
        return bool(self._offered) and most <= self._offered[0]


class Window:
    """``room`` is the connection's, ``initial`` that of a new stream, by the SETTINGS of whoever receives.

    ``credit`` is what the sender has been granted and has not used: what of it waits here is never more than the room
    and the debt.
    """

    __slots__ = ("credit", "debt", "initial", "room")

    def __init__(self) -> None:
        self.room = self.credit = FIRST_WINDOW
        self.initial = InitialWindow()
        self.debt = 0

    def for_another_sender(self) -> Window:
        """The same room of the receiver's, and the same SETTINGS, for another sender."""
        other = Window()
        other.room, other.initial = self.room, self.initial
        return other

    def begin(self, credit: int) -> int:
        """The sender has been granted ``credit`` already. What is to be granted to it now."""
        more = max(0, self.room - credit)
        self.credit = credit + more
        self.debt = self.credit - self.room
        return more

    def granted(self, size: int) -> int:
        """The receiver's WINDOW_UPDATE of the connection: what of it is the sender's. Raises Http2Error (§6.9.1)."""
        self.room += size
        if size == 0:
            raise Http2Error(Code.PROTOCOL_ERROR, "a WINDOW_UPDATE of 0")
        if self.room > MAX_WINDOW:
            raise Http2Error(Code.FLOW_CONTROL_ERROR, "a window of more than 2^31-1")
        kept = min(self.debt, size)
        self.debt -= kept
        self.credit += size - kept
        return size - kept

    def spent(self, size: int) -> None:
        """The sender has sent this much. Raises Http2Error where it may not have (§6.9.1)."""
        self.credit -= size
        if self.credit < 0:
            raise overspent()

    def given_back(self, size: int) -> None:
        """The sender has this much again, be it that it had sent it before there was this receiver."""
        self.credit += size
        self.debt = max(self.debt, self.credit - self.room)

    def own(self, size: int) -> None:
        """The relay sends this much of its own."""
        self.room -= size
        self.debt += size

    def replaced(self, size: int, own: int) -> int:
        """``own`` bytes of the relay's have gone in place of ``size`` of the sender's.

        Returns the bytes for which the receiver's grants are the sender's; the rest is to be given back.
        """
        passed = min(size, own)
        self.debt -= passed
        return passed
