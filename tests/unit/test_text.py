from __future__ import annotations

from datetime import UTC, datetime

from hypothesis import given
from hypothesis import strategies as st

from tlsproxy.text import printable, rfc3339


@given(st.integers(0, 2**35))
def test_a_date_reads_back(second: int) -> None:
    assert datetime.fromisoformat(rfc3339(second + 0.9)) == datetime.fromtimestamp(second, UTC)
    assert rfc3339(second).endswith("Z")


@given(st.text())
def test_printable_text_is_one_line_that_no_terminal_obeys(text: str) -> None:
    assert printable(text).isprintable()
    assert printable(printable(text)) == printable(text)


def test_letters_stay_and_the_rest_is_spelled_out() -> None:
    assert printable("Müller\n\x1b[31m\u2028") == r"Müller\n\x1b[31m\u2028"
