"""Log lines: one record is one line, whatever a stranger's text is in it."""

from __future__ import annotations

import json
import logging
import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tlsproxy.config.model import Config
from tlsproxy.service import logs

ANY = st.text(st.characters() | st.sampled_from("\n\r\x0b\x1b\x7f\x85\u2028\u202e\ud800"))
SURROGATE = re.compile("[\ud800-\udfff]")
FIRST = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z ERROR some\.place\[\d+\]: ")


def config(**logger: str) -> Config:
    return Config.model_validate({"tls": {"cert": "/", "key": "/"}, "logger": logger})


@pytest.fixture(scope="module", autouse=True)
def _restored() -> Iterator[None]:
    """What `configure` changes of the process is as it was."""
    root, hpack = logging.getLogger(), logging.getLogger("hpack")
    before = root.handlers[:], root.level, hpack.level, sys.excepthook
    yield
    root.handlers[:], level, hpack.level, sys.excepthook = before
    root.setLevel(level)
    logging.captureWarnings(False)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., str]]:
    """What the configured log writes of what is logged."""
    path: Path = tmp_path_factory.mktemp("logs") / "log"
    with path.open("w+", encoding="utf-8", newline="") as stream:

        def write(settings: Config, say: Callable[[], object], *, journal: bool = False) -> str:
            stream.seek(0)
            stream.truncate()
            facts = os.fstat(stream.fileno())
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(sys, "stderr", stream)
                environ = {"JOURNAL_STREAM": f"{facts.st_dev}:{facts.st_ino}"} if journal else {}
                logs.configure(settings.logger, settings.log_level, environ)
            say()
            handler = logging.getLogger().handlers[0]
            handler.flush()
            handler.close()
            stream.seek(0)
            return stream.read()

        yield write


def error(message: str, **how: Any) -> Callable[[], None]:
    return lambda: logging.getLogger("some.place").error("%s", message, **how)


def raised(text: str) -> BaseException:
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - its text is what it was given
        raise ValueError(text)
    return caught.value


@given(ANY, ANY)
def test_text_cannot_be_forged(written: Callable[..., str], message: str, text: str) -> None:
    lines = written(config(), error(message, exc_info=raised(text))).removesuffix("\n").split("\n")
    assert FIRST.match(lines[0])
    assert all(line.isprintable() for line in lines)
    assert all(line.startswith("    ") for line in lines[1:])
    assert not message.isprintable() or lines[0].endswith(f": {message}")


@given(ANY, ANY)
def test_json_is_one_object_a_line(written: Callable[..., str], message: str, text: str) -> None:
    how = {"exc_info": raised(text), "extra": {"generation": 7, "said": text}}
    line = written(config(format="json"), error(message, **how))
    assert line[-1] == "\n"
    assert line[:-1].isascii()
    assert line[:-1].isprintable()
    record = json.loads(line)
    assert list(record) == ["timestamp", "level", "logger", "pid", "message", "fields", "exception"]
    assert (record["level"], record["logger"], record["pid"]) == ("ERROR", "some.place", os.getpid())
    assert record["message"] == SURROGATE.sub("\ufffd", message)
    assert record["fields"] == {"generation": 7, "said": SURROGATE.sub("\ufffd", text)}
    assert record["exception"].endswith("ValueError: " + SURROGATE.sub("\ufffd", text) if text else "ValueError")


@pytest.mark.parametrize("form", ["text", "json"])
def test_the_journal_is_told_the_priority_of_every_line(written: Callable[..., str], form: str) -> None:
    what = error("one\n<0>two", exc_info=raised("three\n<0>four"))
    lines = written(config(format=form), what, journal=True).splitlines()
    assert all(line.startswith("<3>") for line in lines)
    if form == "text":
        assert re.fullmatch(r"<3>ERROR some\.place\[\d+\]: one\\n<0>two", lines[0])
        assert lines[-2:] == ["<3>    ValueError: three", "<3>    <0>four"]
    else:
        assert json.loads(lines[0].removeprefix("<3>"))["message"] == "one\n<0>two"
        assert len(lines) == 1


def test_colour_where_it_is_asked_for(written: Callable[..., str]) -> None:
    assert "\x1b[31mERROR\x1b[0m some.place" in written(config(color="enable"), error("text"))
    assert "\x1b" not in written(config(color="auto"), error("text"))  # no terminal
    assert "\x1b" not in written(config(color="enable", format="json"), error("text"))


def test_what_nobody_caught_is_a_record(written: Callable[..., str]) -> None:
    defect = raised("a defect")
    record = json.loads(
        written(config(format="json"), lambda: sys.excepthook(type(defect), defect, defect.__traceback__))
    )
    assert (record["level"], record["logger"]) == ("CRITICAL", "tlsproxy.service.logs")
    assert record["exception"].endswith("ValueError: a defect")


def test_what_hpack_says_at_debug_is_not_written(written: Callable[..., str]) -> None:
    """Every field that it reads, keys among them."""
    settings = config().model_copy(update={"log_level": "DEBUG"})
    assert "shown" in written(settings, lambda: logging.getLogger("some.place").debug("shown"))
    assert written(settings, lambda: logging.getLogger("hpack.hpack").debug("not shown")) == ""
