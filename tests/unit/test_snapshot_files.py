from __future__ import annotations

import errno
import itertools
import os
import socket
import stat
import threading
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings, strategies
from snapshot_site import ROOT, SERVER, SnapshotSite, site

from tlsproxy.config.problems import ConfigError
from tlsproxy.errors import FailureKind, MaterialError
from tlsproxy.snapshot import files, reading
from tlsproxy.snapshot.files import read_inputs
from tlsproxy.snapshot.reading import UnstableInputs, _exposed, read_file

if TYPE_CHECKING:
    from pathlib import Path


pytestmark = pytest.mark.usefixtures("hasty")


def refused(path: Path, limit: int = 100) -> str:
    with pytest.raises(MaterialError) as error:
        read_file(path, limit)
    assert error.value.path == str(path)
    return error.value.text


def test_a_regular_file_is_read_whole(tmp_path: Path) -> None:
    path = tmp_path / "f"
    for data in (b"", b"x", os.urandom(100)):
        path.write_bytes(data)
        assert read_file(path, 100) == data


def test_a_file_over_the_limit_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "f"
    with path.open("wb") as file:
        file.truncate(1 << 30)
    assert "1073741824 bytes" in refused(path)


def test_a_named_pipe_does_not_block(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "f")
    assert "a named pipe" in refused(tmp_path / "f")


def test_a_socket_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("s")
        assert "cannot be read" in refused(tmp_path / "s")


def test_a_directory_a_device_and_a_dangling_link_are_refused(tmp_path: Path) -> None:
    assert "a directory" in refused(tmp_path)
    (tmp_path / "null").symlink_to("/dev/null")
    assert "a device" in refused(tmp_path / "null")
    (tmp_path / "dangling").symlink_to("nowhere")
    assert "does not exist" in refused(tmp_path / "dangling")
    (tmp_path / "loop").symlink_to("loop")
    assert "leads back to itself" in refused(tmp_path / "loop")
    (tmp_path / "file").write_bytes(b"")
    assert "not a directory" in refused(tmp_path / "file" / "below")


def test_a_file_of_somebody_else_is_refused_with_advice(tmp_path: Path) -> None:
    (tmp_path / "f").touch(mode=0o000)
    root = os.geteuid() == 0
    if root:  # who reads everything
        os.seteuid(65534)
    try:
        assert "read permission" in refused(tmp_path / "f")
    finally:
        if root:
            os.seteuid(0)


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.EACCES, errno.EMFILE, errno.ENFILE, errno.ENOMEM])
def test_what_a_file_system_or_a_limit_refuses_is_not_the_fault_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(*_: object) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(reading.os, "open", refuse)
    with pytest.raises(MaterialError) as error:
        read_file(tmp_path / "f", 100)
    assert error.value.kind is FailureKind.ENVIRONMENT


def test_memory_that_is_gone_is_not_the_fault_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> bytes:
        raise MemoryError

    (tmp_path / "f").write_bytes(b"x")
    monkeypatch.setattr(reading.os, "read", refuse)
    with pytest.raises(MaterialError, match="Cannot allocate memory") as error:
        read_file(tmp_path / "f", 100)
    assert error.value.kind is FailureKind.ENVIRONMENT


@pytest.mark.parametrize("name", ["missing", "file/below", "loop", "n" * 300, "."])
def test_a_path_that_leads_to_no_file_is_an_input_to_be_corrected(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(MaterialError) as error:
        read_file(tmp_path / name, 100)
    assert error.value.kind is FailureKind.INPUT


def test_a_file_that_grows_while_it_is_read_is_unstable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"one")
    fstat = os.fstat

    def then_grow(descriptor: int) -> os.stat_result:
        status = fstat(descriptor)
        path.write_bytes(b"one two")
        return status

    monkeypatch.setattr(reading.os, "fstat", then_grow)
    with pytest.raises(UnstableInputs):
        read_file(path, 100)


def test_inputs_are_the_configuration_and_all_that_it_names(tmp_path: Path) -> None:
    made = site(
        tmp_path,
        tls={"crl": ["a.crl", "b.crl"], "key_passphrase_file": "pass"},
        service={"api_key_file": "api"},
        upstream={"api_key_file": "up"},
    )
    for name in ("a.crl", "b.crl", "pass", "api", "up"):
        made.write(name, name.encode())
    inputs = read_inputs(made.config, {})
    assert {path.name for path in inputs.files} == {
        "tlsproxy.yaml", "server.pem", "server.key", "ca.pem", "a.crl", "b.crl", "pass", "api", "up",
    }  # fmt: skip
    assert inputs.files[tmp_path / "up"] == b"up"
    assert "PRIVATE" not in repr(inputs)


def test_the_digest_changes_with_every_input_and_only_then(tmp_path: Path) -> None:
    made = site(tmp_path)
    seen = {made.digest()}
    assert made.digest() in seen
    for name in ("tlsproxy.yaml", "server.pem", "server.key", "ca.pem"):
        path = tmp_path / name
        path.write_bytes(path.read_bytes() + b"\n")
        seen.add(made.digest())
    assert len(seen) == 5
    (tmp_path / "ca.pem").touch()
    assert made.digest() in seen


def test_a_steady_poll_reads_once_and_parses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = site(tmp_path)
    first = read_inputs(made.config, {})
    monkeypatch.setattr(files.loader, "merged", None)
    reads = []
    read = reading.read
    monkeypatch.setattr(reading, "read", lambda *args: (reads.append(args[0]), read(*args))[1])
    again = read_inputs(made.config, {}, earlier=first)
    assert again.digest == first.digest
    assert again.loaded is first.loaded
    assert len(reads) == len(first.files)


def test_bytes_that_stay_are_in_memory_once_and_digested_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A CRL may have 64 MiB, and is looked at every few seconds."""
    made = site(tmp_path)
    first = read_inputs(made.config, {})
    made.write("ca.pem", ROOT.certificate_pem * 2)
    second = read_inputs(made.config, {}, earlier=first)
    monkeypatch.setattr(files.hashlib, "sha256", None)
    third = read_inputs(made.config, {}, earlier=second)
    assert [path.name for path in first.files if second.files[path] is not first.files[path]] == ["ca.pem"]
    assert all(third.files[path] is data for path, data in second.files.items())
    assert third.digest == second.digest != first.digest


def test_what_was_parsed_at_the_start_is_not_parsed_by_the_first_poll(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = site(tmp_path)
    first = read_inputs(made.config, {})
    monkeypatch.setattr(files.loader, "merged", None)
    assert read_inputs(made.config, {}).loaded is first.loaded


def test_a_configuration_that_is_refused_is_parsed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may stay as it is for hours, and every poll reads it several times over."""
    made = site(tmp_path)
    made.config.write_text(made.config.read_text() + "no_such_section: {}\n")
    parsed = []
    merged = files.loader.merged
    monkeypatch.setattr(files.loader, "merged", lambda *args: (parsed.append(args), merged(*args))[1])
    for _ in range(2):
        with pytest.raises(ConfigError, match="no_such_section"):
            read_inputs(made.config, {})
    assert len(parsed) == 1


def test_a_set_that_never_settles_is_unstable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = site(tmp_path)
    read = reading.read

    def disturbed(path: Path, *args: Any) -> tuple[bytes, int]:
        if path.name == "ca.pem":
            made.write("ca.pem", os.urandom(8).hex().encode())
        return read(path, *args)

    monkeypatch.setattr(reading, "read", disturbed)
    failures = read_inputs(made.config, {}).failures
    assert failures.keys() == {tmp_path / "ca.pem"}
    assert "keeps changing" in str(failures[tmp_path / "ca.pem"])


def test_a_change_between_two_readings_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = site(tmp_path)
    read = reading.read
    count = 0

    def once_disturbed(path: Path, *args: Any) -> tuple[bytes, int]:
        nonlocal count
        count += path.name == "ca.pem"
        if count == 2:
            made.write("ca.pem", ROOT.certificate_pem * 2)
        return read(path, *args)

    monkeypatch.setattr(reading, "read", once_disturbed)
    assert read_inputs(made.config, {}).files[tmp_path / "ca.pem"] == ROOT.certificate_pem * 2
    assert count == 3


def versions(tmp_path: Path) -> tuple[SnapshotSite, dict[str, tuple[bytes, bytes]]]:
    """Kubernetes' layout: server.* → ..data/server.*, ..data → v1."""
    made = site(tmp_path, tls={"cert": "tls/server.pem", "key": "tls/server.key"})
    pairs = {}
    for version in ("v1", "v2"):
        issued = ROOT.issue(dns=["localhost"], server=True)
        (tmp_path / "tls" / version).mkdir(parents=True)
        made.write(f"tls/{version}/server.pem", issued.chain_pem)
        made.write(f"tls/{version}/server.key", issued.key_pem)
        pairs[version] = issued.chain_pem, issued.key_pem
    (tmp_path / "tls/..data").symlink_to("v1")
    for name in ("server.pem", "server.key"):
        (tmp_path / "tls" / name).symlink_to(f"..data/{name}")
    return made, pairs


def swap(tmp_path: Path, version: str) -> None:
    (tmp_path / "tls/..tmp").symlink_to(version)
    (tmp_path / "tls/..tmp").rename(tmp_path / "tls/..data")


@pytest.mark.parametrize("moment", ["tls/server.pem", "tls/server.key", "ca.pem"])
def test_key_and_certificate_come_from_one_directory_when_links_are_swapped_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    made, pairs = versions(tmp_path)
    read = reading.read
    swapped = []

    def swapping(path: Path, *args: Any) -> tuple[bytes, int]:
        if path == tmp_path / moment and not swapped:
            swapped.append(moment)
            swap(tmp_path, "v2")
        return read(path, *args)

    monkeypatch.setattr(reading, "read", swapping)
    inputs = read_inputs(made.config, {})
    assert (inputs.files[tmp_path / "tls/server.pem"], inputs.files[tmp_path / "tls/server.key"]) == pairs["v2"]


def test_under_continuous_link_swaps_every_reading_is_a_pair(tmp_path: Path) -> None:
    made, pairs = versions(tmp_path)
    stop = threading.Event()

    def rotate() -> None:
        turn = 0
        while not stop.wait(0.001):
            turn += 1
            swap(tmp_path, f"v{turn % 2 + 1}")

    writer = threading.Thread(target=rotate)
    writer.start()
    settled = 0
    try:
        for _ in range(100):
            inputs = read_inputs(made.config, {})
            if inputs.failures:
                continue
            settled += 1
            assert (
                inputs.files[tmp_path / "tls/server.pem"],
                inputs.files[tmp_path / "tls/server.key"],
            ) in pairs.values()
    finally:
        stop.set()
        writer.join()
    swap(tmp_path, "v1")
    assert read_inputs(made.config, {}).files[tmp_path / "tls/server.key"] == pairs["v1"][1]


CALM = 9
"""A call that no reading makes: links and contents of the pair are looked up six times in each."""


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    readings=strategies.lists(
        strategies.tuples(
            strategies.sampled_from([(at, CALM) for at in range(6)] + [(CALM, 2), (CALM, 3)] * 3),
            strategies.integers(1, files.ATTEMPTS),
        ),
        max_size=6,
    )
)
def test_whatever_is_swapped_or_gone_between_two_calls_the_pair_is_of_one_version(
    tmp_path: Path, readings: list[tuple[tuple[int, int], int]]
) -> None:
    """In each reading the links lead to the other version from some call on, and one of the contents may be gone."""
    pair = [tmp_path / "server.pem", tmp_path / "server.key"]
    plan, call, version = itertools.chain.from_iterable(itertools.starmap(itertools.repeat, readings)), 0, 0
    swapped_at = gone_at = CALM
    target, read = reading.target_of, reading.read

    def gone() -> bool:
        nonlocal call, version
        version ^= call == swapped_at
        call += 1
        return call - 1 == gone_at

    def target_of(path: Path) -> Any:
        if path not in pair:
            return target(path)
        gone()
        return tmp_path / str(version) / path.name

    def read_of(path: Path, led: Path, limit: int, *advice: Any) -> Any:
        nonlocal call, swapped_at, gone_at
        if path in pair:
            return MaterialError(str(path), "is gone") if gone() else reading.Content(b"", exposed=False)
        if path == made.config:
            call, (swapped_at, gone_at) = 0, next(plan, (CALM, CALM))
        return read(path, led, limit, *advice)

    made = site(tmp_path)
    inputs = read_inputs(made.config, {})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reading, "target_of", target_of)
        patch.setattr(reading, "read", read_of)
        for _ in range(3):
            inputs = read_inputs(made.config, {}, earlier=inputs)
            assert len({inputs.targets[path].parent for path in pair if path in inputs.files}) < 2
            assert inputs.files.keys() | inputs.failures.keys() == {made.config, tmp_path / "ca.pem", *pair}


def test_key_and_certificate_in_directories_of_their_own_are_fine(tmp_path: Path) -> None:
    made = site(tmp_path)
    for name in ("server.pem", "server.key"):
        (tmp_path / f"real-{name}").mkdir()
        (tmp_path / name).rename(tmp_path / f"real-{name}" / name)
        (tmp_path / name).symlink_to(f"real-{name}/{name}")
    assert read_inputs(made.config, {}).files[tmp_path / "server.key"] == SERVER.key_pem


def test_a_file_missing_for_a_moment_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = site(tmp_path)
    (tmp_path / "ca.pem").unlink()
    monkeypatch.setattr(files.time, "sleep", lambda _: made.write("ca.pem", ROOT.certificate_pem))
    assert read_inputs(made.config, {}).files[tmp_path / "ca.pem"] == ROOT.certificate_pem


def test_a_configuration_cut_off_for_a_moment_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = site(tmp_path)
    whole = made.config.read_bytes()
    made.config.write_bytes(b"")
    monkeypatch.setattr(files.time, "sleep", lambda _: made.config.write_bytes(whole))
    assert made.config in read_inputs(made.config, {}).files


def test_a_file_missing_for_good_is_named(tmp_path: Path) -> None:
    made = site(tmp_path)
    (tmp_path / "ca.pem").unlink()
    failures = read_inputs(made.config, {}).failures
    assert [str(failure).split(";")[0] for failure in failures.values()] == [f"{tmp_path / 'ca.pem'}: does not exist"]


def test_a_file_that_cannot_be_read_keeps_no_other_from_being_read(tmp_path: Path) -> None:
    made = site(tmp_path, tls={"crl": ["a.crl"]})
    first = read_inputs(made.config, {})
    assert first.failures.keys() == {tmp_path / "a.crl"}
    made.write("ca.pem", ROOT.certificate_pem * 2)
    second = read_inputs(made.config, {}, earlier=first)
    assert second.failures.keys() == first.failures.keys()
    assert second.files[tmp_path / "ca.pem"] == ROOT.certificate_pem * 2
    assert second.digest != first.digest
    made.write("a.crl", b"crl")
    third = read_inputs(made.config, {}, earlier=second)
    assert not third.failures
    assert third.files[tmp_path / "a.crl"] == b"crl"


def test_a_failure_that_is_known_is_read_once_in_a_poll_and_has_the_same_digest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = site(tmp_path)
    (tmp_path / "ca.pem").unlink()
    first = read_inputs(made.config, {})
    monkeypatch.setattr(files.time, "sleep", None)
    assert read_inputs(made.config, {}, earlier=first).digest == first.digest
    (tmp_path / "ca.pem").mkdir()
    monkeypatch.setattr(files.time, "sleep", lambda _: None)
    assert read_inputs(made.config, {}, earlier=first).digest != first.digest


@pytest.mark.parametrize("spoiled", [b"roles: [", b"no_such_section: {}\n", None], ids=["syntax", "key", "missing"])
def test_a_configuration_that_cannot_be_used_goes_on_as_it_was_and_its_files_are_read(
    tmp_path: Path, spoiled: bytes | None
) -> None:
    made = site(tmp_path)
    first = read_inputs(made.config, {})
    if spoiled is None:
        made.config.unlink()
    else:
        made.config.write_bytes(spoiled)
    made.write("ca.pem", b"new")
    second = read_inputs(made.config, {}, earlier=first)
    assert second.loaded is first.loaded
    assert second.failures.keys() == {made.config}
    assert second.files[made.config] == first.files[made.config]
    assert second.files[tmp_path / "ca.pem"] == b"new"
    assert second.failures[made.config].__traceback__ is None


@pytest.mark.parametrize("blocked", ["open", "readlink"])
def test_a_file_that_does_not_answer_stays_out_and_comes_back_when_it_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, blocked: str
) -> None:
    made = site(tmp_path, tls={"crl": ["a.crl"], "read_timeout": 0.05})
    path = tmp_path / "a.crl"
    if blocked == "readlink":
        made.write("real", b"crl")
        path.symlink_to("real")
    else:
        made.write("a.crl", b"crl")
    first = read_inputs(made.config, {})
    answers, asked = threading.Event(), []
    call = getattr(os, blocked)

    def hang(name: object, *arguments: Any, **more: Any) -> Any:
        if os.fspath(name) == str(path):  # type: ignore[call-overload]
            asked.append(name)
            assert answers.wait(20)
        return call(name, *arguments, **more)

    monkeypatch.setattr(os, blocked, hang)
    second = read_inputs(made.config, {}, earlier=first)
    assert second.failures.keys() == {path}
    failure = second.failures[path]
    assert failure.kind is FailureKind.ENVIRONMENT
    assert "no answer since" in str(failure)
    made.write("ca.pem", b"new")
    third = read_inputs(made.config, {}, earlier=second)
    assert third.files[tmp_path / "ca.pem"] == b"new"
    assert str(third.failures[path]) == str(failure)
    assert len(asked) == 1
    answers.set()
    while (again := read_inputs(made.config, {}, earlier=third)).failures:
        pass
    assert again.files[path] == b"crl"


def test_a_file_that_is_being_written_stays_as_it_was_and_is_told_of_if_that_lasts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = site(tmp_path, tls={"crl": ["a.crl"]})
    made.write("a.crl", b"crl")
    inputs = first = read_inputs(made.config, {})
    read, busy = reading.read, tmp_path / "server.pem"

    def disturbed(path: Path, *args: Any) -> Any:
        if path == busy:
            made.write(busy.name, os.urandom(8))
        return read(path, *args)

    monkeypatch.setattr(reading, "read", disturbed)
    made.write("server.key", b"of the other half")
    made.write("a.crl", b"new")
    for _ in range(files.UNSTABLE_READINGS - 1):
        inputs = read_inputs(made.config, {}, earlier=inputs)
        assert not inputs.failures
        assert inputs.files[busy] == first.files[busy]
        assert inputs.files[tmp_path / "server.key"] == first.files[tmp_path / "server.key"]
        assert inputs.files[tmp_path / "a.crl"] == b"new"
    inputs = read_inputs(made.config, {}, earlier=inputs)
    assert inputs.failures.keys() == {busy, tmp_path / "server.key"}
    monkeypatch.setattr(reading, "read", read)
    assert not read_inputs(made.config, {}, earlier=inputs).failures


def test_a_configuration_that_is_being_written_goes_on_as_it_was_and_holds_up_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = site(tmp_path)
    inputs = first = read_inputs(made.config, {})
    read = reading.read

    def disturbed(path: Path, *args: Any) -> Any:
        if path == made.config:
            made.config.write_bytes(first.files[made.config] + b"#" + os.urandom(8).hex().encode())
        return read(path, *args)

    monkeypatch.setattr(reading, "read", disturbed)
    with pytest.raises(UnstableInputs):
        read_inputs(made.config, {})
    made.write("ca.pem", b"new")
    told = []
    for _ in range(files.UNSTABLE_READINGS):
        inputs = read_inputs(made.config, {}, earlier=inputs)
        assert inputs.loaded is first.loaded
        assert inputs.files[tmp_path / "ca.pem"] == b"new"
        told.append(inputs.failures.keys())
    assert told == [*[set()] * (files.UNSTABLE_READINGS - 1), {made.config}]


def test_a_wrong_configuration_is_a_configuration_error(tmp_path: Path) -> None:
    made = site(tmp_path, service={"htpp_port": 1})
    with pytest.raises(ConfigError, match="htpp_port"):
        read_inputs(made.config, {})


def test_a_key_that_others_can_read_is_warned_of(tmp_path: Path) -> None:
    made = site(tmp_path)
    assert read_inputs(made.config, {}).warnings == ()
    (tmp_path / "server.key").chmod(0o644)
    assert "chmod 600" in read_inputs(made.config, {}).warnings[0]


@pytest.mark.parametrize(
    ("mode", "owner", "exposed"),
    [(0o600, 1000, False), (0o640, 1000, True), (0o640, 0, False), (0o660, 0, True), (0o644, 0, True)],
)
def test_a_group_may_read_the_key_that_root_gave_it(mode: int, owner: int, *, exposed: bool) -> None:
    found = os.stat_result((stat.S_IFREG | mode, 1, 1, 1, owner, 1, 1, 0, 0, 0))
    assert _exposed(found) is exposed
