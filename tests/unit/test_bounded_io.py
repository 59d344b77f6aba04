from __future__ import annotations

import gc
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest

from tlsproxy.errors import FailureKind
from tlsproxy.snapshot import bounded_io
from tlsproxy.snapshot.bounded_io import MAX_PER_DIRECTORY, Unanswered, outcomes

DEADLINE = 0.05


def outcome(path: Path, call: Callable[[], str], deadline: float) -> str | Unanswered:
    return outcomes({path: call}, deadline)[path]


class Hanging:
    """A call that is not back before it is released."""

    def __init__(self) -> None:
        self.begun = 0
        self._go = threading.Event()

    def __call__(self) -> str:
        self.begun += 1
        assert self._go.wait(20)
        return "at last"

    def release(self) -> None:
        self._go.set()
        while bounded_io._running:
            time.sleep(0.001)


@pytest.fixture
def hanging() -> Iterator[Hanging]:
    call = Hanging()
    yield call
    call.release()


def test_calls_that_answer_share_one_thread() -> None:
    threads = outcomes({Path("/", str(number)): threading.get_ident for number in range(1000)}, 20)
    assert len(set(threads.values())) == 1
    assert threads.keys() == {Path("/", str(number)) for number in range(1000)}
    assert threading.get_ident() not in threads.values()


def test_nothing_is_the_outcome_of_no_calls() -> None:
    assert outcomes({}, 20) == {}


def test_a_call_that_hangs_holds_up_no_other(hanging: Hanging) -> None:
    found = outcomes({Path("/a"): lambda: "a", Path("/b"): hanging, Path("/c"): lambda: "c"}, DEADLINE)
    assert (found[Path("/a")], found[Path("/c")]) == ("a", "c")
    failure = found[Path("/b")]
    assert isinstance(failure, Unanswered)
    assert failure.kind is FailureKind.ENVIRONMENT
    assert str(failure).startswith("no answer since 20")


def test_a_slow_call_is_waited_for(hanging: Hanging) -> None:
    timer = threading.Timer(0.2, hanging.release)
    timer.start()
    assert outcome(Path("/a"), hanging, 20) == "at last"
    timer.join()


def test_a_call_that_goes_on_answering_is_waited_for_but_not_for_ever(
    hanging: Hanging, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr(bounded_io.time, "monotonic", lambda: now)

    def answers(number: int, then: Callable[[], str]) -> str:
        nonlocal now
        for _ in range(number):
            now += 9.0
            bounded_io.note_progress(Path("/a"))
        return then()

    assert outcome(Path("/a"), partial(answers, 4, lambda: "whole"), 10) == "whole"
    assert isinstance(outcome(Path("/a"), partial(answers, 2 * bounded_io.MAX_DEADLINES, hanging), 10), Unanswered)


def test_no_second_call_is_made_while_the_first_one_hangs_and_its_text_stays(hanging: Hanging) -> None:
    texts = set()
    for _ in range(5):
        texts.add(str(outcome(Path("/a"), hanging, DEADLINE)))
    assert hanging.begun == 1
    (text,) = texts
    assert text.startswith("no answer since")
    hanging.release()
    assert outcome(Path("/a"), lambda: "anew", DEADLINE) == "anew"


def test_one_directory_never_has_more_than_a_few_threads_and_another_goes_on(hanging: Hanging) -> None:
    calls: dict[Path, Callable[[], str]] = {Path("/", str(number)): hanging for number in range(100)}
    found = outcomes({**calls, Path("/there/x"): lambda: "x"}, DEADLINE)
    assert found.pop(Path("/there/x")) == "x"
    assert {type(each) for each in found.values()} == {Unanswered}
    assert hanging.begun == MAX_PER_DIRECTORY
    for _ in range(3):
        outcomes(calls, DEADLINE)
    assert hanging.begun == MAX_PER_DIRECTORY


def test_two_callers_of_one_path_take_turns(hanging: Hanging) -> None:
    second: list[object] = []
    first = threading.Thread(target=lambda: outcome(Path("/a"), hanging, 20))
    first.start()
    while not hanging.begun:
        pass
    waiting = threading.Thread(target=lambda: second.append(outcome(Path("/a"), lambda: "second", 20)))
    waiting.start()
    assert not second
    hanging.release()
    first.join(20)
    waiting.join(20)
    assert second == ["second"]


def test_an_error_is_raised_to_the_caller_and_leaves_no_circle() -> None:
    def fail() -> str:
        raise ZeroDivisionError

    gc.collect()
    gc.disable()
    try:
        with suppress(ZeroDivisionError):
            outcome(Path("/a"), fail, 20)
        assert not [each for each in gc.get_objects() if isinstance(each, ZeroDivisionError)]
    finally:
        gc.enable()


def test_a_process_ends_though_a_call_hangs() -> None:
    program = """
import threading
from pathlib import Path
from tlsproxy.snapshot.bounded_io import outcomes

for outcome in outcomes({Path("/a"): threading.Event().wait}, 0.01).values():
    print(outcome)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=20, check=True)
    assert done.stdout.startswith("no answer since")
