"""Output of the log to whoever does not read it: nobody waits, lines stay in order, and lost ones are told of."""

from __future__ import annotations

import fcntl
import logging
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tlsproxy.service import log_output
from tlsproxy.service.log_output import Output

PAGE = 4096


class Pipe:
    """A pipe of one page. ``say`` fails where it would have to wait for a reader."""

    def __init__(self) -> None:
        self.reading, self.writing = os.pipe()
        fcntl.fcntl(self.writing, fcntl.F_SETPIPE_SZ, PAGE)
        self.output = Output(self.writing)

    def say(self, *texts: str) -> None:
        def emit() -> None:
            for text in texts:
                self.output.handle(logging.makeLogRecord({"msg": text}))

        saying = threading.Thread(target=emit, daemon=True)
        saying.start()
        saying.join(20)
        assert not saying.is_alive()

    def read(self, last: str) -> list[str]:
        """All lines up to the last one."""
        data = b""
        while not data.endswith(f"{last}\n".encode()):
            data += os.read(self.reading, 1 << 16)
        return data.decode().splitlines()


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    made = Pipe()
    yield made
    made.output.close()
    os.set_blocking(made.reading, False)
    os.close(made.reading)
    os.close(made.writing)


def test_a_pipe_that_is_not_read_holds_nobody_and_has_all_lines_in_order_once_it_is(pipe: Pipe) -> None:
    told = [f"{number:0100}" for number in range(200)]
    pipe.say(*told)
    assert pipe.read(told[-1]) == told


def test_lines_beyond_what_may_wait_are_lost_and_counted(pipe: Pipe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_output, "MOST", PAGE)
    told = [f"{number:0100}" for number in range(200)]
    pipe.say(*told)
    with ThreadPoolExecutor(1) as reader:
        read = reader.submit(pipe.read, "the end")
        pipe.output.flush()
        pipe.say("the end")
        lines = read.result(20)
    shown = [line for line in lines if line in told]
    lost = [int(line.split()[0]) for line in lines if "lines of the log are lost: nobody read those before" in line]
    assert shown == sorted(shown)
    assert sum(lost) == len(told) - len(shown) > 0


def test_the_end_waits_for_a_reader_and_not_for_none(pipe: Pipe, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe.say("first")
    pipe.output.flush()
    assert os.read(pipe.reading, PAGE) == b"first\n"
    monkeypatch.setattr(log_output, "LAST", 0.01)
    pipe.say("x" * 3 * PAGE)
    pipe.output.flush()
    assert pipe.read("x") == ["x" * 3 * PAGE]


def test_a_reader_that_has_gone_is_no_error(pipe: Pipe) -> None:
    os.close(pipe.reading)
    pipe.say("nobody reads this")
    pipe.output.flush()
    assert pipe.output._written == len("nobody reads this\n")
    pipe.reading = os.open("/dev/null", os.O_RDONLY)
