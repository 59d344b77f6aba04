"""The lock file: changes of several operators, its owner, and that nothing but `unlock` or time lifts a lock."""

from __future__ import annotations

import asyncio
import os
import threading
from contextlib import suppress
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from tlsproxy.authz.locks import Lock
from tlsproxy.cli import lock_store, main
from tlsproxy.config.locks import DrainEntry, FileEntry, LockFile, lock_path, moment, read_lock_file, write_lock_file
from tlsproxy.errors import MaterialError
from tlsproxy.snapshot.lock_file import LockFileWatch, first_locks

NOW = 1e9
PATH = Path("tlsproxy.yaml.locks")


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "tlsproxy.yaml"
    path.write_text("")
    path.chmod(0o640)
    return path


def command(config: Path, *words: str) -> tuple[int, str, str]:
    done = CliRunner().invoke(main, [*words, "--config", str(config)])
    return done.exit_code, done.stdout, done.stderr


def locked(config: Path) -> set[str]:
    return {entry.lock().value for entry in lock_store.read(config).in_force(NOW).values()}


def test_operators_at_once_lose_nothing(config: Path) -> None:
    def add(first: int) -> None:
        for number in range(first, first + 10):
            entry = FileEntry.of(Lock("subject", f"user-{number}", at=NOW))
            lock_store.change(config, lambda file, entry=entry: LockFile(locks=(*file.locks, entry)))  # type: ignore[misc]

    threads = [threading.Thread(target=add, args=(10 * part,)) for part in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert locked(config) == {f"user-{number}" for number in range(40)}
    assert sorted(path.name for path in config.parent.iterdir()) == ["tlsproxy.yaml", "tlsproxy.yaml.locks"]


def test_the_service_can_read_it(config: Path) -> None:
    """Written by root, it is as the configuration is; a second change keeps what somebody gave it."""
    owner = 12345 if os.geteuid() == 0 else os.geteuid()
    os.chown(config, -1, owner if os.geteuid() == 0 else -1)
    assert command(config, "lock", "alice")[0] == 0
    found = lock_path(config).stat()
    assert (found.st_mode & 0o777, found.st_gid) == (0o640, config.stat().st_gid)
    lock_path(config).chmod(0o600)
    assert command(config, "unlock", "CN=alice")[0] == 0
    assert lock_path(config).stat().st_mode & 0o777 == 0o600
    assert locked(config) == set()


def test_its_author_is_the_person_behind_sudo(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SUDO_USER", "carol\x1b")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert "by carol\\x1b: theft" in command(config, "lock", "alice", "--reason", "theft")[1]
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert "carol" not in command(config, "lock", "bob")[1]


def test_a_link_stays_one(config: Path, tmp_path: Path) -> None:
    there = tmp_path / "shared"
    there.mkdir()
    lock_path(config).symlink_to(there / "locks")
    assert command(config, "lock", "alice")[0] == 0
    assert lock_path(config).is_symlink()
    assert (there / "locks").exists()


@pytest.mark.parametrize("given", ["1", "h", "-1h", "0s", "1h1h", "1.5h", "100w 1d x", "999999999w", ""])
def test_no_durations(config: Path, given: str) -> None:
    code, _, said = command(config, "lock", "alice", "--for", given)
    assert (code, "is no duration" in said, lock_path(config).exists()) == (2, True, False)


@pytest.mark.parametrize(
    ("given", "left"), [("45s", "45 sec"), ("90m", "90 min"), ("1h30m", "90 min"), ("2d", "2 d"), ("1W", "7 d")]
)
def test_durations(config: Path, given: str, left: str) -> None:
    code, said, _ = command(config, "lock", "alice", "--for", given)
    assert (code, left in said) == (0, True), said


@pytest.mark.parametrize(
    "words",
    [(), ("alice", "--key", "k"), ("--sha256", "ab"), ("--serial", "zz"), ("alice", "--issuer", "CN=ca"), (" ",)],
)
def test_no_caller(config: Path, words: tuple[str, ...]) -> None:
    for name in ("lock", "unlock"):
        assert command(config, name, *words)[0] == 2
    assert not lock_path(config).exists()


def test_a_lock_is_extended_and_never_shortened(config: Path) -> None:
    assert "locked: " in command(config, "lock", "alice", "--for", "1h")[1]
    assert "locked already: " in command(config, "lock", "CN=Alice", "--for", "30m")[1]
    assert "2 days left" in command(config, "lock", "Alice", "--for", "49h")[1]
    assert "until unlocked" in command(config, "lock", "alice")[1]
    assert len(lock_store.read(config).in_force(NOW)) == 1


@pytest.mark.parametrize("ends", [(9, 99), (99, 9)])
def test_one_unlock_for_all_entries_of_a_caller(config: Path, ends: tuple[int, int]) -> None:
    twice = [
        FileEntry.of(Lock("subject", name, until=NOW + end))
        for name, end in zip(("alice", "CN=Alice"), ends, strict=True)
    ]
    lifted = twice[0].model_copy(update={"lifted_at": moment(NOW)})
    file = LockFile(locks=(*twice, lifted))
    assert {entry.lock().until for entry in file.in_force(NOW).values()} == {NOW + 99}
    later = (entry.model_copy(update={"until": None}) for entry in twice)
    lock_store.change(config, lambda _: LockFile(locks=(lifted, *later, lifted)))
    assert command(config, "unlock", "alice")[0] == 0
    assert lock_store.read(config).given() == ()


def test_what_cannot_be_done_is_said(config: Path, tmp_path: Path) -> None:
    assert command(config, "unlock", "alice")[0] == 1
    code, _, said = command(tmp_path / "other.yaml", "lock", "alice")
    assert (code, "locks stand beside the configuration" in said) == (2, True)
    lock_path(config).write_text('{"locks": [{"subject": "a"}, {"subject": "b", "key": "c"}]}')
    code, _, said = command(config, "lock", "alice")
    assert (code, "entry 2: must name exactly one caller" in said, "unlock --all" in said) == (2, True, True)
    lock_path(config).write_text('{"locks": [{"subject": "a", "subject": "b"}]}')
    assert "a member comes twice" in command(config, "locks")[2]
    assert command(config, "unlock", "--all")[0] == 0
    assert locked(config) == set()
    lock_path(config).unlink()
    lock_path(config).symlink_to(lock_path(config).name)
    for name in ("lock", "unlock"):
        code, _, said = command(config, name, "alice")
        assert (code, "back to itself" in said) == (2, True), said
    assert "Too many levels" in command(config, "unlock", "--all")[2]


def test_a_full_file_is_unlocked_at_once(config: Path) -> None:
    entry = FileEntry.of(Lock("subject", "x" * 1000, at=NOW, reason="r" * 400))
    file = LockFile(
        locks=tuple(entry.model_copy(update={"jti": str(number), "subject": None}) for number in range(2200))
    )
    lock_path(config).write_bytes(write_lock_file(file))
    assert command(config, "unlock", "--all")[0] == 0
    assert (lock_store.read(config).locks, lock_store.read(config).after(file, NOW).in_force(NOW)) == ((), {})


@st.composite
def files(draw: st.DrawFn) -> LockFile:
    entries = []
    for name in draw(st.lists(st.sampled_from(["alice", "bob", "carol"]), unique=True)):
        entry = FileEntry.of(Lock("subject", name, until=draw(st.sampled_from([NOW - 1, NOW + 9, float("inf")])), at=1))
        if draw(st.booleans()):
            entry = entry.model_copy(update={"lifted_at": moment(NOW), "lifted_by": 'x"\n'})
        entries.append(entry)
    return LockFile(locks=tuple(entries))


@given(files())
def test_what_is_written_is_read(file: LockFile) -> None:
    assert read_lock_file(PATH, write_lock_file(file)) == file


@given(files(), files())
def test_only_a_mark_or_time_lifts(former: LockFile, file: LockFile) -> None:
    after = file.after(former, NOW)
    lifted = {entry.lock().selector for entry in file.locks if entry.lifted_at is not None}
    over = {entry.lock().selector for entry in file.locks if entry.lock().until <= NOW}
    assert former.in_force(NOW).keys() - lifted - over <= after.in_force(NOW).keys()
    assert after.in_force(NOW).keys() <= former.in_force(NOW).keys() | file.in_force(NOW).keys()
    cleared = file.model_copy(update={"all_lifted_at": moment(NOW)})
    assert cleared.after(former, NOW) == cleared


@given(st.binary(max_size=60) | st.text(max_size=60).map(str.encode))
def test_anything_else_is_no_lock_file(data: bytes) -> None:
    with suppress(MaterialError):
        assert isinstance(read_lock_file(PATH, data), LockFile)


def test_a_file_that_goes_before_the_first_look(config: Path) -> None:
    command(config, "lock", "alice")
    watch = LockFileWatch(config, first_locks(config))
    lock_path(config).unlink()
    assert asyncio.run(watch.read(NOW))
    assert not asyncio.run(watch.read(NOW + 1))
    assert watch.fault is not None
    assert "is gone: 1 lock in force until" in watch.fault.text
    command(config, "unlock", "--all")
    assert asyncio.run(watch.read(NOW + 2))
    assert (watch.fault, watch.state.value.in_force(NOW)) == (None, {})


def test_drained_nodes_stay_drained_without_the_file(config: Path) -> None:
    file = LockFile(drained=(DrainEntry(node="a"), DrainEntry(node="\x1b[31m")))
    lock_path(config).write_bytes(write_lock_file(file))
    watch = LockFileWatch(config, first_locks(config))
    lock_path(config).unlink()
    assert asyncio.run(watch.read(NOW))
    assert watch.state.value.drained == file.drained
    assert watch.fault is not None
    assert watch.fault.text.endswith("is gone: drained until `tlsproxy node NAME up`: a, \\x1b[31m")
    lock_path(config).write_bytes(write_lock_file(LockFile()))
    assert asyncio.run(watch.read(NOW + 1))
    assert (watch.fault, watch.state.value.drained) == (None, ())
