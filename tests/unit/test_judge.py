from __future__ import annotations

from tlsproxy.config.problems import ConfigError, Problem
from tlsproxy.snapshot.judge import MOST_PROBLEMS, Judge
from tlsproxy.snapshot.states import Input


def test_of_thousands_of_problems_the_first_are_told() -> None:
    subject = Input("configuration", "tlsproxy.yaml")
    judge = Judge({}, {}, {}, 0.0, None, "")

    def told(count: int) -> list[str]:
        problems = [Problem("tlsproxy.yaml", line, 1, "", "is wrong") for line in range(1, count + 1)]
        judge.report(subject, ConfigError(problems), "", kept=True)
        return judge.faults[subject].text.splitlines()

    assert len(told(MOST_PROBLEMS)) == MOST_PROBLEMS
    many = told(MOST_PROBLEMS + 7)
    assert many[0] == "tlsproxy.yaml:1:1 is wrong"
    assert many[MOST_PROBLEMS:] == ["7 more: `tlsproxy check` lists them"]
