"""Max-min fair shares of a common resource: memory, upstream connections, places in a queue.

An account may use all of it while no other account wants any. Once it is used up (Bertsekas and Gallager, Data
Networks, §6.5.2):

- The next claim served is that of the account that would hold least with it; of one account, that of the holder with
  most, so that begun work ends.
- A holder that waits for its own client gives way to an account below its fair share: the newest holder of the account
  furthest above its own. A holder at work is never interrupted.
- If too many claims wait, or the waiting holders leave no room for the next claim, a claim of the account that holds
  and wants most is refused.

The fair share is the capacity, divided by the number of accounts that hold or want some of it. Example: of 256 upstream
connections A holds all, 200 of them for clients that read slowly. B asks for one: A's newest slow reader is ended.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Protocol

from tlsproxy.errors import GaveWay, RequestError

Account = tuple[str, ...]
"""Key of a caller: the kind of name, and its parts, e.g. ``("address", "192.0.2.1")``."""


class Holder(Protocol):
    """User of a share. ``give_way`` ends that use soon, not before it returns. It may be called again."""

    @property
    def waits_for_client(self) -> bool: ...
    def give_way(self, error: RequestError) -> None: ...


class _Holdings:
    """Holdings of one account: shares from oldest to newest, and waiting claims, the next to be served first."""

    __slots__ = ("held", "leaving", "shares", "waiting", "wanted")

    def __init__(self) -> None:
        self.held = 0
        self.leaving = 0
        self.wanted = 0
        self.shares: dict[Share, None] = {}
        self.waiting: list[Share] = []

    def enter(self, share: Share) -> None:
        at = len(self.waiting)
        while at and self.waiting[at - 1].size < share.size:
            at -= 1
        self.waiting.insert(at, share)


class Shares:
    """One resource. ``capacity``, ``held`` and every size are in its own unit: bytes, connections.

    ``refused`` counts claims, ``gave_way`` holders.
    """

    __slots__ = (
        "_accounts",
        "_full",
        "_held_by_waiting",
        "_leaving",
        "_most",
        "_serving",
        "_wanting",
        "capacity",
        "gave_way",
        "held",
        "refused",
        "waiting",
    )

    def __init__(self, capacity: int, most_waiting: int, full: Callable[[], RequestError]) -> None:
        """``full`` makes the error of a refused claim."""
        self.capacity = capacity
        self.held = 0
        self.waiting = self.refused = self.gave_way = 0
        self._most: Final = most_waiting
        self._full = full
        self._held_by_waiting = 0  # by those that wait for more
        self._leaving = 0
        self._accounts: dict[Account, _Holdings] = {}
        self._wanting: dict[Account, _Holdings] = {}
        self._serving = False

    def review(self) -> None:
        """Asks holders to give way that have come to wait for their clients since the last look."""
        for holdings in list(self._wanting.values()):
            self._make_room(holdings, holdings.waiting[0].wanted)
        self.serve()

    def serve(self) -> None:
        """Gives free capacity to waiting claims, in order, until the next one does not fit."""
        if self._serving:
            return
        self._serving = True
        try:
            while self._wanting:
                share = self._next
                if self.held + share.wanted > self.capacity:
                    return
                more = share.wanted
                self.withdraw(share)
                self.give(share, more)
                ready, share.ready = share.ready, None
                if ready is not None:  # else it is served before it knows that it has to wait
                    ready()
        finally:
            self._serving = False

    @property
    def _next(self) -> Share:
        return min(self._wanting.values(), key=_with_the_next).waiting[0]

    def is_at_work(self, but: Share) -> bool:
        """Whether capacity will come free: another holder gives way, or waits neither for its client nor for more."""
        shares = (share for holdings in self._accounts.values() for share in holdings.shares if share is not but)
        return any(share.leaving or not (share.wanted or share.waits_for_client) for share in shares)

    def give(self, share: Share, more: int) -> None:
        holdings = share.holdings
        if holdings is None:
            holdings = self._holdings_of(share.account)
            share.holdings = holdings
            holdings.shares[share] = None
        holdings.held += more
        share.size += more
        self.held += more

    def _holdings_of(self, account: Account) -> _Holdings:
        holdings = self._accounts.get(account)
        if holdings is None:
            holdings = self._accounts[account] = _Holdings()
        return holdings

    def take_back(self, share: Share, less: int) -> None:
        holdings = share.holdings
        if holdings is None:  # it holds nothing
            return
        holdings.held -= less
        share.size -= less
        self.held -= less
        if not share.size:
            share.holdings = None
            del holdings.shares[share]
            holdings.leaving -= share.leaving
            self._leaving -= share.leaving
            share.leaving = 0
            self._drop(share.account, holdings)

    def queue(self, share: Share, more: int, *, patient: bool) -> bool:
        """Whether there is ``more`` after all; if not, the claim waits. Raises the error of a refused claim."""
        holdings = self._holdings_of(share.account)
        self._wanting[share.account] = holdings
        holdings.enter(share)
        holdings.wanted += more
        share.wanted = more
        self.waiting += 1
        self._held_by_waiting += share.size
        self._make_room(holdings, more)
        while (last := self._one_too_many()) is not None:
            self.withdraw(last)
            self.refused += 1
            if last is share:
                raise self._full()
            last.give_way(self._full())
        self.serve()
        if share.wanted and not patient and holdings.held + more > self._fair:
            self.withdraw(share)
            self.refused += 1
            raise self._full()
        return not share.wanted

    def withdraw(self, share: Share) -> None:
        """Takes back a waiting claim."""
        holdings = self._accounts[share.account]
        holdings.waiting.remove(share)
        holdings.wanted -= share.wanted
        share.wanted = 0
        self.waiting -= 1
        self._held_by_waiting -= share.size
        if not holdings.waiting:
            del self._wanting[share.account]
            self._drop(share.account, holdings)

    def _drop(self, account: Account, holdings: _Holdings) -> None:
        if not holdings.shares and not holdings.waiting:
            del self._accounts[account]

    def _one_too_many(self) -> Share | None:
        """Claim to refuse, of the account that holds and wants most; None if none must be.

        If too many claims wait, the account's last one. If claims wait for each other (their holders leave no room for
        the next one), its second one, or its last if the second holds nothing.
        """
        stuck = self._held_by_waiting > 0 and self._held_by_waiting + self._next.wanted > self.capacity
        if not stuck and self.waiting <= self._most:
            return None
        greediest = max(self._wanting.values(), key=_holds_and_wants).waiting
        return greediest[1 if stuck and len(greediest) > 1 and greediest[1].size else -1]

    @property
    def _fair(self) -> int:
        return max(1, self.capacity // len(self._accounts))

    def _make_room(self, holdings: _Holdings, more: int) -> None:
        fair = self._fair
        lacking = self.held - self._leaving + more - self.capacity
        while lacking > 0 and holdings.held + more <= fair:
            victim = self._to_give_way(fair)
            if victim is None:
                return
            victim.leaving = victim.size
            self._accounts[victim.account].leaving += victim.size
            self._leaving += victim.size
            lacking -= victim.size
            self.gave_way += 1
            victim.give_way(GaveWay())

    def _to_give_way(self, fair: int) -> Share | None:
        above = [holdings for holdings in self._accounts.values() if _stays(holdings) > fair]
        for holdings in sorted(above, key=_stays, reverse=True):
            for share in reversed(holdings.shares):
                if not (share.leaving or share.wanted) and share.waits_for_client:
                    return share
        return None


class Share:
    """Share of one holder. ``ready`` is called once its claim is served; ``holdings``: its account's, if it has a part.

    Its maker must :meth:`release` it, once or more often. It refers to nothing afterwards, so that no large object is
    left to the garbage collector.
    """

    __slots__ = ("_shares", "account", "holder", "holdings", "leaving", "ready", "size", "wanted")

    def __init__(self, shares: Shares, account: Account, holder: Holder) -> None:
        self._shares = shares
        self.account = account
        self.holder: Holder | None = holder
        self.holdings: _Holdings | None = None
        self.size = self.wanted = self.leaving = 0
        self.ready: Callable[[], None] | None = None

    @property
    def waits_for_client(self) -> bool:
        return self.holder is not None and self.holder.waits_for_client

    def give_way(self, error: RequestError) -> None:
        if self.holder is not None:
            self.holder.give_way(error)

    def take(self, more: int, *, patient: bool = True) -> bool:
        """Whether there is ``more`` now; if not, ``ready`` will be called. Raises the error of a refused claim.

        A claim that is not ``patient`` waits only within its account's fair share.
        """
        shares = self._shares
        if shares.waiting or shares.held + more > shares.capacity:
            return shares.queue(self, more, patient=patient)
        shares.give(self, more)
        return True

    def replace(self) -> None:
        """Takes 1 beyond the capacity, in place of a share that is about to be released."""
        self._shares.give(self, 1)

    def shrink(self, size: int) -> None:
        """Gives back all beyond ``size``."""
        if size < self.size:
            self._shares.take_back(self, self.size - size)
            self._shares.serve()

    def release(self) -> None:
        """Gives all back, and takes back a waiting claim."""
        shares = self._shares
        if self.wanted:
            shares.withdraw(self)
        if self.size:
            shares.take_back(self, self.size)
        self.holder, self.ready = None, None
        if shares.waiting:
            shares.serve()


def _with_the_next(holdings: _Holdings) -> int:
    return holdings.held + holdings.waiting[0].wanted


def _holds_and_wants(holdings: _Holdings) -> int:
    return holdings.held + holdings.wanted


def _stays(holdings: _Holdings) -> int:
    return holdings.held - holdings.leaving
