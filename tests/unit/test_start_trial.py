"""Places and addresses with which `run` could not start are found by `check`, which leaves nothing behind."""

from __future__ import annotations

import errno
import grp
import os
import socket
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from click.testing import CliRunner, Result
from snapshot_site import SnapshotSite, site

from tlsproxy.admin.socket import AdminAddressError, check_place, listening_socket
from tlsproxy.audit.files import AuditFiles
from tlsproxy.cli import main
from tlsproxy.config.endpoints import UnixSocket
from tlsproxy.proxy.frontend.listener import bound_socket
from tlsproxy.service import start_trial

TODAY = time.strftime("audit.%Y-%m-%d.log", time.gmtime())


pytestmark = pytest.mark.usefixtures("hasty")


def check(made: SnapshotSite, *options: str) -> Result:
    return CliRunner().invoke(main, ["check", "--config", str(made.config), *options])


@pytest.mark.parametrize(
    ("host", "says"),
    [
        ("unix:/run/x.sock", "clients connect over TCP"),
        ("[::1]", "without brackets here: ::1"),
        ("127.0.0.1:6333", "without port or scheme"),
        ("http://localhost", "without port or scheme"),
        ("*", "an IP address or a host name is expected"),
        ("a..b", "an IP address or a host name is expected"),
        ("x" * 64, "an IP address or a host name is expected"),
        ("bücher.example", "an IP address or a host name is expected"),
    ],
)
def test_a_host_that_is_no_address_is_a_mistake(tmp_path: Path, host: str, says: str) -> None:
    made = site(tmp_path, service={"host": host}, listeners=[{"host": host, "port": 0, "protocols": ["rest"]}])
    result = check(made)
    assert result.exit_code == 2
    assert [says in line for line in result.stderr.splitlines()] == [True, True]
    assert ".yaml:" in result.stderr


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"service": {"host": "no-such-host.invalid"}}, "service.http_port: cannot listen on no-such-host.invalid: "),
        ({"service": {"host": "192.0.2.7"}}, "service.http_port: cannot listen on 192.0.2.7: "),
        ({"health": {"listen": "192.0.2.7:0"}}, "health.listen: cannot listen on 192.0.2.7: "),
        ({"audit": {"dir": "/dev/null/audit"}}, "audit.dir /dev/null/audit: Not a directory"),
        (
            {"health": {"listen": "unix:/dev/null"}},
            "health.listen: cannot listen on unix:/dev/null: exists and is not a",
        ),
        (
            {"listeners": [{"unix": "/no/such/s", "protocols": ["rest"]}]},
            "listeners[0]: cannot listen on unix:/no/such/s: there is no directory /no/such",
        ),
        ({"admin": {"listen": "unix:/no/such/s"}}, "admin.listen unix:/no/such/s: there is no directory /no/such"),
        (
            {
                "service": {"host": "127.0.0.1", "http_port": 5999},
                "listeners": [{"host": "localhost", "port": 5999, "protocols": ["rest"]}],
            },
            "listeners[0]: localhost:5999 is taken: service.http_port listens on the same address",
        ),
    ],
)
def test_a_start_that_would_fail_now(tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    made = site(tmp_path, **changes)
    result = check(made)
    assert (result.exit_code, result.stdout) == (1, "")
    assert f"error: {says}" in result.stderr


def test_a_running_gateway_has_passed_those_steps(tmp_path: Path) -> None:
    result = check(site(tmp_path, service={"host": "192.0.2.7"}), "--reload")
    assert result.exit_code == 0
    assert "warning: service.http_port: cannot listen on 192.0.2.7: " in result.stderr


def test_an_address_that_is_taken_may_be_the_gateways_own(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, socket.socket(socket.AF_UNIX) as admin:
        admin.bind(str(tmp_path / "admin.sock"))
        admin.listen()
        listen = f"unix:{tmp_path / 'admin.sock'}"
        made = site(tmp_path, service={"http_port": taken.getsockname()[1]}, admin={"listen": listen})
        result = check(made)
    assert result.exit_code == 0
    assert "error" not in result.stderr


def test_nothing_is_made(tmp_path: Path) -> None:
    made = site(tmp_path, admin={"listen": f"unix:{tmp_path / 'admin.sock'}"}, audit={"dir": "logs/audit"})
    before = sorted(tmp_path.rglob("*"))
    assert check(made).exit_code == 0
    assert sorted(tmp_path.rglob("*")) == before


def place(directory: Path, kind: str) -> Path:
    """A directory of audit files, with something at its path or at that of today's file."""
    path = directory / "audit"
    match kind:
        case "file":
            path.touch()
        case "below a file":
            (directory / "file").touch()
            return directory / "file" / "audit"
        case "long":
            return directory / ("x" * 300)
        case "good":
            path.mkdir()
            (path / TODAY).touch()
        case "missing":
            return path / "deep"
        case _:
            path.mkdir()
            if kind == "a link":
                (path / TODAY).symlink_to(directory / "elsewhere")
            elif kind == "a pipe":
                os.mkfifo(path / TODAY)
            elif kind == "a directory":
                (path / TODAY).mkdir()
    return path


KINDS = ["file", "below a file", "long", "good", "missing", "empty", "a link", "a pipe", "a directory"]


@pytest.mark.parametrize("kind", KINDS)
def test_the_audit_logs_place_is_good_exactly_if_it_can_be_opened(tmp_path: Path, kind: str) -> None:
    log = AuditFiles(place(tmp_path, kind), "daily", 7)
    assert fails(lambda: log.check(time.time())) == (kind not in {"good", "missing", "empty"})
    assert fails(lambda: log.ready(time.time())) == (kind not in {"good", "missing", "empty"})
    log.close()


def fails(call: Any) -> bool:
    try:
        call()
    except OSError:
        return True
    return False


@pytest.mark.skipif(os.geteuid() != 0, reason="another user is needed")
def test_another_users_places() -> None:
    with TemporaryDirectory(dir="/tmp") as name:
        directory = Path(name)
        directory.chmod(0o755)
        (directory / "audit").mkdir(mode=0o700)
        os.seteuid(65534)
        try:
            for place in ("audit", "new"):
                assert fails(lambda place=place: AuditFiles(directory / place, "daily", 7).check(time.time()))
            with pytest.raises(AdminAddressError, match="Permission denied"):
                check_place(UnixSocket(str(directory / "s")))
        finally:
            os.seteuid(0)


def test_a_group_that_cannot_read_the_audit_log(tmp_path: Path) -> None:
    directory = tmp_path / "audit"
    directory.mkdir(mode=0o700)
    own = grp.getgrgid(os.getegid()).gr_name
    done = check(site(tmp_path, audit={"dir": "audit", "group": own}))
    assert done.exit_code == 0
    assert f"group {own} may not read it: chgrp {own} and chmod 750" in done.stderr
    directory.chmod(0o750)
    assert "may not read it" not in check(site(tmp_path, audit={"dir": "audit", "group": own})).stderr
    done = check(site(tmp_path, audit={"dir": "audit", "group": "no-such-group"}))
    assert done.exit_code == 1
    assert "audit.group: there is no group no-such-group" in done.stderr


@pytest.mark.parametrize("path", [f"/{'x' * 110}", "/dev", "/dev/null", "/no/such/s"])
def test_a_place_where_no_admin_socket_can_be(path: str) -> None:
    for bound in (lambda: check_place(UnixSocket(path)), lambda: listening_socket(f"unix:{path}").close()):
        with pytest.raises(AdminAddressError):
            bound()


@pytest.mark.parametrize("listen", ["LOCALHOST:0", "[::1]:0", "127.0.0.2:0", "127.1:0", "::1:0", "unix:s", "unix:/a\0"])
def test_an_admin_address_is_read_alike_by_check_and_run(tmp_path: Path, listen: str) -> None:
    try:
        listening_socket(listen).close()
        expected = 0
    except AdminAddressError:
        expected = 2
    assert check(site(tmp_path, admin={"listen": listen})).exit_code == expected


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        ("127.0.0.1:9000", "localhost:9000", True),
        ("[::1]:9000", "[0:0:0:0:0:0:0:1]:9000", True),
        ("[::1]:9000", "127.0.0.1:9000", False),
        ("127.0.0.1:9000", "localhost:9001", False),
        ("127.0.0.1:0", "localhost:0", False),
    ],
)
def test_two_names_of_one_address(tmp_path: Path, first: str, second: str, *, same: bool) -> None:
    result = check(site(tmp_path, health={"listen": first}, admin={"listen": second}))
    assert result.exit_code == same
    assert ("is taken: health.listen listens on the same address" in result.stderr) == same


# Socket units


def unit(directory: Path, name: str, text: str, *, enabled: bool = True) -> None:
    (directory / name).write_text(text)
    if enabled:
        (directory / "sockets.target.wants").mkdir(exist_ok=True)
        (directory / "sockets.target.wants" / name).symlink_to(directory / name)


def test_a_changed_port_that_a_socket_unit_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = site(tmp_path, service={"http_port": 6443, "grpc_port": None})
    units = tmp_path / "units"
    units.mkdir()
    monkeypatch.setenv("SYSTEMD_UNIT_PATH", f"{tmp_path / 'none'}:{units}")
    (units / "tlsproxy.service").write_text(f"[Service]\nExecStart=/opt/bin/tlsproxy run --config {made.config}\n")
    unit(units, "tlsproxy.socket", "[Socket]\nListenStream=127.0.0.1:6333\nFileDescriptorName=rest\n")
    unit(units, "spare.socket", "[Socket]\nListenStream=1\nService=tlsproxy.service\n", enabled=False)
    unit(units, "other.socket", "[Socket]\nListenStream=2\nService=other.service\n")
    result = check(made)
    assert result.exit_code == 0
    says = "tlsproxy.socket listens on 127.0.0.1:6333, where no listener of the configuration is (127.0.0.1:6443)"
    assert [says in line for line in result.stderr.splitlines() if ".socket" in line] == [True]
    # Mended by a drop-in, but for the name.
    (units / "tlsproxy.socket.d").mkdir()
    override = "# ListenStream=3\n[Socket]\nListenStream=\nListenStream=127.0.0.1:6443\nFileDescriptorName=\n"
    (units / "tlsproxy.socket.d" / "override.conf").write_text(override)
    assert ".socket" not in check(made).stderr
    (units / "tlsproxy.socket.d" / "override.conf").write_text(f"{override}FileDescriptorName=grpc\n")
    assert "tlsproxy.socket on 127.0.0.1:6443 is named 'grpc': a start fails until it has Fi" in check(made).stderr


def test_an_address_of_a_socket_unit_may_come_late(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By `FreeBind=` of the units the gateway gets a socket of an address that the machine does not have yet."""
    made = site(tmp_path, service={"host": "192.0.2.7", "http_port": 6443, "grpc_port": None})
    monkeypatch.setenv("SYSTEMD_UNIT_PATH", str(tmp_path))
    (tmp_path / "tlsproxy.service").write_text(f"[Service]\nExecStart=tlsproxy run --config {made.config}\n")
    assert check(made).exit_code == 1
    unit(tmp_path, "tlsproxy.socket", "[Socket]\nListenStream=192.0.2.7:6443\n")
    assert check(made).exit_code == 0


def test_a_port_that_this_user_may_not_bind_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(host: str, port: int) -> socket.socket:
        if port:
            raise PermissionError(errno.EACCES, "Permission denied")
        return bound_socket(host, port)

    monkeypatch.setattr(start_trial, "bound_socket", refused)
    result = check(site(tmp_path, service={"http_port": 443}))
    assert result.exit_code == 0
    assert "warning: service.http_port: port 443 needs CAP_NET_BIND_SERVICE, or a socket unit\n" in result.stderr
