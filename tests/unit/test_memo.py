from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tlsproxy.memo import Memo


@given(st.lists(st.integers(0, 8)), st.integers(1, 5))
def test_a_memo_holds_the_latest_entries_and_no_more(keys: list[int], capacity: int) -> None:
    memo = Memo[int, str](capacity)
    latest: list[int] = []
    for key in keys:
        memo.remember(key, str(key))
        latest = [each for each in latest if each != key][-(capacity - 1) :] if capacity > 1 else []
        latest.append(key)
        assert list(memo.items()) == [(each, str(each)) for each in latest]
