from __future__ import annotations

import asyncio
import contextlib
import errno
import functools
import gc
import logging
import os
import shutil
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import watchfiles
from snapshot_site import OTHER, ROOT, SERVER, SnapshotSite, site

from tlsproxy.errors import TlsproxyError
from tlsproxy.snapshot import files, notify, watch
from tlsproxy.snapshot.files import read_inputs
from tlsproxy.snapshot.watch import Watcher
from tlsproxy.snapshot.watch_paths import WatchPaths, places_of

if TYPE_CHECKING:
    from tlsproxy.tls.pki import Issued

Rotate = Callable[[], None]
Way = Callable[[Path, SnapshotSite], Rotate]

SLOW = 300.0
"""A poll interval that no test waits for: what is found in time was found by a notification."""
FAST = 0.02


def in_loop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    @functools.wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        asyncio.run(test(*args, **kwargs))

    return run


@pytest.fixture(autouse=True)
def _hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "PAUSE", 0.005)


class Watched:
    """A watcher at work, whose triggers are waited for one at a time."""

    def __init__(self, made: SnapshotSite) -> None:
        self.made = made
        self.watcher = Watcher(made.config, made.environ, read_inputs(made.config, made.environ))
        self.triggers: asyncio.Queue[str] = asyncio.Queue()
        self.polls = 0
        self.polled = asyncio.Event()
        poll = self.watcher._poll

        async def counted() -> WatchPaths:
            outcome = await poll()
            self.polls += 1
            self.polled.set()
            return outcome

        self.watcher._poll = counted

    async def run(self) -> None:
        async with contextlib.aclosing(self.watcher.changes()) as changes:
            async for trigger in changes:
                await self.triggers.put(trigger)

    async def next(self) -> str:
        async with asyncio.timeout(10):
            return await self.triggers.get()

    async def some_polls(self, count: int = 3) -> None:
        until = self.polls + count
        async with asyncio.timeout(10):
            while self.polls < until:
                self.polled.clear()
                await self.polled.wait()


@contextlib.asynccontextmanager
async def watched(made: SnapshotSite) -> AsyncIterator[Watched]:
    it = Watched(made)
    task = asyncio.create_task(it.run())
    try:
        await it.some_polls(2)  # the first, and the one after the notifications were set up
        yield it
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert {other for other in asyncio.all_tasks() if other is not asyncio.current_task()} == set()


def fast(tmp_path: Path, **tls: object) -> SnapshotSite:
    return site(tmp_path, tls={"poll_interval": FAST, **tls})


def slow(tmp_path: Path, **tls: object) -> SnapshotSite:
    return site(tmp_path, tls={"poll_interval": SLOW, **tls})


def replaced(path: Path, data: bytes) -> None:
    """Rename-over, as every careful writer does it."""
    temporary = path.with_name(path.name + ".new")
    temporary.write_bytes(data)
    temporary.rename(path)


def fresh() -> Issued:
    return ROOT.issue(dns=["localhost"], server=True)


def certbot(tmp_path: Path, made: SnapshotSite) -> Rotate:
    """live/… → ../archive/…N, re-pointed file by file."""
    (tmp_path / "live").mkdir()
    (tmp_path / "archive").mkdir()
    for name in ("server.pem", "server.key"):
        (tmp_path / name).rename(tmp_path / "archive" / f"1-{name}")
        (tmp_path / "live" / name).symlink_to(f"../archive/1-{name}")
        (tmp_path / name).symlink_to(f"live/{name}")

    def rotate() -> None:
        issued = fresh()
        for name, data in (("server.pem", issued.chain_pem), ("server.key", issued.key_pem)):
            made.write(f"archive/2-{name}", data)
            (tmp_path / "live" / name).unlink()
            (tmp_path / "live" / name).symlink_to(f"../archive/2-{name}")

    return rotate


def kubernetes(tmp_path: Path, made: SnapshotSite) -> Rotate:
    """server.* → ..data/server.*, ..data → a directory of each version, the old one removed."""
    turn = 0

    def version(issued: Issued) -> None:
        nonlocal turn
        turn += 1
        (tmp_path / f"..v{turn}").mkdir()
        made.write(f"..v{turn}/server.pem", issued.chain_pem)
        made.write(f"..v{turn}/server.key", issued.key_pem)
        (tmp_path / "..data_tmp").symlink_to(f"..v{turn}")
        (tmp_path / "..data_tmp").rename(tmp_path / "..data")
        shutil.rmtree(tmp_path / f"..v{turn - 1}", ignore_errors=True)

    version(SERVER)
    for name in ("server.pem", "server.key"):
        (tmp_path / name).unlink()
        (tmp_path / name).symlink_to(f"..data/{name}")
    return lambda: version(fresh())


def parent_link(tmp_path: Path, made: SnapshotSite) -> Rotate:
    """current → a directory of each version, reached by the configured path through it."""
    for name in ("v1", "v2"):
        (tmp_path / name).mkdir()
        issued = fresh()
        made.write(f"{name}/server.pem", issued.chain_pem)
        made.write(f"{name}/server.key", issued.key_pem)
    (tmp_path / "current").symlink_to("v1")
    for name in ("server.pem", "server.key"):
        (tmp_path / name).unlink()
        (tmp_path / name).symlink_to(tmp_path / "current" / name)

    def rotate() -> None:
        (tmp_path / "next").symlink_to("v2")
        (tmp_path / "next").rename(tmp_path / "current")

    return rotate


def rename_over(tmp_path: Path, _made: SnapshotSite) -> Rotate:
    def rotate() -> None:
        issued = fresh()
        replaced(tmp_path / "server.key", issued.key_pem)
        replaced(tmp_path / "server.pem", issued.chain_pem)

    return rotate


def in_place(tmp_path: Path, made: SnapshotSite) -> Rotate:
    assert tmp_path
    return lambda: made.serve(fresh())


def ca_alone(tmp_path: Path, made: SnapshotSite) -> Rotate:
    assert tmp_path
    return lambda: made.write("ca.pem", ROOT.certificate_pem + OTHER.certificate_pem)


def configuration(tmp_path: Path, made: SnapshotSite) -> Rotate:
    text = (tmp_path / "tlsproxy.yaml").read_bytes()
    return lambda: made.write("tlsproxy.yaml", text + b"log_level: DEBUG\n")


WAYS = [certbot, kubernetes, parent_link, rename_over, in_place, ca_alone, configuration]


async def until_served(it: Watched) -> set[str]:
    """Rebuild as the service does, until what serves is what is on disk."""
    triggers = set()
    while True:
        triggers.add(await it.next())
        with contextlib.suppress(TlsproxyError):
            inputs = it.watcher.inputs
            await asyncio.to_thread(it.made.build, inputs=inputs)
            it.watcher.seen(inputs.digest)
            if inputs.digest == await asyncio.to_thread(it.made.digest):
                return triggers


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
@in_loop
async def test_a_rotation_is_found_by_polling_alone(tmp_path: Path, way: Way, monkeypatch: pytest.MonkeyPatch) -> None:
    async def nothing(_self: object, _places: WatchPaths) -> None:
        pass

    monkeypatch.setattr(notify.FileNotifications, "watch", nothing)
    made = fast(tmp_path)
    rotate = way(tmp_path, made)
    async with watched(made) as it:
        rotate()
        assert await until_served(it) == {"poll"}
        await it.some_polls()
        assert it.triggers.empty()


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
@in_loop
async def test_a_notification_makes_it_prompt(tmp_path: Path, way: Way) -> None:
    made = slow(tmp_path)
    rotate = way(tmp_path, made)
    async with watched(made) as it:
        rotate()
        assert await until_served(it) == {"watch"}


@in_loop
async def test_the_second_and_third_swap_are_found_too(tmp_path: Path) -> None:
    made = slow(tmp_path)
    rotate = kubernetes(tmp_path, made)
    async with watched(made) as it:
        for _ in range(3):
            rotate()
            assert await until_served(it) == {"watch"}


@in_loop
async def test_a_directory_that_is_deleted_and_recreated_is_watched_anew(tmp_path: Path) -> None:
    made = fast(tmp_path, cert="pki/server.pem", key="pki/server.key")

    def create(issued: Issued) -> None:
        (tmp_path / "pki").mkdir()
        made.write("pki/server.pem", issued.chain_pem)
        made.write("pki/server.key", issued.key_pem)

    create(SERVER)
    async with watched(made) as it:
        for _ in range(3):
            shutil.rmtree(tmp_path / "pki")
            while not it.watcher.inputs.failures:
                await it.next()
            create(fresh())
            await until_served(it)
        # Notifications work again too, though the directory that was watched first is gone.
        made.configure(tls={"cert": "pki/server.pem", "key": "pki/server.key", "poll_interval": SLOW})
        await until_served(it)
        issued = fresh()
        replaced(tmp_path / "pki/server.key", issued.key_pem)
        replaced(tmp_path / "pki/server.pem", issued.chain_pem)
        assert await until_served(it) == {"watch"}


@in_loop
async def test_same_size_and_same_times_are_no_disguise(tmp_path: Path) -> None:
    made = fast(tmp_path)
    path = tmp_path / "ca.pem"
    status = path.stat()
    async with watched(made) as it:
        path.write_bytes(ROOT.certificate_pem.replace(b"A", b"B", 1))
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
        assert (path.stat().st_size, path.stat().st_mtime_ns) == (status.st_size, status.st_mtime_ns)
        assert await it.next() in {"poll", "watch"}


@in_loop
async def test_a_touched_file_is_no_change(tmp_path: Path) -> None:
    made = fast(tmp_path)
    async with watched(made) as it:
        for name in ("tlsproxy.yaml", "server.pem", "server.key", "ca.pem"):
            os.utime(tmp_path / name)
        replaced(tmp_path / "ca.pem", ROOT.certificate_pem)
        await it.some_polls(5)
        assert it.triggers.empty()


def fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def dangling(path: Path) -> None:
    path.unlink()
    path.symlink_to("nowhere")


def huge(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(1 << 30)


@pytest.mark.parametrize("name", ["server.pem", "ca.pem", "tlsproxy.yaml"])
@in_loop
async def test_an_unreadable_input_is_told_once_and_read_again_at_each_poll(tmp_path: Path, name: str) -> None:
    made = fast(tmp_path)
    path = tmp_path / name
    good = path.read_bytes()
    async with watched(made) as it:
        for spoil in (fifo, directory, dangling, huge):
            spoil(path)
            while path not in it.watcher.inputs.failures:
                await it.next()
            await it.some_polls()
            assert it.triggers.empty()
            if path.is_dir():
                path.rmdir()
            else:
                path.unlink()
            made.write(name, good)
            await until_served(it)


@in_loop
async def test_bad_content_is_tried_once_and_not_again_until_it_changes(tmp_path: Path) -> None:
    made = fast(tmp_path)
    async with watched(made) as it:
        made.write("ca.pem", b"")
        await it.next()
        with pytest.raises(TlsproxyError, match="is empty"):
            await asyncio.to_thread(made.build, inputs=it.watcher.inputs)
        await it.some_polls(5)
        assert it.triggers.empty()
        made.write("ca.pem", b"still bad")
        await it.next()
        made.write("ca.pem", ROOT.certificate_pem)
        await until_served(it)


@pytest.mark.parametrize("order", [("server.key", "server.pem"), ("server.pem", "server.key")])
@in_loop
async def test_a_pair_written_one_after_the_other_is_served_when_it_is_whole(
    tmp_path: Path, order: tuple[str, str]
) -> None:
    made = fast(tmp_path)
    issued = fresh()
    data = {"server.pem": issued.chain_pem, "server.key": issued.key_pem}
    async with watched(made) as it:
        made.write(order[0], data[order[0]])
        await it.next()
        with pytest.raises(TlsproxyError, match="does not belong"):
            await asyncio.to_thread(made.build, inputs=it.watcher.inputs)
        made.write(order[1], data[order[1]])
        await until_served(it)
        assert it.watcher.inputs.files[tmp_path / "server.key"] == issued.key_pem


@in_loop
async def test_a_writer_that_truncates_in_a_loop_never_gets_a_mixture_served(tmp_path: Path) -> None:
    made = fast(tmp_path)
    pairs = [fresh() for _ in range(3)]
    stop = threading.Event()

    def write() -> None:
        turn = 0
        while not stop.wait(0.003):
            turn += 1
            made.serve(pairs[turn % 3])

    thread = threading.Thread(target=write)
    async with watched(made) as it:
        thread.start()
        try:
            await it.some_polls(10)
        finally:
            stop.set()
            thread.join()
        made.serve(pairs[0])
        await until_served(it)


@in_loop
async def test_the_ttl_rebuilds_though_nothing_changed(tmp_path: Path) -> None:
    made = slow(tmp_path, cert_ttl=1)
    async with watched(made) as it:
        started = time.monotonic()
        assert await it.next() == "ttl"
        assert 0.5 < time.monotonic() - started < 5
        assert await it.next() == "ttl"


@in_loop
async def test_a_ttl_of_zero_never_ends(tmp_path: Path) -> None:
    async with watched(fast(tmp_path, cert_ttl=0)) as it:
        await it.some_polls()
        assert it.triggers.empty()
        assert it.watcher._ttl_left() == float("inf")


@in_loop
async def test_polling_goes_on_where_notifications_fail_and_it_is_told_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def no_space(*_paths: object, **_options: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(notify, "watch", no_space)
    caplog.set_level(logging.WARNING, "tlsproxy.snapshot.notify")
    made = fast(tmp_path)
    async with watched(made) as it:
        await it.some_polls(5)
        made.write("ca.pem", ROOT.certificate_pem * 2)
        assert await it.next() == "poll"
    assert [record.message for record in caplog.records] == [
        "file notifications do not work ([Errno 28] No space left on device); changes are found by polling alone"
    ]


@in_loop
async def test_notifications_are_tried_again_at_each_poll(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def failing_at_first(*paths: Path, **options: Any) -> Iterator[Any]:
        calls.append(paths)
        if len(calls) <= 2:
            raise OSError(24, "Too many open files")
        return watchfiles.watch(*paths, **options)

    monkeypatch.setattr(notify, "watch", failing_at_first)
    made = fast(tmp_path)
    async with watched(made) as it:
        while len(calls) < 3:
            await it.some_polls()
        made.configure(tls={"poll_interval": SLOW})
        await until_served(it)
        made.write("ca.pem", ROOT.certificate_pem * 2)
        assert await it.next() == "watch"


@in_loop
async def test_a_notification_that_is_never_set_up_holds_nothing_up_and_is_asked_for_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    calls, answers = [], threading.Event()

    def hanging_at_first(*paths: Path, **options: Any) -> Iterator[Any]:
        calls.append(paths)
        if len(calls) == 1:
            assert answers.wait(20)
        return watchfiles.watch(*paths, **options)

    monkeypatch.setattr(notify, "watch", hanging_at_first)
    monkeypatch.setattr(notify, "END", 0.01)
    caplog.set_level(logging.WARNING, "tlsproxy.snapshot.notify")
    made = fast(tmp_path)
    async with watched(made) as it:
        (tmp_path / "elsewhere").mkdir()
        made.configure(tls={"poll_interval": FAST, "cert": "elsewhere/x"})  # other places, so that it is begun anew
        assert await it.next() == "poll"
        await it.some_polls(5)
        assert len(calls) == 1
        made.configure(tls={"poll_interval": SLOW})
        await it.next()
        answers.set()
        await asyncio.sleep(0)
        made.configure(tls={"poll_interval": FAST})
    assert [record.message for record in caplog.records] == [
        "file notifications do not work (no answer from a file system); changes are found by polling alone"
    ]


@pytest.mark.parametrize("number", [errno.EACCES, errno.ESTALE, errno.EMFILE])
@in_loop
async def test_a_directory_that_fails_for_a_while_is_told_of_once_and_recovered_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    made = fast(tmp_path, crl=["crls/a.crl"])
    (tmp_path / "crls").mkdir()
    made.write("crls/a.crl", b"crl")
    failing = False

    def failing_call(name: str) -> None:
        call = getattr(os, name)

        def fail(path: object, *arguments: Any, **more: Any) -> Any:
            if failing and isinstance(path, str | os.PathLike) and os.fspath(path).startswith(str(tmp_path / "crls")):
                raise OSError(number, os.strerror(number), path)
            return call(path, *arguments, **more)

        monkeypatch.setattr(os, name, fail)

    for name in ("open", "stat", "lstat", "readlink", "scandir", "listdir"):
        failing_call(name)
    async with watched(made) as it:
        for _ in range(2):
            failing = True
            await it.next()
            assert it.watcher.inputs.failures.keys() == {tmp_path / "crls/a.crl"}
            await it.some_polls()
            assert it.triggers.empty()
            failing = False
            await it.next()
            assert not it.watcher.inputs.failures


def parent_is_a_file(directory: Path) -> Callable[[], None]:
    moved = directory.rename(directory.with_name("moved"))
    directory.write_bytes(b"")

    def back() -> None:
        directory.unlink()
        moved.rename(directory)

    return back


def parent_is_gone(directory: Path) -> Callable[[], None]:
    moved = directory.rename(directory.with_name("moved"))
    return lambda: moved.rename(directory) and None


def parent_is_a_loop(directory: Path) -> Callable[[], None]:
    moved = directory.rename(directory.with_name("moved"))
    directory.symlink_to(directory.name)

    def back() -> None:
        directory.unlink()
        moved.rename(directory)

    return back


@pytest.mark.parametrize("spoil", [parent_is_a_file, parent_is_gone, parent_is_a_loop], ids=lambda each: each.__name__)
@in_loop
async def test_a_notification_tells_of_a_directory_that_goes_and_comes_back(
    tmp_path: Path, spoil: Callable[[Path], Callable[[], None]]
) -> None:
    made = slow(tmp_path, crl=["crls/a.crl"])
    (tmp_path / "crls").mkdir()
    made.write("crls/a.crl", b"crl")
    async with watched(made) as it:
        for _ in range(2):
            back = spoil(tmp_path / "crls")
            while not it.watcher.inputs.failures:
                assert await it.next() == "watch"
            back()
            while it.watcher.inputs.failures:
                assert await it.next() == "watch"


@in_loop
async def test_no_thread_or_descriptor_is_left_behind(tmp_path: Path) -> None:
    made = fast(tmp_path)

    def held() -> tuple[int, int]:
        return len(list(Path("/proc/self/task").iterdir())), len(list(Path("/proc/self/fd").iterdir()))

    async def turns(count: int) -> None:
        for turn in range(count):
            (tmp_path / f"d{turn % 2}").mkdir(exist_ok=True)
            made.configure(tls={"poll_interval": FAST, "crl": [f"d{turn % 2}/missing.crl"]})
            async with watched(made):
                pass

    before = held()
    await turns(4)
    async with asyncio.timeout(10):
        # The notifications' own thread gives back what it has, and tells nobody.
        while any(now > then for now, then in zip(held(), before, strict=True)):  # noqa: ASYNC110
            await asyncio.sleep(0.01)


def test_refused_readings_leave_no_circles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Errors hold frames, frames hold files: each would be kept until the collector comes to it."""
    monkeypatch.setattr(files, "PAUSE", 0)
    made = site(tmp_path)
    inputs = read_inputs(made.config, {})
    good = made.config.read_bytes()

    def errors() -> int:
        return sum(isinstance(each, BaseException) for each in gc.get_objects())

    gc.collect()
    gc.disable()
    try:
        before = errors()
        for turn in range(20):
            made.config.write_bytes(good if turn % 3 else b"roles: [\n" + b"#" * turn)
            (tmp_path / "ca.pem").unlink(missing_ok=True)
            if turn % 2:
                (tmp_path / "ca.pem").mkdir(exist_ok=True)
                (tmp_path / "ca.pem").rmdir()
            inputs = read_inputs(made.config, {}, earlier=inputs)
            assert inputs.failures
        assert errors() - before <= 2 * len(inputs.failures)
    finally:
        gc.enable()


@in_loop
async def test_only_entries_that_matter_stir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    filters = []

    def seen(*paths: Path, watch_filter: Callable[[object, str], bool], **options: Any) -> Iterator[Any]:
        filters.append(watch_filter)
        return watchfiles.watch(*paths, watch_filter=watch_filter, **options)

    monkeypatch.setattr(notify, "watch", seen)
    async with watched(slow(tmp_path)):
        (matters,) = filters
        names = ("ca.pem", "tlsproxy.yaml", "server.key", "", "audit.log", "server.key.new")
        assert [matters(None, str(tmp_path / name)) for name in names] == [
            True,
            True,
            True,
            True,
            False,
            False,
        ]


@in_loop
async def test_our_own_reading_stirs_nothing(tmp_path: Path) -> None:
    made = slow(tmp_path)
    async with watched(made) as it:
        polls = it.polls
        await asyncio.to_thread(made.digest)
        made.write("ca.pem", ROOT.certificate_pem * 2)
        assert await it.next() == "watch"
        assert it.polls == polls + 1


@in_loop
async def test_a_bug_is_not_swallowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = fast(tmp_path)
    monkeypatch.setattr(watch, "places_of", None)
    with pytest.raises(TypeError):
        async for _ in Watcher(made.config, {}, read_inputs(made.config, {})).changes():
            pass


def test_places_are_those_of_every_link_on_the_way(tmp_path: Path) -> None:
    for name in ("live", "archive", "v1"):
        (tmp_path / name).mkdir()
    (tmp_path / "archive/1.pem").touch()
    (tmp_path / "current").symlink_to("v1")
    (tmp_path / "v1/x").symlink_to("../live/a")
    (tmp_path / "live/a").symlink_to(tmp_path / "archive/1.pem")
    places = places_of([tmp_path / "current/x", tmp_path / "gone/y"], 10)
    root = tmp_path.resolve()
    assert set(places.directories) == {root, root / "v1", root / "live", root / "archive"}
    assert {str(root / each) for each in ("current", "v1/x", "live/a", "archive/1.pem", "gone/y")} <= places.entries


def test_a_loop_of_links_ends(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    assert set(places_of([tmp_path / "a"], 10).directories) == {tmp_path.resolve()}


def test_a_recreated_directory_is_another_place(tmp_path: Path) -> None:
    path = tmp_path / "d" / "f"
    (tmp_path / "d").mkdir()
    before = places_of([path], 10)
    (tmp_path / "d").rename(tmp_path / "old")
    (tmp_path / "d").mkdir()
    assert places_of([path], 10) != before
