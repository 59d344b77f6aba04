"""Choice among nodes: health, least requests, slow start, affinity, and the budget of retries."""

from collections import Counter
from socket import AF_INET

from hypothesis import given
from hypothesis import strategies as st

from tlsproxy.proxy.core.balancer import (
    FAILURES,
    FALL,
    FIRST_PAUSE,
    LONGEST_PAUSE,
    RISE,
    SLOW_START,
    Balancer,
    NodeState,
    RetryBudget,
)
from tlsproxy.proxy.limits.fair_shares import Account
from tlsproxy.snapshot.nodes import Node, Upstream

ALICE = ("identity", "alice")
NOW = 1000.0
LATER = NOW + SLOW_START


def node(name: str, *at: str, drained: bool = False, most: int | None = None, port: int = 6333) -> Node:
    rest = Upstream(f"http://{name}:{port}", f"{name}:{port}".encode(), tuple((AF_INET, (one, port)) for one in at))
    return Node(name, rest, None, drained=drained, max_connections=most)


def balancer(*nodes: Node, affinity: bool = False) -> Balancer:
    made = Balancer()
    made.adopt(nodes, NOW, affinity=affinity)
    return made


def chosen(made: Balancer, now: float = NOW, account: Account = ALICE, tried: tuple[NodeState, ...] = ()) -> str:
    state = made.choose(account, now, tried)
    assert state is not None
    return state.node.name


def fail(made: Balancer, state: NodeState, now: float = NOW, times: int = FAILURES) -> None:
    for _ in range(times):
        made.failed(state, "rest", now)


events = st.lists(
    st.tuples(
        st.sampled_from(["failed", "succeeded", "good", "bad", "begin", "end", "wait"]),
        st.integers(0, 3),
        st.sampled_from(["rest", "grpc"]),
    ),
    max_size=60,
)


@given(events, st.sets(st.integers(0, 3), max_size=3), st.sampled_from([0, 1]), st.integers(0, 3))
def test_there_is_a_node_unless_all_are_full_and_a_bad_one_only_where_all_are(
    events: list[tuple[str, int, str]], drained: set[int], affinity: int, full: int
) -> None:
    made = balancer(
        *(node(f"n{index}", drained=index in drained, most=1 if index == full else None) for index in range(4)),
        affinity=bool(affinity),
    )
    now = NOW
    for what, index, protocol in events:
        state = made.nodes[index]
        match what:
            case "failed" | "succeeded":
                getattr(made, what)(state, protocol, now)
            case "good" | "bad":
                made.checked(state, protocol, now, good=what == "good")  # type: ignore[arg-type]
            case "begin" | "end":
                state.in_flight += not state.full if what == "begin" else -(state.in_flight > 0)
                state.connections = state.in_flight
            case "wait":
                now += 0.7 * (index + 1)
        up = [one for one in made.nodes if one.condition(now) == "up"]
        assert up == [one for one in made.nodes if one.serves(now)]
        assert 1 <= made.capacity(8, now) <= 8
        tried: list[NodeState] = []
        while (choice := made.choose(ALICE, now, tried)) is not None:
            assert not any((choice in tried, choice.full, choice.node.drained))
            left = [one for one in up if one not in tried]
            assert not left or choice in left
            tried.append(choice)
        left = [one for one in made.nodes if not (one in tried or one.node.drained)]
        assert made.is_left(tried) == bool(left)
        good = [one for one in left if one in up]
        assert all(one.full for one in good or left)


@given(st.lists(st.integers(0, 9), min_size=2, max_size=5))
def test_the_node_with_fewest_requests_is_chosen(loads: list[int]) -> None:
    made = balancer(*(node(f"n{index}") for index in range(len(loads))))
    for state, load in zip(made.nodes, loads, strict=True):
        state.in_flight = load
    choice = made.choose(ALICE, NOW)
    assert choice is not None
    assert choice.in_flight == min(loads)


def test_ties_go_round() -> None:
    made = balancer(node("a"), node("b"), node("c"))
    assert [chosen(made) for _ in range(6)] == ["a", "b", "c", "a", "b", "c"]


def test_ejections_grow_and_a_success_ends_them() -> None:
    made = balancer(node("a"), node("b"))
    bad, _ = made.nodes
    fail(made, bad, times=FAILURES - 1)
    assert bad.condition(NOW) == "up"
    made.succeeded(bad, "rest", NOW)
    fail(made, bad, times=FAILURES - 1)
    assert bad.condition(NOW) == "up", "in a row"
    now, pauses = NOW, []
    for _ in range(9):
        made.failed(bad, "rest", now)
        fail(made, bad, now)  # of requests that began before
        pauses.append(bad.rest.until - now)
        assert {chosen(made, now) for _ in range(3)} == {"b"}
        now = bad.rest.until
        assert bad.condition(now) == "up"
    assert pauses == [FIRST_PAUSE, 2, 4, 8, 16, 32, LONGEST_PAUSE, LONGEST_PAUSE, LONGEST_PAUSE]
    made.failed(bad, "rest", now)
    made.succeeded(bad, "rest", now)
    assert bad.condition(now) == "up"
    fail(made, bad, now)
    assert bad.rest.until - now == FIRST_PAUSE


def test_a_success_over_one_api_says_nothing_of_the_other() -> None:
    made = balancer(node("a"), node("b"))
    for _ in range(FAILURES):
        made.failed(made.nodes[0], "grpc", NOW)
        made.succeeded(made.nodes[0], "rest", NOW)
    assert made.nodes[0].condition(NOW) == "ejected"


def test_checks_count_twice_in_a_row() -> None:
    made = balancer(node("a"), node("b"))
    checked = made.nodes[0]
    found = []
    for good in (False, True, False, False, True, False, True, True):
        made.checked(checked, "grpc", NOW, good=good)
        found.append(checked.condition(NOW))
    assert found == ["up", "up", "up", "down", "down", "down", "down", "up"]


def test_bad_ones_go_round_and_those_that_fail_their_checks_come_last() -> None:
    """So the first that answers again is found at once, however long its pause still is."""
    made = balancer(node("a"), node("b"), node("c"))
    first, second, third = made.nodes
    for _ in range(FALL):
        made.checked(first, "rest", NOW, good=False)
    fail(made, second)
    fail(made, third)
    assert {chosen(made) for _ in range(4)} == {"b", "c"}
    assert chosen(made, tried=(second, third)) == "a"
    made.succeeded(third, "rest", NOW)
    assert {chosen(made) for _ in range(4)} == {"c"}
    for state in (second, third):
        for _ in range(FALL):
            made.checked(state, "rest", NOW, good=False)
    assert {chosen(made) for _ in range(6)} == {"a", "b", "c"}


def test_a_node_that_comes_back_starts_slowly() -> None:
    made = balancer(node("a"), node("b"))
    fail(made, made.nodes[0])
    back = made.nodes[0].rest.until
    shares = [
        Counter(chosen(made, back + after) for _ in range(200))["a"] for after in (0.0, SLOW_START / 2, SLOW_START)
    ]
    assert shares == sorted(shares)
    assert 5 <= shares[0] <= 25
    assert shares[2] == 100


def test_a_reload_keeps_what_is_known_of_nodes_that_stay() -> None:
    made = balancer(node("a"), node("b"), node("c"))
    a, b, c = made.nodes
    fail(made, a)
    made.adopt((node("d"), node("a"), node("c", port=1)), NOW, affinity=False)
    d, same, other = made.nodes
    assert same is a
    assert (a.gone, b.gone, c.gone) == (False, True, True)
    assert other is not c
    assert a.condition(NOW) == "ejected"
    assert d.share(NOW) < 1 == d.share(LATER)
    assert made.only is None
    made.adopt((node("a"),), NOW, affinity=False)
    assert made.only is a
    made.adopt((node("a", drained=True),), NOW, affinity=False)
    assert made.only is None
    assert made.choose(ALICE, NOW) is None


def test_other_addresses_are_another_node() -> None:
    """One of several that stays, or a name that is not resolved for now, is not."""
    made = balancer(node("a", "10.0.0.1", "10.0.0.2"), node("b"))
    first, second = made.nodes
    for state in made.nodes:
        fail(made, state)
    made.adopt((node("a", "10.0.0.2", "10.0.0.3"), node("b")), NOW, affinity=False)
    assert made.nodes == (first, second)
    made.adopt((node("a", "10.0.0.4"), node("b", "10.0.0.5")), NOW, affinity=False)
    assert {one.condition(NOW) for one in made.nodes} == {"up"}
    assert first.gone
    assert second.gone


@given(st.sets(st.text(min_size=1, max_size=5), min_size=3, max_size=40))
def test_affinity_moves_only_the_callers_of_the_node_that_goes(names: set[str]) -> None:
    nodes = [node(f"n{index}") for index in range(4)]
    made, fewer, reordered = (
        balancer(*some, affinity=True) for some in (nodes, nodes[:3], [nodes[3], nodes[1], nodes[2], nodes[0]])
    )
    for name in names:
        account = ("identity", name)
        at = chosen(made, account=account)
        assert chosen(made, account=account) == at == chosen(reordered, account=account)
        assert at in {"n3", chosen(fewer, account=account)}
        (state,) = (one for one in made.nodes if one.node.name == at)
        fail(made, state)
        assert chosen(made, account=account) != at
        made.succeeded(state, "rest", NOW)
        assert chosen(made, account=account) == at


def test_limits_of_nodes_bound_the_connections_together() -> None:
    made = balancer(node("a", most=2), node("b", most=3))
    assert (made.capacity(256, NOW), made.capacity(4, NOW)) == (5, 4)
    fail(made, made.nodes[1])
    assert made.capacity(256, NOW) == 2
    assert balancer(node("a", most=2), node("b")).capacity(256, NOW) == 256


@given(st.lists(st.tuples(st.booleans(), st.floats(0, 3)), max_size=200))
def test_retries_are_a_share_of_the_requests_of_the_last_seconds(asked: list[tuple[bool, float]]) -> None:
    budget, now = RetryBudget(), NOW
    requests: list[float] = []
    retries: list[float] = []
    for retry, pause in asked:
        now += pause
        if retry:
            recent = sum(int(one) > now - RetryBudget.WINDOW for one in requests)
            spent = sum(int(one) > now - RetryBudget.WINDOW for one in retries)
            assert budget.retry(now) == (spent < RetryBudget.LEAST + RetryBudget.SHARE * recent)
            if spent < RetryBudget.LEAST + RetryBudget.SHARE * recent:
                retries.append(now)
        else:
            budget.request(now)
            requests.append(now)


class Placed:
    """A connection that stays at its node."""

    def __init__(self, state: NodeState) -> None:
        self.told = 0
        state.users[self] = None

    def out(self) -> None:
        self.told += 1


def test_those_at_a_node_hear_that_it_serves_no_more() -> None:
    made = balancer(node("a"), node("b"))
    first, second = made.nodes
    at_first, at_second = Placed(first), Placed(second)
    fail(made, first, times=FAILURES - 1)
    assert at_first.told == 0
    fail(made, first, times=1)
    assert (at_first.told, at_second.told) == (1, 0)
    fail(made, second)
    assert (at_first.told, at_second.told) == (1, 0), "no node is better"
    for _ in range(FALL):
        made.checked(first, "grpc", NOW, good=False)
    assert at_first.told == 1
    back = NOW + FIRST_PAUSE
    for _ in range(RISE):
        made.checked(first, "grpc", back, good=True)
    assert (at_first.told, at_second.told) == (1, 0), "both are back"


def test_those_at_a_bad_node_hear_that_another_is_back() -> None:
    made = balancer(node("a"), node("b"))
    first, second = made.nodes
    for state in (first, second):
        for _ in range(FALL):
            made.checked(state, "rest", NOW, good=False)
    at_second = Placed(second)
    for _ in range(RISE):
        made.checked(first, "rest", NOW, good=True)
    assert at_second.told == 1
