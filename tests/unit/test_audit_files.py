from __future__ import annotations

import fcntl
import logging
import os
import resource
import stat
import subprocess
import sys
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import pytest

from tlsproxy.audit.files import AuditFiles, StandardOutput

if TYPE_CHECKING:
    from collections.abc import Iterator

DAY = 86_400.0


def at(text: str) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()


@pytest.fixture
def daily(tmp_path: Path) -> Iterator[AuditFiles]:
    files = AuditFiles(tmp_path / "audit", "daily", 3)
    yield files
    files.close()


@pytest.fixture
def hourly(tmp_path: Path) -> Iterator[AuditFiles]:
    files = AuditFiles(tmp_path / "audit", "hourly", 3)
    yield files
    files.close()


def put(files: AuditFiles, when: float, text: str) -> bool:
    moved = files.ready(when)
    assert files.append(memoryview(text.encode())) == len(text)
    return moved


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_a_day_is_a_file_named_in_utc(daily: AuditFiles, tmp_path: Path) -> None:
    assert put(daily, at("2026-08-04T23:59:59.999"), "one\n")
    assert not put(daily, at("2026-08-04T23:59:59.9999"), "two\n")
    assert put(daily, at("2026-08-05T00:00:00"), "three\n")
    assert (tmp_path / "audit" / "audit.2026-08-04.log").read_text() == "one\ntwo\n"
    assert (tmp_path / "audit" / "audit.2026-08-05.log").read_text() == "three\n"


def test_an_hour_is_a_file(hourly: AuditFiles, tmp_path: Path) -> None:
    put(hourly, at("2026-08-04T09:59:59"), "one\n")
    put(hourly, at("2026-08-04T10:00:00"), "two\n")
    assert names(tmp_path / "audit") == ["audit.2026-08-04-09.log", "audit.2026-08-04-10.log"]


def test_only_its_owner_reads_it(daily: AuditFiles, tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        put(daily, 0, "one\n")
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "audit").stat().st_mode) == 0o700
    assert stat.S_IMODE((tmp_path / "audit" / "audit.1970-01-01.log").stat().st_mode) == 0o600


@pytest.mark.skipif(os.geteuid() != 0, reason="another group is needed")
@pytest.mark.parametrize("kind", ["new", "there"])
def test_a_group_reads_it(tmp_path: Path, kind: str) -> None:
    """Also today's file of a run without the group; a directory that was there keeps its mode."""
    directory = tmp_path / "audit"
    if kind == "there":
        directory.mkdir(mode=0o711)
        (directory / "audit.1970-01-01.log").touch(mode=0o600)
    files = AuditFiles(directory, "daily", 3, group=65534)
    for when in (0, DAY):
        put(files, when, "one\n")
    files.close()
    for path in directory.iterdir():
        assert (path.stat().st_gid, stat.S_IMODE(path.stat().st_mode)) == (65534, 0o640)
    expected = (65534, 0o750) if kind == "new" else (os.getegid(), 0o711)
    assert (directory.stat().st_gid, stat.S_IMODE(directory.stat().st_mode)) == expected


@pytest.mark.skipif(os.geteuid() != 0, reason="another user is needed")
def test_its_own_group_needs_no_chown_and_another_is_refused() -> None:
    """Our unit forbids chown: there `Group=` is the group."""
    with TemporaryDirectory(dir="/tmp") as name:
        directory = Path(name)
        directory.chmod(0o777)
        with as_user(65534, 65534):
            files = AuditFiles(directory, "daily", 3, group=65534)
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(os, "fchown", None)
                put(files, 0, "one\n")
            files.close()
            with pytest.raises(PermissionError):
                AuditFiles(directory, "daily", 3, group=0).ready(DAY)
        assert stat.S_IMODE((directory / "audit.1970-01-01.log").stat().st_mode) == 0o640


@contextmanager
def as_user(user: int, group: int) -> Iterator[None]:
    groups = os.getgroups()
    os.setgroups([])
    os.setegid(group)
    os.seteuid(user)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)
        os.setgroups(groups)


def test_a_restart_appends(tmp_path: Path) -> None:
    for text in ("one\n", "two\n"):
        files = AuditFiles(tmp_path, "daily", 3)
        put(files, 0, text)
        files.close()
    assert (tmp_path / "audit.1970-01-01.log").read_text() == "one\ntwo\n"


def test_a_half_line_of_a_crash_is_not_glued_to_the_next(tmp_path: Path) -> None:
    (tmp_path / "audit.1970-01-01.log").write_text('whole\n{"timestamp":"19')
    files = AuditFiles(tmp_path, "daily", 3)
    put(files, 0, "next\n")
    files.close()
    assert (tmp_path / "audit.1970-01-01.log").read_text() == 'whole\n{"timestamp":"19\nnext\n'


def test_the_oldest_beyond_the_limit_go_and_nothing_else(daily: AuditFiles, tmp_path: Path) -> None:
    directory = tmp_path / "audit"
    directory.mkdir()
    kept = ["audit.1970-01-01-00.log", "audit.1970-01-01.log.gz", "audit.log", "notes", "xaudit.1970-01-01.log"]
    for name in kept:
        (directory / name).touch()
    for day in range(6):
        put(daily, day * DAY, "line\n")
    assert names(directory) == sorted(
        [*kept, "audit.1970-01-04.log", "audit.1970-01-05.log", "audit.1970-01-06.log"],
    )


def test_the_current_file_stays_though_a_wrong_clock_left_later_ones(daily: AuditFiles, tmp_path: Path) -> None:
    for day in (1000, 1001, 1002):
        put(daily, day * DAY, "future\n")
    put(daily, 0, "now\n")
    assert "audit.1970-01-01.log" in names(tmp_path / "audit")
    assert len(names(tmp_path / "audit")) == 3


def test_an_old_file_that_cannot_be_removed_is_told_of_and_costs_no_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "audit.1969-12-30.log").mkdir()
    files = AuditFiles(tmp_path, "daily", 1)
    with caplog.at_level(logging.WARNING):
        put(files, 0, "line\n")
    files.close()
    assert "are not removed" in caplog.text
    assert (tmp_path / "audit.1970-01-01.log").read_text() == "line\n"


@pytest.mark.parametrize("how", ["removed", "renamed"])
def test_a_file_that_went_away_is_begun_anew(daily: AuditFiles, tmp_path: Path, how: str) -> None:
    put(daily, 0, "one\n")
    path = tmp_path / "audit" / "audit.1970-01-01.log"
    if how == "removed":
        path.unlink()
    else:
        path.rename(path.with_suffix(".1"))
    assert put(daily, 0, "two\n")
    assert path.read_text() == "two\n"


def test_a_directory_that_vanished_is_an_error_and_not_made_again(daily: AuditFiles, tmp_path: Path) -> None:
    put(daily, 0, "one\n")
    (tmp_path / "audit").rename(tmp_path / "elsewhere")
    for _ in range(2):
        with pytest.raises(FileNotFoundError):
            daily.ready(0)
    (tmp_path / "elsewhere").rename(tmp_path / "audit")
    assert put(daily, 0, "two\n")
    assert (tmp_path / "audit" / "audit.1970-01-01.log").read_text() == "one\ntwo\n"


def test_a_link_in_the_files_place_is_not_followed(daily: AuditFiles, tmp_path: Path) -> None:
    (tmp_path / "audit").mkdir()
    (tmp_path / "precious").write_text("untouched")
    (tmp_path / "audit" / "audit.1970-01-01.log").symlink_to(tmp_path / "precious")
    with pytest.raises(OSError, match="symbolic links"):
        daily.ready(0)
    assert (tmp_path / "precious").read_text() == "untouched"


def test_a_fifo_in_the_files_place_is_refused_and_does_not_block(daily: AuditFiles, tmp_path: Path) -> None:
    (tmp_path / "audit").mkdir()
    os.mkfifo(tmp_path / "audit" / "audit.1970-01-01.log")
    with pytest.raises(OSError, match="not a regular file"):
        daily.ready(0)


def test_the_standard_output_waits_for_a_slow_reader() -> None:
    reader, writer = os.pipe2(os.O_NONBLOCK)
    output = StandardOutput(writer)
    block = memoryview(bytes(4096))
    sent = 0
    while count := output.append(block):
        sent += count
    received = len(os.read(reader, sent))
    assert output.append(block) == 4096
    assert received
    os.close(reader)
    with pytest.raises(BrokenPipeError):
        output.append(block)
    os.close(writer)


def test_a_line_that_the_disk_had_no_room_for_is_taken_back(daily: AuditFiles, tmp_path: Path) -> None:
    """Or what another process writes, once there is room, would be glued to it."""
    daily.ready(0)
    path = tmp_path / "audit" / "audit.1970-01-01.log"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, hard))
    try:
        assert daily.append(memoryview(b"one\ntwo\nthree\n")) == len("one\ntwo\n")
        with pytest.raises(OSError, match="too large"):
            daily.append(memoryview(b"three\n"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_text() == "one\ntwo\n"
    put(daily, 0, "three\n")
    assert path.read_text() == "one\ntwo\nthree\n"


def test_a_half_line_of_another_process_is_not_glued_to_ours(daily: AuditFiles, tmp_path: Path) -> None:
    put(daily, 0, "one\n")
    with (tmp_path / "audit" / "audit.1970-01-01.log").open("a") as other:
        other.write("killed in the mid")
    put(daily, 0, "two\n")
    assert (tmp_path / "audit" / "audit.1970-01-01.log").read_text() == "one\nkilled in the mid\ntwo\n"


WRITER = """
import sys
from tlsproxy.audit.files import StandardOutput, Turn
output, letter = StandardOutput(turn=Turn(int(sys.argv[1]))), sys.argv[2]
for _ in range(20):
    line = memoryview((letter * 20_000 + "\\n").encode())
    while line:
        line = line[output.append(line):]
"""


def test_lines_of_several_processes_to_one_pipe_stay_whole() -> None:
    turn = os.memfd_create("turn")
    reader, writer = os.pipe2(os.O_NONBLOCK)
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)  # no line fits into it
    os.set_blocking(reader, True)
    command = [sys.executable, "-c", WRITER, str(turn)]
    processes = [subprocess.Popen([*command, letter], stdout=writer, pass_fds=[turn]) for letter in "abc"]
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        lines = pipe.read().splitlines()
    assert [process.wait() for process in processes] == [0, 0, 0]
    os.close(turn)
    assert {(line[:1], len(line), len(set(line))) for line in lines} == {(one, 20_000, 1) for one in (b"a", b"b", b"c")}
    assert len(lines) == 60
