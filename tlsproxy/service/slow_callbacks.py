"""Debug mode that measures each callback of an event loop, and logs those that hold it for too long.

`TLSPROXY_SLOW_CALLBACK=10ms` names callbacks that take 10 ms or more: the function, or the coroutine of a task's step,
with its file and line. A thread samples the running callback, so that the place inside it is known too. A timer finds
what is no callback: another thread that keeps the interpreter, e.g. in one long call of a C function. Without the
variable nothing is wrapped. uvloop has no such mode, and asyncio's names no task and sees no other thread.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import re
import sys
import threading
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, Final

from tlsproxy.config.problems import ConfigError, Problem

VARIABLE: Final = "TLSPROXY_SLOW_CALLBACK"
INTERVAL: Final = 10.0
"""Seconds between two lines of one name; what comes in between is counted in the second."""
NAMES: Final = 100
"""Names that have lines of their own."""
OTHERS: Final = "other callbacks"
THREADS: Final = 8
"""Threads in a line."""
SHORTEST: Final = 0.002
"""Seconds between two looks of timer and thread at least."""

_SCHEDULING: Final = {
    "call_soon": 0,
    "call_soon_threadsafe": 0,
    "call_later": 1,
    "call_at": 1,
    "add_reader": 1,
    "add_writer": 1,
    "add_signal_handler": 1,
}
"""Methods of a loop that take a callback, with its position. A task schedules its steps by the first."""
_FORM: Final = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,9})?)(ms|s)")
_PACKAGE: Final = Path(__file__).parents[1]
_OURS: Final = f"{_PACKAGE}/"

_log = logging.getLogger(__name__)

LoopFactory = Callable[[], asyncio.AbstractEventLoop]


def measured(factory: LoopFactory, environ: Mapping[str, str]) -> LoopFactory:
    """The factory itself, or with the variable one whose loops are measured. Raises ConfigError."""
    text = environ.get(VARIABLE, "")
    if not text:
        return factory
    longest = seconds_of(text)

    def make() -> asyncio.AbstractEventLoop:
        loop = factory()
        SlowCallbacks(loop, longest, SlowLog(time.monotonic))
        return loop

    return make


def seconds_of(text: str) -> float:
    """`10ms` or `0.5s` in seconds. Raises ConfigError."""
    form = _FORM.fullmatch(text.strip())
    seconds = float(form[1]) / (1000 if form[2] == "ms" else 1) if form is not None else 0.0
    if not seconds:
        wrong = f"{text!r} is not a time above 0 with its unit: write 10ms or 0.5s, or leave it out"
        raise ConfigError([Problem(f"env {VARIABLE}", 0, 0, "", wrong)])
    return seconds


class SlowLog:
    """A line for the first finding of a name, then one for each :data:`INTERVAL` with the number of others.

    Lines wait until the program's log is set up, which says in which form they are.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._told: dict[str, float] = {}
        self._more: dict[str, tuple[int, float]] = {}
        self._waiting: list[str] = []

    def add(self, name: str, seconds: float, detail: str) -> None:
        if name not in self._told and len(self._told) >= NAMES:
            name, detail = OTHERS, ""
        if name not in self._told:
            self._told[name] = self._clock()
            self._waiting.append(f"{name} held the loop for {_shown(seconds)}{detail}")
            self._tell()
        else:
            count, longest = self._more.get(name, (0, 0.0))
            self._more[name] = count + 1, max(longest, seconds)

    def tell_more(self) -> None:
        """Log what has come since the last lines that are old enough."""
        now = self._clock()
        for name in [name for name in list(self._more) if now - self._told[name] >= INTERVAL]:
            count, longest = self._more.pop(name)
            self._told[name] = now
            self._waiting.append(f"{name} held the loop {count} more times, for up to {_shown(longest)}")
        self._tell()

    def _tell(self) -> None:
        if self._waiting and _log.hasHandlers():
            lines, self._waiting = self._waiting, []
            for line in lines:
                _log.warning("%s", line)


def _shown(seconds: float) -> str:
    return f"{seconds * 1000:.1f} ms"


class SlowCallbacks:
    """Measures a loop from now on. ``longest`` is in seconds."""

    def __init__(self, loop: asyncio.AbstractEventLoop, longest: float, log: SlowLog) -> None:
        self._loop = loop
        self.longest = longest
        self._pause = max(longest / 2, SHORTEST)
        self.log = log
        self.began = self._ended = 0.0
        self._due = self._process_cpu = 0.0
        self._sample = (0.0, "")
        for name, position in _SCHEDULING.items():
            setattr(loop, name, self._scheduling(getattr(loop, name), position))
        setattr(loop, "run_forever", partial(self._run, loop.run_forever))  # noqa: B010 - a method, to mypy

    def _scheduling(self, method: Callable[..., Any], position: int) -> Callable[..., Any]:
        def schedule(*args: Any, **options: Any) -> Any:
            callback = args[position]
            timed = callback if isinstance(callback, _Timed) else _Timed(callback, self)
            return method(*args[:position], timed, *args[position + 1 :], **options)

        return schedule

    def _run(self, run_forever: Callable[[], None]) -> None:
        """The loop's `run_forever`, with the timer, the sampling thread and the collector's callback."""
        stopped = threading.Event()
        loop_thread = threading.get_ident()
        sampler = threading.Thread(target=self._keep_sampling, args=(loop_thread, stopped), daemon=True)
        collected = _Collections(self)
        self._ended = self._due = time.monotonic()
        gc.callbacks.append(collected)
        sampler.start()
        self._timer = self._loop.call_soon(self._beat)
        try:
            run_forever()
        finally:
            self._timer.cancel()
            gc.callbacks.remove(collected)
            stopped.set()
            sampler.join()

    def ran(self, callback: object, began: float, cpu: float) -> None:
        """A callback has ended that took ``cpu`` seconds of this thread."""
        self._ended, self.began = time.monotonic(), 0.0
        if self._ended - began >= self.longest:
            name, detail = name_of(callback)
            seen = f", seen at {self._sample[1]}" if self._sample[0] == began else ""
            self.log.add(name, self._ended - began, f" ({_shown(cpu)} of CPU{detail}{seen})")

    def _beat(self) -> None:
        """Find a time in which nothing ran though this timer was due, and the process was not idle."""
        began, cpu = self.began, time.process_time()
        held = began - max(self._due, self._ended)
        if held >= self.longest and cpu - self._process_cpu >= self.longest:
            threads = ", ".join(_places(threading.get_ident())[:THREADS])
            self.log.add(f"no callback of ours, but perhaps a thread ({threads})", held, "")
        self.log.tell_more()
        self._due, self._process_cpu = time.monotonic() + self._pause, time.process_time()
        self._timer = self._loop.call_later(self._pause, self._beat)

    def _keep_sampling(self, loop_thread: int, stopped: threading.Event) -> None:
        while not stopped.wait(self._pause):
            began = self.began
            if began and time.monotonic() - began >= self.longest / 2:
                self._sample = began, _place_in(sys._current_frames().get(loop_thread))  # noqa: SLF001 - as documented


class _Timed:
    __slots__ = ("_callback", "_watch")

    def __init__(self, callback: Callable[..., Any], watch: SlowCallbacks) -> None:
        self._callback = callback
        self._watch = watch

    def __call__(self, *args: Any) -> None:
        watch = self._watch
        cpu = time.thread_time()
        watch.began = began = time.monotonic()
        try:
            self._callback(*args)
        finally:
            watch.ran(self._callback, began, time.thread_time() - cpu)

    def __repr__(self) -> str:
        return repr(self._callback)


class _Collections:
    """Callback of the garbage collector, which holds all threads. Its CPU time counts: a thread that collects may wait
    for the interpreter just before it.
    """

    def __init__(self, watch: SlowCallbacks) -> None:
        self._watch = watch
        self._began = 0.0

    def __call__(self, phase: str, info: Mapping[str, int]) -> None:
        now = time.thread_time()
        if phase == "start":
            self._began = now
        elif now - self._began >= self._watch.longest:
            name = f"the garbage collector (generation {info['generation']})"
            self._watch.log.add(name, now - self._began, f", in thread {threading.current_thread().name}")


def name_of(callback: object) -> tuple[str, str]:
    """Function or coroutine with its place, and what else is known of a task, for the end of a line."""
    while isinstance(callback, partial):
        callback = callback.func
    task = getattr(callback, "__self__", None)
    if isinstance(task, asyncio.Task):
        coroutine = task.get_coro()
        waits = _waiting_at(coroutine)
        return _described(coroutine), f"; task {task.get_name()}{f', now at {waits}' if waits else ', ended'}"
    return _described(callback), ""


def _described(one: object) -> str:
    """`Reloader.run (tlsproxy/service/reloader.py:166)`; of compiled code module and name."""
    one = getattr(one, "__func__", one)
    code = getattr(one, "__code__", None) or getattr(one, "cr_code", None)
    name = getattr(one, "__qualname__", None) or repr(one)[:100]
    if isinstance(code, CodeType):
        return f"{name} ({_place(code.co_filename, code.co_firstlineno)})"
    module = getattr(one, "__module__", None) or type(getattr(one, "__self__", one)).__module__
    return f"{module}.{name}"


def _waiting_at(coroutine: object) -> str:
    """The place where a suspended coroutine goes on: in our code, if it is there; empty if it has ended."""
    place = ""
    while coroutine is not None:
        frame = getattr(coroutine, "cr_frame", None)
        if frame is not None and (not place or _is_ours(frame.f_code.co_filename)):
            place = _place(frame.f_code.co_filename, frame.f_lineno)
        coroutine = getattr(coroutine, "cr_await", None)
    return place


def _places(but: int) -> list[str]:
    """The present places of all threads but one."""
    return [_place_in(frame) for thread, frame in sys._current_frames().items() if thread != but]  # noqa: SLF001


def _place_in(frame: FrameType | None) -> str:
    """The innermost function and its place, and the innermost of ours that has called it."""
    ours = frame
    while ours is not None and not _is_ours(ours.f_code.co_filename):
        ours = ours.f_back
    called = [] if ours is None or ours is frame else [ours]
    return " by ".join(
        f"{one.f_code.co_qualname} {_place(one.f_code.co_filename, one.f_lineno)}"
        for one in (frame, *called)
        if one is not None
    )


def _is_ours(file: str) -> bool:
    return file.startswith(_OURS) and file != __file__


def _place(file: str, line: int) -> str:
    parts = Path(file).parts
    return f"{'/'.join(parts[len(_PACKAGE.parts) - 1 :] if file.startswith(_OURS) else parts[-3:])}:{line}"
