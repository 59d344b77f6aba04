from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tlsproxy.authz.access import Grant, Grants
from tlsproxy.authz.glob_index import Patterns
from tlsproxy.authz.globs import glob_matches

PATTERNS = st.lists(st.sampled_from(["*", "**", "?", "a", "b", "ab", "."]), min_size=1, max_size=4).map("".join)
VALUES = st.text(alphabet="ab.", max_size=6)


@given(st.lists(PATTERNS, max_size=12), VALUES)
def test_what_is_found_is_what_matches(patterns: list[str], value: str) -> None:
    found = Patterns((pattern, place) for place, pattern in enumerate(patterns)).matching(value)
    assert sorted(found) == [place for place, pattern in enumerate(patterns) if glob_matches(pattern, value)]


@given(st.lists(st.builds(Grant, PATTERNS, st.booleans(), st.booleans()), max_size=12), VALUES)
def test_the_grants_for_a_name_are_those_that_match_it(grants: list[Grant], name: str) -> None:
    held = Grants(*grants).covering(name)
    obvious = [grant for grant in grants if glob_matches(grant.collection, name)]
    assert sorted(held, key=repr) == sorted(obvious, key=repr)


@given(st.lists(st.builds(Grant, PATTERNS, st.booleans(), st.booleans()), max_size=3), st.data())
def test_grants_are_compared_by_what_they_are(grants: list[Grant], data: st.DataObject) -> None:
    others = data.draw(st.just(grants) | st.lists(st.builds(Grant, PATTERNS, st.booleans(), st.booleans()), max_size=3))
    assert (Grants(*grants) == Grants(*others)) is (grants == others)
    assert grants != others or hash(Grants(*grants)) == hash(Grants(*others))
