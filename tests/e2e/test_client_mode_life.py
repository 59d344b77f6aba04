"""Start, reload and end of `tlsproxy connect`: sockets, signals, systemd, exit status, and `--check`."""

from __future__ import annotations

import signal
import socket
import stat
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from support.connecting import Connecting, said, tls_serving
from support.forked import run
from support.gateway import DEADLINE
from support.notify_socket import listening
from support.site import Site
from support.tls_server import server_context

PLAIN = "127.0.0.1:0"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    made = Site(tmp_path_factory.mktemp("site"))
    made.issue("client", common_name="web-1", client=True)
    return made


@pytest.fixture(scope="module")
def target(site: Site) -> Iterator[str]:
    issued = site.authority.issue(ips=["127.0.0.1"], server=True)
    with tls_serving(server_context(site.directory, issued, site.authority)) as good:
        yield good


def test_a_life_under_systemd(site: Site, target: str, tmp_path: Path) -> None:
    """With a unix socket that a crash has left, and a drain that lets a connection finish."""
    path = tmp_path / "p2p.sock"
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(path))
    listen = f"unix:{path}"
    listeners = [{"listen": listen, "targets": [target], "unix_mode": "0660"}, {"listen": PLAIN, "targets": [target]}]
    with ExitStack() as stack:
        systemd = stack.enter_context(listening(str(tmp_path / "notify")))
        environ = {"NOTIFY_SOCKET": systemd.address, "WATCHDOG_USEC": "300000"}
        connecting = stack.enter_context(Connecting(site.directory, listeners, environ=environ))
        ready = systemd.next()
        assert ready["READY"] == "1"
        assert f"{listen} to {target}; {connecting.addresses[PLAIN]} to {target}" in ready["STATUS"]
        assert stat.S_IMODE(path.stat().st_mode) == 0o660
        assert systemd.next() == {"WATCHDOG": "1"}
        connecting.hang_up()
        heard = [systemd.next() for _ in range(3)]
        assert [one for one in heard if "RELOADING" in one]

        taken = run("connect", "--config", str(connecting.config))
        assert (taken.returncode, "another process is listening there" in taken.stderr) == (1, True), taken.stderr

        with connecting.connect(listen) as client:
            client.sendall(b"before")
            assert client.recv(100) == b"before"
            client.sendall(b"under way, ")  # a drain ends a connection whose last word was the server's
            connecting.process.send_signal(signal.SIGTERM)
            connecting.log.wait(lambda line: "SIGTERM: draining" in line)
            assert connecting.ask("/readyz")[0] == 503
            with pytest.raises(OSError, match="refused"):
                connecting.connect(PLAIN)
            assert client.recv(100) == b"under way, "
            client.sendall(b"and finished")
            assert client.recv(100) == b"and finished"
            assert client.recv(100) == b"", "it is quiet, and ended"
        assert connecting.process.wait(DEADLINE) == 0
        assert not path.exists()
        while systemd.next() != {"STOPPING": "1", "STATUS": "draining"}:
            pass
        assert systemd.silent()


def test_a_second_signal_cuts(site: Site, target: str) -> None:
    with Connecting(site.directory, [{"listen": PLAIN, "targets": [target]}]) as connecting:
        with connecting.connect(PLAIN) as client:
            connecting.process.send_signal(signal.SIGTERM)
            connecting.log.wait(lambda line: "SIGTERM: draining" in line)
            connecting.process.send_signal(signal.SIGINT)
            with pytest.raises(ConnectionResetError):
                client.recv(1)
        assert connecting.process.wait(DEADLINE) == 0


def test_check_says_what_a_start_would_meet(site: Site, target: str) -> None:
    good = Connecting(site.directory, [{"listen": PLAIN, "targets": [target]}])
    done = run("connect", "--check", "--config", str(good.config))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [f"{PLAIN}: {target}: ok", f"{good.config}: ok"]

    good.write([{"listen": PLAIN, "targets": [target, "127.0.0.1:1"]}])
    done = run("connect", "--check", "--config", str(good.config))
    assert (done.returncode, done.stderr) == (1, f"error: {PLAIN}: 127.0.0.1:1: Connection refused\n")


def test_files_that_need_a_person_end_a_start_with_2(site: Site, target: str) -> None:
    made = Connecting(site.directory, [{"listen": "0.0.0.0:6333", "targets": [target]}])
    refused = run("connect", "--config", str(made.config))
    assert refused.returncode == 2
    assert f"{made.config}:" in refused.stderr
    assert "can be reached from the network" in refused.stderr
    made.write([{"listen": PLAIN, "targets": [target]}], {"ca_cert": "ca.pem", "cert": "no.pem", "key": "client.key"})
    refused = run("connect", "--config", str(made.config))
    assert refused.returncode == 2
    assert "no.pem does not exist" in refused.stderr.replace(":", "")
    for arguments in (["--check"], []):
        made.write([{"listen": PLAIN, "targets": [target]}], {"ca_cert": "client.pem"})
        refused = run("connect", "--config", str(made.config), *arguments)
        assert refused.returncode == 2, refused.stderr
        assert "client.pem" in refused.stderr


def test_a_pair_that_is_being_replaced_is_waited_for_at_the_start(site: Site, target: str) -> None:
    issued = site.authority.issue(common_name="web-1", client=True)
    former = (site.directory / "client.key").read_bytes(), (site.directory / "client.pem").read_bytes()
    site.replace("client.key", issued.key_pem)
    made = Connecting(site.directory, [{"listen": PLAIN, "targets": [target]}])
    made.launch()
    made.log.wait(lambda line: "waiting for it for 5 s" in line)
    site.replace("client.pem", issued.chain_pem)
    with made as connecting:
        assert said(connecting.connect(PLAIN), b"hello") == b"hello"
    site.replace("client.key", former[0])
    site.replace("client.pem", former[1])


def test_sockets_of_systemd_are_used(site: Site, target: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as held:
        listen = f"127.0.0.1:{held.getsockname()[1]}"
        made = Connecting(site.directory, [{"listen": listen, "targets": [target]}], inherit=[("tcp", held)])
        with made as connecting:
            assert said(connecting.connect(listen), b"hello") == b"hello"
        socket.create_connection(held.getsockname()).close()  # it outlives the process
