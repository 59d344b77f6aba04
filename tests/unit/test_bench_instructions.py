"""Instructions by function: a profile of callgrind is read, and the difference of two is that of their requests."""

from __future__ import annotations

import shutil

import pytest
from click.testing import CliRunner

from bench.__main__ import main
from bench.callgrind import Profile

PROFILE = """\
# callgrind format
version: 1
creator: callgrind-3.19.0
cmd: /usr/bin/python3 -m tlsproxy run
part: 1
positions: line
events: Ir sysCount sysTime
summary: 1000 5 7

ob=/usr/lib/libpython3.11.so.1.0
fl=???
fn=_PyEval_EvalFrameDefault
0 {eval}
cob=/usr/lib/x86_64-linux-gnu/libc.so.6
cfi=???
cfn=send
calls=3 0
0 90000 3 8
0 7
cob=/venv/abc__mypyc.cpython-311-x86_64-linux-gnu.so
cfi=???
cfn=CPyDef_http2___Frames___cut
calls=1 0
0 90000

ob=/usr/lib/x86_64-linux-gnu/libc.so.6
fl=???
fn=send
0 20 {sent} 5

ob=/venv/abc__mypyc.cpython-311-x86_64-linux-gnu.so
fl=???
fn=CPyDef_http2___Frames___cut
0 300
fn=CPyPy_http2___Frames___cut
0 40
fn=CPy_DecRef
0 5

totals: 1000 5 7
"""


def profile(evaluated: int, sent: int) -> Profile:
    return Profile.read(PROFILE.format(eval=evaluated, sent=sent).splitlines(keepends=True))


def test_events_are_a_functions_own() -> None:
    read = profile(evaluated=100, sent=4)
    assert read.by_function("Ir")[:2] == [
        ("CPyDef_http2___Frames___cut [abc__mypyc.cpython-311-x86_64-linux-gnu.so]", 300),
        ("_PyEval_EvalFrameDefault [libpython3.11.so.1.0]", 107),
    ]
    assert read.total("Ir") == 107 + 20 + 345
    assert dict(read.by_function("sysCount")) == {"send [libc.so.6]": 4}


def test_compiled_modules_stand_apart() -> None:
    assert profile(evaluated=100, sent=4).by_module("Ir") == [
        ("compiled http2", 340),
        ("libpython3.11.so.1.0", 107),
        ("libc.so.6", 20),
        ("abc__mypyc.cpython-311-x86_64-linux-gnu.so", 5),
    ]


def test_difference_is_that_of_the_requests() -> None:
    each = profile(evaluated=1100, sent=44).each(profile(evaluated=100, sent=4), 20)
    assert each.total("Ir") == 1000 / 20
    assert each.total("sysCount") == 2
    assert dict(each.by_module("Ir"))["compiled http2"] == 0


def test_where_valgrind_is_absent_its_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda _program, **_options: None)
    told = CliRunner().invoke(main, ["instructions", "get"])
    assert told.exit_code == 1
    assert "valgrind is not installed: apt-get install valgrind" in told.output
