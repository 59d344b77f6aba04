from __future__ import annotations

import gc
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest

from tlsproxy.errors import FailureKind
from tlsproxy.tls import blocking
from tlsproxy.tls.blocking import CROWD, Key, Unanswered, outcome, outcomes

DEADLINE = 0.05


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
        while blocking._under_way:
            time.sleep(0.001)


@pytest.fixture
def hanging() -> Iterator[Hanging]:
    call = Hanging()
    yield call
    call.release()


def key(name: str, place: str = "here") -> Key:
    return Key(place, name)


def test_calls_that_answer_share_one_thread() -> None:
    threads = outcomes({key(str(number)): threading.get_ident for number in range(1000)}, 20)
    assert len(set(threads.values())) == 1
    assert threads.keys() == {key(str(number)) for number in range(1000)}
    assert threading.get_ident() not in threads.values()


def test_nothing_is_the_outcome_of_no_calls() -> None:
    assert outcomes({}, 20) == {}


def test_a_call_that_hangs_holds_up_no_other(hanging: Hanging) -> None:
    found = outcomes({key("a"): lambda: "a", key("b"): hanging, key("c"): lambda: "c"}, DEADLINE)
    assert (found[key("a")], found[key("c")]) == ("a", "c")
    failure = found[key("b")]
    assert isinstance(failure, Unanswered)
    assert failure.kind is FailureKind.ENVIRONMENT
    assert str(failure).startswith("no answer since 20")


def test_a_slow_call_is_waited_for(hanging: Hanging) -> None:
    timer = threading.Timer(0.2, hanging.release)
    timer.start()
    assert outcome(key("a"), hanging, 20) == "at last"
    timer.join()


def test_no_second_call_is_made_while_the_first_one_hangs_and_its_text_stays(hanging: Hanging) -> None:
    texts = set()
    for _ in range(5):
        with pytest.raises(Unanswered) as error:
            outcome(key("a"), hanging, DEADLINE)
        texts.add(str(error.value))
    assert hanging.begun == 1
    assert len(texts) == 1
    hanging.release()
    assert outcome(key("a"), lambda: "anew", DEADLINE) == "anew"


def test_one_place_never_has_more_than_a_few_threads_and_another_goes_on(hanging: Hanging) -> None:
    calls: dict[Key, Callable[[], str]] = {key(str(number)): hanging for number in range(100)}
    found = outcomes({**calls, key("x", "there"): lambda: "x"}, DEADLINE)
    assert found.pop(key("x", "there")) == "x"
    assert {type(each) for each in found.values()} == {Unanswered}
    assert hanging.begun == CROWD
    for _ in range(3):
        outcomes(calls, DEADLINE)
    assert hanging.begun == CROWD


def test_two_callers_of_one_key_take_turns(hanging: Hanging) -> None:
    second: list[str] = []
    first = threading.Thread(target=lambda: outcome(key("a"), hanging, 20))
    first.start()
    while not hanging.begun:
        pass
    waiting = threading.Thread(target=lambda: second.append(outcome(key("a"), lambda: "second", 20)))
    waiting.start()
    assert not second
    hanging.release()
    first.join(20)
    waiting.join(20)
    assert second == ["second"]


def test_an_error_is_raised_to_the_caller_and_leaves_no_circle() -> None:
    def fail() -> None:
        raise ZeroDivisionError

    gc.collect()
    gc.disable()
    try:
        with suppress(ZeroDivisionError):
            outcome(key("a"), fail, 20)
        assert not [each for each in gc.get_objects() if isinstance(each, ZeroDivisionError)]
    finally:
        gc.enable()


def test_a_process_ends_though_a_call_hangs() -> None:
    program = """
import threading
from tlsproxy.tls.blocking import Key, Unanswered, outcome

try:
    outcome(Key("", ""), threading.Event().wait, 0.01)
except Unanswered as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=20, check=True)
    assert done.stdout.startswith("no answer since")
