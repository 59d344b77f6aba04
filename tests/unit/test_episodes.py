from __future__ import annotations

import logging

from hypothesis import given
from hypothesis import strategies as st

from tlsproxy.admin.readiness import OK, Part, Readiness, not_ready
from tlsproxy.service.episodes import CALM, LONGEST_REST, Episodes, Line

BAD = not_ready("Connection refused")


def fed(episodes: Episodes, part: Part, now: float, refused: int = 0, name: str = "upstream_rest") -> list[Line]:
    return list(episodes.lines(Readiness({name: part}, {name: refused}), now))


def test_an_episode_has_one_line_at_each_end_and_counts_from_its_first_refusal() -> None:
    episodes = Episodes()
    assert not fed(episodes, OK, 0.0, refused=2)
    assert fed(episodes, BAD, 3.0, refused=5) == [(logging.ERROR, "not ready: upstream_rest: Connection refused")]
    assert not fed(episodes, BAD, 6.0, refused=70)
    assert fed(episodes, OK, 9.0, refused=102) == [
        (logging.WARNING, "ready again: upstream_rest, after 6.0 s; 100 refused meanwhile")
    ]
    assert not fed(episodes, OK, 12.0, refused=102)


def test_another_cause_is_told_and_the_count_goes_on() -> None:
    episodes = Episodes()
    assert fed(episodes, BAD, 0.0, refused=1)
    assert fed(episodes, not_ready("its key"), 3.0, refused=5) == [(logging.ERROR, "not ready: upstream_rest: its key")]
    assert fed(episodes, OK, 9.0, refused=8)[0][1].endswith("after 9.0 s; 8 refused meanwhile")


def test_a_part_that_flaps_is_told_of_ever_more_rarely() -> None:
    episodes = Episodes()
    lines = [line for step in range(4000) for line in fed(episodes, (OK, BAD)[step % 2], step / 4, refused=step)]
    assert 5 <= len(lines) <= 6 + 1000 / LONGEST_REST + 2
    assert not fed(episodes, OK, 1000.0 + CALM + LONGEST_REST) or not fed(episodes, OK, 2000.0)
    assert fed(episodes, BAD, 3000.0)
    assert fed(episodes, OK, 3001.0), "after a calm the rests begin anew"


def test_parts_with_lines_of_their_own_have_none_here() -> None:
    episodes = Episodes()
    for name in ("listeners", "reload", "workers"):
        assert not fed(episodes, BAD, 0.0, name=name)


@given(st.lists(st.tuples(st.booleans(), st.floats(0.01, 100)), max_size=40))
def test_lines_alternate_and_the_last_word_is_true(course: list[tuple[bool, float]]) -> None:
    episodes, now, levels = Episodes(), 0.0, []
    for good, pause in course:
        now += pause
        levels += [level for level, _ in fed(episodes, OK if good else BAD, now)]
    assert levels == [(logging.ERROR, logging.WARNING)[number % 2] for number in range(len(levels))]
    last = not course or course[-1][0]
    levels += [level for level, _ in fed(episodes, OK if last else BAD, now + LONGEST_REST)]
    assert (not levels or levels[-1] == logging.WARNING) == last
