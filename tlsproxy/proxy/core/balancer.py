"""Choice among the nodes of Qdrant: by health, requests in flight and affinity. It knows no clock and does no IO.

A node serves unless it is drained, failed its checks, or is ejected, over either of its APIs:

- An active check (`upstream.check_interval`) takes it out after :data:`FALL` failures in a row, and in after
  :data:`RISE` good ones.
- :data:`FAILURES` requests that fail in a row eject it for 1 s, then 2, 4, … 60 s. Failures of requests that were under
  way meanwhile do not count; the first one after it counts alone. A success ends all of that.
- Where no node serves, those do whose checks succeed, else all: nothing takes the last one away but draining it. In
  turn, so that the first one that answers again is soon found.
- One with all the connections that it may have is not chosen: where all are full, requests wait.

A node that comes back starts slowly: it takes part in a share of the choices that grows over :data:`SLOW_START`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Sequence
from hashlib import blake2b
from typing import Any, Final, Literal, Protocol, get_args

from tlsproxy.config.model import HttpProtocol
from tlsproxy.memo import Memo
from tlsproxy.proxy.limits.fair_shares import Account
from tlsproxy.snapshot.nodes import Node, Upstream

FAILURES: Final = 3
FALL: Final = 2
RISE: Final = 2
FIRST_PAUSE: Final = 1.0
LONGEST_PAUSE: Final = 60.0
SLOW_START: Final = 10.0
LEAST_SHARE: Final = 0.1
RANKINGS: Final = 4096
"""Callers whose order of nodes is remembered."""

Condition = Literal["drained", "up", "ejected", "down"]
"""down: by its checks. ejected: by requests that failed."""
CONDITIONS: Final[tuple[Condition, ...]] = get_args(Condition)
"""All of them, the worst last."""
_OUT: Final = frozenset[Condition](("down", "ejected"))


class Api:
    """Health of one API of a node. ``failures`` of requests in a row; ``until``: the end of an ejection; ``up`` by its
    checks, of which ``against`` in a row say the contrary. ``fault``: why TLS with it failed at the last check.
    """

    __slots__ = ("against", "failures", "fault", "pause", "until", "up")

    def __init__(self) -> None:
        self.failures = self.against = 0
        self.pause = 0.0
        self.until = float("-inf")
        self.up = True
        self.fault = ""


class NodeUser(Protocol):
    """A connection that stays at its node. ``out``: the node serves no more, and another one does."""

    def out(self) -> None: ...


class NodeState:
    """A node of the present generation, or a former one (``gone``) as long as something refers to it.

    ``in_flight``: requests and calls under way. ``connections``: those in use. ``since``: when it came, or comes, back.
    ``users`` are told when it serves no more. ``ejections`` were begun so far.
    """

    __slots__ = (
        "_credit",
        "connections",
        "ejections",
        "gone",
        "grpc",
        "in_flight",
        "index",
        "node",
        "rest",
        "since",
        "users",
    )

    def __init__(self, node: Node, since: float) -> None:
        self.node = node
        self.since = since
        self.index = self.in_flight = self.connections = self.ejections = 0
        self.rest, self.grpc = Api(), Api()
        self.gone = False
        self.users: dict[NodeUser, None] = {}
        self._credit = 0.0

    def api(self, protocol: HttpProtocol) -> Api:
        return self.rest if protocol == "rest" else self.grpc

    def condition(self, now: float) -> Condition:
        rest, grpc = self.rest, self.grpc
        if self.node.drained:
            return "drained"
        if not self.checked_up:
            return "down"
        return "ejected" if now < rest.until or now < grpc.until else "up"

    def serves(self, now: float) -> bool:
        """Whether its condition is "up"."""
        rest, grpc = self.rest, self.grpc
        return rest.up and grpc.up and rest.until <= now >= grpc.until and not self.node.drained

    @property
    def full(self) -> bool:
        most = self.node.max_connections
        return most is not None and self.connections >= most

    def share(self, now: float) -> float:
        """Share of the choices that it takes part in: less than 1 while it starts slowly."""
        return min(max((now - self.since) / SLOW_START, LEAST_SHARE), 1.0)

    def takes_part(self, now: float) -> bool:
        """Whether it may be chosen this time."""
        if now - self.since >= SLOW_START:
            return True
        self._credit += self.share(now)
        if self._credit < 1.0:
            return False
        self._credit = 0.0
        return True

    @property
    def checked_up(self) -> bool:
        """Whether it is up by its checks, be it ejected."""
        return self.rest.up and self.grpc.up

    def forget_checks(self) -> None:
        for api in (self.rest, self.grpc):
            api.up, api.against, api.fault = True, 0, ""


class Balancer:
    """State of all nodes, in this process. ``only`` is set where there is no choice."""

    __slots__ = ("_rankings", "_turn", "affinity", "nodes", "only")

    def __init__(self) -> None:
        self.nodes: tuple[NodeState, ...] = ()
        self.only: NodeState | None = None
        self.affinity = False
        self._turn = 0
        self._rankings = Memo[Account, tuple[NodeState, ...]](RANKINGS)

    def adopt(self, nodes: Sequence[Node], now: float, *, affinity: bool) -> None:
        """Takes over a generation's nodes. One of the same name, URLs and addresses keeps its state; a new one starts
        slowly.
        """
        former = {one.node.name: one for one in self.nodes}
        since = now if former else float("-inf")
        states = []
        for index, node in enumerate(nodes):
            state = former.get(node.name)
            if state is None or not _is_same(state.node, node):
                state = NodeState(node, since)
            elif state.node.drained and not node.drained:
                state.since = now
            state.node, state.index = node, index
            states.append(state)
        for one in former.values():
            one.gone = one not in states
        self.nodes, self.affinity, self._turn = tuple(states), affinity, 0
        self.only = states[0] if len(states) == 1 and not states[0].node.drained else None
        self._rankings.clear()

    @property
    def several(self) -> bool:
        return len(self.nodes) > 1

    def is_out(self, state: NodeState, now: float) -> bool:
        """Whether it serves no more, and another one does."""
        return state.condition(now) in _OUT and any(one.condition(now) == "up" for one in self.nodes)

    def _tell(self, now: float) -> None:
        for state in self.nodes:
            if state.users and self.is_out(state, now):
                for user in list(state.users):
                    user.out()

    def choose(self, account: Account, now: float, tried: Collection[NodeState] = ()) -> NodeState | None:
        """The node for a request or connection of this account; None if none of those that are not drained and were
        not ``tried`` has room.
        """
        turn = self._turn
        nodes = self.nodes[turn:] + self.nodes[:turn]
        free = [one for one in nodes if one.serves(now) and one not in tried]
        serving = bool(free)
        if serving:
            free = [one for one in free if not one.full]
        else:
            free = [one for one in nodes if not (one.full or one.node.drained or one in tried)]
            free = [one for one in free if one.checked_up] or free
        if not free:
            return None
        if self.affinity:
            return next(one for one in self._ranking(account) if one in free)
        taking_part = [one for one in free if one.takes_part(now)] if serving else []
        chosen = min(taking_part or free, key=lambda one: one.in_flight)
        self._turn = (chosen.index + 1) % len(self.nodes)
        return chosen

    def is_left(self, tried: Collection[NodeState]) -> bool:
        """Whether a node that is not drained was not ``tried``, be it full."""
        return any(not one.node.drained and one not in tried for one in self.nodes)

    def described(self, now: float) -> list[dict[str, Any]]:
        """Rows of a status."""
        return [
            {
                "name": one.node.name,
                "rest": one.node.rest.url,
                "grpc": one.node.grpc.url if one.node.grpc is not None else None,
                "state": one.condition(now),
                "in_flight": one.in_flight,
                "connections": one.connections,
                "ejections": one.ejections,
            }
            for one in self.nodes
        ]

    def _ranking(self, account: Account) -> tuple[NodeState, ...]:
        """Rendezvous hashing: where a node goes, only its callers go elsewhere. The same in all processes."""
        ranking = self._rankings.get(account)
        if ranking is None:
            ranking = tuple(sorted(self.nodes, key=lambda one: _weight(account, one.node.name)))
            self._rankings.remember(account, ranking)
        return ranking

    def capacity(self, most: int, now: float) -> int:
        """Connections that the nodes take together, up to ``most``."""
        serving = [one for one in self.nodes if one.serves(now)]
        serving = serving or [one for one in self.nodes if not one.node.drained] or list(self.nodes)
        limits = [one.node.max_connections for one in serving]
        return min(most, sum(most if limit is None else limit for limit in limits))

    @staticmethod
    def succeeded(state: NodeState, protocol: HttpProtocol, now: float) -> None:
        api = state.api(protocol)
        if api.failures:
            api.failures, api.pause = 0, 0.0
            if now < api.until:
                api.until = state.since = now

    def failed(self, state: NodeState, protocol: HttpProtocol, now: float) -> None:
        api = state.api(protocol)
        if now < api.until:
            return
        api.failures += 1
        if api.failures >= FAILURES:
            api.pause = min(max(2 * api.pause, FIRST_PAUSE), LONGEST_PAUSE)
            api.until = state.since = now + api.pause
            state.ejections += 1
            self._tell(now)

    def checked(self, state: NodeState, protocol: HttpProtocol, now: float, *, good: bool) -> None:
        """Result of an active check."""
        api = state.api(protocol)
        api.against = 0 if good is api.up else api.against + 1
        if api.against >= (RISE if good else FALL):
            api.up, api.against = good, 0
            if good:
                state.since = max(state.since, now)
            self._tell(now)


def _is_same(former: Node, node: Node) -> bool:
    """Whether what is known of a node holds on: it has its URLs, and some address that it had."""
    apis = ((former.rest, node.rest), (former.grpc, node.grpc))
    return all(one is other or (one is not None and other is not None and _leads_on(one, other)) for one, other in apis)


def _leads_on(former: Upstream, upstream: Upstream) -> bool:
    before, after = former.addresses, upstream.addresses
    return former.url == upstream.url and (before == after or not set(before).isdisjoint(after))


def _weight(account: Account, name: str) -> bytes:
    return blake2b(repr((account, name)).encode(), digest_size=8).digest()


class RetryBudget:
    """Requests that may be sent again: a share of those of the last seconds, so that an overload does not double.

    Example: after 100 requests in 10 s, 23 retries.
    """

    SHARE: Final = 0.2
    LEAST: Final = 3
    WINDOW: Final = 10
    """Seconds."""

    __slots__ = ("_seconds",)

    def __init__(self) -> None:
        self._seconds: deque[list[int]] = deque(maxlen=self.WINDOW)  # [second, requests, retries]

    def _second(self, now: float) -> list[int]:
        seconds, present = self._seconds, int(now)
        if not seconds or seconds[-1][0] != present:
            seconds.append([present, 0, 0])
        return seconds[-1]

    def request(self, now: float) -> None:
        self._second(now)[1] += 1

    def is_left(self, now: float) -> bool:
        """Whether one more retry is within the budget."""
        recent = [one for one in self._seconds if one[0] > now - self.WINDOW]
        return sum(one[2] for one in recent) < self.LEAST + self.SHARE * sum(one[1] for one in recent)

    def retry(self, now: float) -> bool:
        """Whether one more retry is within the budget; it is counted if so."""
        within = self.is_left(now)
        self._second(now)[2] += within
        return within
