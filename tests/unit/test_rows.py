"""Tables of rows in one test: each row is tried, and each that fails is named."""

from __future__ import annotations

import pytest
from support.rows import rows


def test_every_row_is_tried_and_each_that_fails_is_named() -> None:
    tried = []

    @rows("letter", [pytest.param("a", id="first"), "b"])
    @rows("number, even", [(1, False), (2, True), (3, True)], ids=["one", "two", "three"])
    def check(letter: str, number: int, *, even: bool) -> None:
        tried.append((letter, number))
        assert even is (number % 2 == 0)

    with pytest.raises(ExceptionGroup) as raised:
        check()
    assert tried == [(letter, number) for letter in "ab" for number in (1, 2, 3)]
    assert [each.__notes__ for each in raised.value.exceptions] == [["row: first three"], ["row: ('b',) three"]]


def test_rows_that_hold_are_silent_and_none_are_a_mistake() -> None:
    rows("number", [1, 2])(lambda number: pytest.fail("no") if number > 2 else None)()
    with pytest.raises(AssertionError, match="checks nothing"):
        rows("number", [])
