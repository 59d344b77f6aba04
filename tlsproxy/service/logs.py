"""The log, as text or JSON, for a terminal, a file or the journal.

A record is one line, whatever a client has sent: unprintable characters are escaped, and a traceback is indented (text)
or one string (json). So no client can forge a line.

Lines for the journal begin with their syslog priority and have no time (sd-daemon(3)): journald removes the first and
adds the second.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Mapping
from types import TracebackType
from typing import Final, TextIO

from tlsproxy.audit.line import json_string, timestamp
from tlsproxy.config.model import Logger
from tlsproxy.service.log_output import Output
from tlsproxy.text import printable

_log = logging.getLogger(__name__)

_PRIORITIES: Final = ((logging.CRITICAL, 2), (logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6))
_DEBUG: Final = 7
"""The numbers are those of syslog(3)."""
_COLOURS: Final = {"DEBUG": "2", "WARNING": "33", "ERROR": "31", "CRITICAL": "1;31"}
_KNOWN: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime"}
"""Attributes of every record; others come from `extra`."""


def configure(logger: Logger, level: str, environ: Mapping[str, str]) -> None:
    """Set up the log of this process, once, before its first record."""
    stream = sys.stdout if logger.output == "stdout" else sys.stderr
    journal = environ.get("JOURNAL_STREAM") == _identity(stream)
    stream.flush()
    handler = Output(stream.fileno())
    if logger.format == "json":
        formatter: logging.Formatter = _Json()
    else:
        colour = logger.color == "enable" or (logger.color == "auto" and _shows_colour(stream, environ))
        formatter = _Text(times=not journal, colour=colour)
    handler.setFormatter(_Prioritised(formatter) if journal else formatter)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    set_level(level)
    logging.getLogger("hpack").setLevel(logging.INFO)  # its DEBUG lines have all fields, API keys too
    logging.getLogger("watchfiles").setLevel(logging.WARNING)  # a reload reports the changes
    logging.captureWarnings(True)
    sys.excepthook = _uncaught


def set_level(level: str) -> None:
    """Apply `log_level` of the configuration in force."""
    logging.getLogger().setLevel(level.replace("WARN", "WARNING"))


def _uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    _log.critical("ended by a defect", exc_info=(kind, error, trace))


def _identity(stream: TextIO) -> str:
    """Device and inode of a stream, in the form of $JOURNAL_STREAM (systemd.exec(5))."""
    facts = os.fstat(stream.fileno())
    return f"{facts.st_dev}:{facts.st_ino}"


def _shows_colour(stream: TextIO, environ: Mapping[str, str]) -> bool:
    """Colours on a terminal, unless NO_COLOR (https://no-color.org) or TERM say no."""
    return stream.isatty() and not environ.get("NO_COLOR") and environ.get("TERM") != "dumb"


class _Text(logging.Formatter):
    """``TIME LEVEL logger[pid]: message``, and an indented traceback below it."""

    def __init__(self, *, times: bool, colour: bool) -> None:
        super().__init__()
        self._times = times
        self._colour = colour

    def format(self, record: logging.LogRecord) -> str:
        level, code = record.levelname, _COLOURS.get(record.levelname, "") if self._colour else ""
        lines = [
            f"{timestamp(record.created)} " if self._times else "",
            f"\x1b[{code}m{level}\x1b[0m" if code else level,
            f" {record.name}[{record.process}]: {printable(record.getMessage())}",
        ]
        lines += [f"\n    {printable(line)}" for line in _raised(record).splitlines()]
        return "".join(lines)


class _Json(logging.Formatter):
    """One JSON object; ``fields`` has the record's `extra`, ``exception`` the traceback as a string."""

    def format(self, record: logging.LogRecord) -> str:
        fields = {name: value for name, value in vars(record).items() if name not in _KNOWN}
        members = {
            "timestamp": _value(timestamp(record.created)),
            "level": _value(record.levelname),
            "logger": _value(record.name),
            "pid": _value(record.process),
            "message": _value(record.getMessage()),
        }
        if fields:
            members["fields"] = _object({name: _value(value) for name, value in fields.items()})
        if raised := _raised(record):
            members["exception"] = _value(raised)
        return _object(members)


class _Prioritised(logging.Formatter):
    """Lines of another formatter with a priority each, since journald makes each an entry of its own."""

    def __init__(self, inner: logging.Formatter) -> None:
        super().__init__()
        self._inner = inner

    def format(self, record: logging.LogRecord) -> str:
        priority = next((number for level, number in _PRIORITIES if record.levelno >= level), _DEBUG)
        return "\n".join(f"<{priority}>{line}" for line in self._inner.format(record).split("\n"))


def _raised(record: logging.LogRecord) -> str:
    if record.exc_info and record.exc_info[0] is not None:
        return logging.Formatter().formatException(record.exc_info)
    return ""


def _object(members: Mapping[str, str]) -> str:
    return "{" + ",".join(f"{json_string(name)}:{value}" for name, value in members.items()) + "}"


def _value(value: object) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return json_string(str(value))
