"""What an operator does with `make install` and systemctl, on a real systemd that is booted for it."""

from __future__ import annotations

import os
import re
import shutil
import socket
import ssl
import subprocess
import sys
import threading
import time
import tomllib
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Self

import grpc
import pytest
import yaml
from support.background_load import BackgroundLoad
from support.gateway import DEADLINE
from support.grpc_channels import channel
from support.grpc_upstream import GrpcUpstream
from support.h2_raw_client import SEARCH
from support.raw_request import ask
from support.site import CONFIG, Site
from support.systemd_machine import Machine, needs_machine
from support.upstream import ScriptedUpstream
from support.wheelhouse import wheelhouse

from tlsproxy import __version__

ROOT = Path(__file__).parents[2]
PYTHON = "/usr/bin/python3"
KEY = "a-key-that-only-root-can-read"
LINKED = (
    "bin/tlsproxy",
    "share/man/man1/tlsproxy.1",
    "share/bash-completion/completions/tlsproxy",
    "share/zsh/site-functions/_tlsproxy",
    "share/fish/vendor_completions.d/tlsproxy.fish",
)
FOREIGN = f"usr/local/{LINKED[-1]}"
DYNAMIC_USERS = range(61184, 65520)

pytestmark = pytest.mark.timeout(180)


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


class Installed:
    """tlsproxy as `make install` leaves it on a machine, in front of upstreams of ours."""

    def __init__(self, tree: Path, upstream: ScriptedUpstream, grpc_upstream: GrpcUpstream) -> None:
        self.upstream = upstream
        self.port, self.grpc_port, self.plain_port = free_port(), free_port(), free_port()
        self.site = Site(tree / "etc/tlsproxy/certs")
        self._file = tree / "etc/tlsproxy/tlsproxy.yaml"
        service = {"host": "127.0.0.1", "http_port": self.port, "grpc_port": self.grpc_port}
        self._config = yaml.safe_load(self._file.read_text()) | {
            "service": service | {"api_key_file": "credential:api-key"},
            "roles": CONFIG["roles"],
            "identities": CONFIG["identities"],
            "upstream": {"rest": upstream.url, "grpc": grpc_upstream.url},
            "limits": {"drain_grace": 10, "drain_timeout": 20},
        }
        self.tls = self._config["tls"]
        self.write()
        secret = tree / "etc/tlsproxy/api-key"
        secret.touch(mode=0o600)
        secret.write_text(KEY)
        self._client_mode(tree / "etc/tlsproxy/connect/qdrant.yaml")
        units = tree / "etc/systemd/system"
        for name, port in (("tlsproxy", self.port), ("tlsproxy-grpc", self.grpc_port)):
            _drop_in(units / f"{name}.socket.d", f"[Socket]\nListenStream=\nListenStream=127.0.0.1:{port}\n")
        service_lines = "[Service]\nWatchdogSec=3\nLoadCredential=api-key:/etc/tlsproxy/api-key\n"
        _drop_in(units / "tlsproxy.service.d", service_lines)
        _drop_in(units / "tlsproxy-connect@qdrant.service.d", "[Service]\nGroup=app\n")

    def _client_mode(self, file: Path) -> None:
        targets = [f"localhost:{self.port}"]
        unix = {"listen": "unix:/run/tlsproxy-connect/qdrant/rest.sock", "unix_mode": "0660", "targets": targets}
        certificate = {"ca_cert": "../certs/ca.pem", "cert": "../certs/search.pem", "key": "../certs/search.key"}
        listeners = [{"listen": f"127.0.0.1:{self.plain_port}", "targets": targets}, unix]
        file.write_text(yaml.safe_dump({"listeners": listeners, "tls": certificate}))

    def write(self, **sections: Any) -> None:
        """The configuration, as it is from then on."""
        self._file.write_text(yaml.safe_dump(self._config | sections))

    def put(self, name: str, data: bytes) -> None:
        """A file beside the certificates, for everybody to read."""
        self.site.write(name, data).chmod(0o644)

    def spoil(self) -> None:
        self._file.write_text(self._file.read_text().replace("access:", "acess:"))

    def status_of(self, *fields: tuple[str, str]) -> int:
        with socket.create_connection(("127.0.0.1", self.port), timeout=DEADLINE) as sock:
            context: ssl.SSLContext = self.site.client()
            with context.wrap_socket(sock, server_hostname="localhost") as tls:
                return ask(tls, fields=fields).status


def _drop_in(directory: Path, text: str) -> None:
    directory.mkdir(parents=True)
    (directory / "test.conf").write_text(text)


def make(target: str, tree: Path, more: Mapping[str, str] = {}, **variables: str) -> subprocess.CompletedProcess[str]:
    """``more`` are variables of the environment."""
    command = ["make", "-s", target, f"DESTDIR={tree}", *(f"{name}={value}" for name, value in variables.items())]
    # Not as a part of the `make` that runs the tests, of whose jobs it would warn.
    environ = {name: value for name, value in os.environ.items() if name not in {"MAKEFLAGS", "MFLAGS", "MAKELEVEL"}}
    environ |= more
    return subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, timeout=150, check=False)


def without_index(directory: Path) -> dict[str, str]:
    """pip's environment, with wheels of what is installed beside these tests, where that is for the same Python.

    An index lists 58,000 files of what tlsproxy needs: to look at them takes pip most of the time of an installation.
    """
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    command = [PYTHON, "-c", "import sys; print(*sys.version_info[:2])"]
    version = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    if version != [str(part) for part in sys.version_info[:2]]:
        return {}
    if not wheelhouse(directory, *project["project"]["dependencies"]):
        return {}
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--dest", str(directory), *project["build-system"]["requires"]]
    if subprocess.run(command, capture_output=True, timeout=DEADLINE, check=False).returncode:
        return {}
    return {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(directory)}


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    needs_machine()
    if shutil.which(PYTHON) is None or subprocess.run([PYTHON, "-c", "import ensurepip"], check=False).returncode:
        pytest.skip(f"{PYTHON} makes no virtual environments (Debian: python3-venv)")
    tree = tmp_path_factory.mktemp("tree")
    (tree / FOREIGN).parent.mkdir(parents=True)
    (tree / FOREIGN).write_text("mine")
    done = make("install", tree, without_index(tmp_path_factory.mktemp("wheels")), PYTHON=PYTHON, COMPILED="no")
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"installed below {tree}: tlsproxy, version {__version__} (plain)\n"
    assert done.stderr == f"{tree}/{FOREIGN} is somebody else's and is kept; ours is /opt/tlsproxy/{LINKED[-1]}\n"
    return tree


@pytest.fixture(scope="module")
def installed(tree: Path) -> Iterator[Installed]:
    with ScriptedUpstream() as upstream, GrpcUpstream() as grpc_upstream:
        yield Installed(tree, upstream, grpc_upstream)


@pytest.fixture(scope="module")
def machine(tree: Path, installed: Installed, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """With everything started, as systemd/README.md says."""
    assert installed.port
    binds = {tree / "opt": "/opt", tree / "etc/tlsproxy": "/etc/tlsproxy"}
    shutil.copytree(
        ROOT / "systemd", tree / "srv/systemd"
    )  # the checkout may be below /tmp, which the machine has anew
    with Machine(tmp_path_factory.mktemp("machine"), tree, binds) as machine:
        machine.run("systemd-sysusers", "/etc/sysusers.d/tlsproxy.conf")
        machine.run("chgrp", "-R", "tlsproxy-tls", "/etc/tlsproxy/certs")
        machine.run("chmod", "-R", "g+rX", "/etc/tlsproxy/certs")
        machine.run("systemctl", "enable", "--now", "tlsproxy.socket", "tlsproxy-grpc.socket", "tlsproxy.service")
        yield machine


def until(reached: Callable[[], bool], machine: Machine) -> None:
    end = time.monotonic() + DEADLINE
    while not reached():
        assert time.monotonic() < end, machine.journal("tlsproxy") + machine.console()
        time.sleep(0.05)  # systemctl is asked, and has no way to wait for it


def test_it_runs_as_an_account_of_its_own_and_says_what_it_does(machine: Machine, installed: Installed) -> None:
    assert machine.shown("tlsproxy", "ActiveState") == "active"
    status = machine.shown("tlsproxy", "StatusText")
    assert status.startswith("generation 1 since ")
    assert f"REST on https://127.0.0.1:{installed.port}, gRPC on https://127.0.0.1:{installed.grpc_port}" in status
    process = Path("/proc", machine.shown("tlsproxy", "MainPID"), "status")
    lines = dict(line.split(":", 1) for line in machine.run("cat", str(process)).stdout.splitlines())
    assert int(lines["Uid"].split()[0]) in DYNAMIC_USERS
    assert int(lines["CapEff"], 16) == 0
    assert installed.status_of() == 200
    audit = machine.run("find", "/var/log/tlsproxy/", "-name", "audit.*.log", "-printf", "%m").stdout
    assert audit == "600"


def test_the_command_is_on_path_with_its_manual_and_completions(machine: Machine, tree: Path) -> None:
    for path in LINKED:
        assert (tree / "opt/tlsproxy" / path).stat().st_size > 0
        assert (tree / "usr/local" / path).is_symlink() == (f"usr/local/{path}" != FOREIGN)
    assert "tlsproxy, version" in machine.run("/usr/local/bin/tlsproxy", "--version").stdout
    assert "generation 1 since" in machine.run("/usr/local/bin/tlsproxy", "status").stdout, (
        "by the default configuration"
    )
    completed = "source /usr/local/share/bash-completion/completions/tlsproxy; complete -p tlsproxy"
    assert "_tlsproxy_completion" in machine.run("bash", "-c", completed).stdout


def test_a_secret_comes_by_a_credential(machine: Machine, installed: Installed) -> None:
    assert machine.run("stat", "-c", "%U %a", "/etc/tlsproxy/api-key").stdout.strip() == "root 600"
    assert installed.status_of(("api-key", KEY)) == 200
    assert installed.status_of(("api-key", "another")) == 401


def test_a_good_reload(machine: Machine, installed: Installed) -> None:
    process = machine.shown("tlsproxy", "MainPID")
    installed.write(log_level="DEBUG")
    machine.run("systemctl", "reload", "tlsproxy")
    assert "reload (sighup)" in machine.journal("tlsproxy")
    until(lambda: machine.shown("tlsproxy", "StatusText").startswith("generation 2 since "), machine)
    until(lambda: machine.shown("tlsproxy", "ActiveState") == "active", machine)
    assert machine.shown("tlsproxy", "MainPID") == process
    assert installed.status_of(("api-key", KEY)) == 200


def test_a_bad_reload_fails_and_changes_nothing(machine: Machine, installed: Installed) -> None:
    process, invocation = (machine.shown("tlsproxy", name) for name in ("MainPID", "InvocationID"))
    installed.spoil()
    failed = machine.run("systemctl", "reload", "tlsproxy", check=False)
    assert failed.returncode == 1
    assert "acess: unknown key" in machine.journal("tlsproxy")
    assert machine.shown("tlsproxy", "ActiveState") == "active"
    assert (machine.shown("tlsproxy", "MainPID"), machine.shown("tlsproxy", "InvocationID")) == (process, invocation)
    assert installed.status_of() == 200
    installed.write()
    machine.run("systemctl", "reload", "tlsproxy")


def test_a_key_that_the_service_cannot_read_fails_the_reload(machine: Machine, installed: Installed) -> None:
    """As certbot writes it: root's alone. The next start would fail."""
    key = "/etc/tlsproxy/certs/server.key"
    machine.run("chown", "root:root", key)
    machine.run("chmod", "600", key)
    failed = machine.run("systemctl", "reload", "tlsproxy", check=False)
    assert failed.returncode == 1
    assert "server.key: may not be read as tlsproxy.service (uid " in machine.journal("tlsproxy")
    assert installed.status_of() == 200
    machine.run("chgrp", "tlsproxy-tls", key)
    machine.run("chmod", "640", key)


def test_the_gateways_own_verdict_fails_the_reload(machine: Machine, installed: Installed) -> None:
    """A file that is good in itself, and yet not in force. Without an admin server the log has it."""
    installed.put("one.crl", installed.site.authority.crl_pem(number=7))
    installed.write(tls={**installed.tls, "crl": ["certs/one.crl"]})
    until(lambda: "setting tls.crl changed" in machine.journal("tlsproxy"), machine)
    installed.put("one.crl", installed.site.authority.crl_pem(number=6))
    failed = machine.run("systemctl", "reload", "tlsproxy", check=False)
    assert failed.returncode == 1
    assert "is older than the one in use" in machine.journal("tlsproxy")
    installed.write(admin={})
    machine.run("systemctl", "reload", "tlsproxy")
    assert "admin.listen is not set, so there is no admin server: what became" in machine.journal("tlsproxy")
    installed.write()


def test_a_loop_that_stands_still_is_started_anew(machine: Machine, installed: Installed) -> None:
    process = machine.shown("tlsproxy", "MainPID")
    machine.run("kill", "-STOP", process)
    until(lambda: machine.shown("tlsproxy", "NRestarts") == "1", machine)
    assert installed.status_of() == 200, "it waited in the socket's backlog"
    assert machine.shown("tlsproxy", "MainPID") not in {process, "0"}
    assert "Watchdog timeout" in machine.journal("tlsproxy")


class Calls:
    """gRPC calls, one after the other, none of them made twice; what failed is kept."""

    def __init__(self, installed: Installed) -> None:
        self.made = 0
        self.failures: list[str] = []
        self._installed = installed
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._call)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(DEADLINE)

    def _call(self) -> None:
        where: Any = SimpleNamespace(grpc_port=self._installed.grpc_port)
        with channel(where, self._installed.site) as opened:
            method = opened.unary_unary(SEARCH)
            while not self._stop.wait(0.02):
                try:
                    method(b"", timeout=DEADLINE)
                except grpc.RpcError as error:
                    self.failures.append(f"{error.code()}: {error.details()}")
                self.made += 1


def test_a_restart_under_load_loses_nothing(machine: Machine, installed: Installed) -> None:
    process = machine.shown("tlsproxy", "MainPID")
    with ExitStack() as stack:
        gateway: Any = installed  # it has the port
        load = BackgroundLoad(installed.site, gateway, kept=4, new=2)
        stack.callback(load.kill)
        calls = stack.enter_context(Calls(installed))
        for _ in range(2):
            asked, called = len(installed.upstream.requests) + 20, calls.made + 10
            until(lambda: len(installed.upstream.requests) > asked and calls.made > called, machine)  # noqa: B023
            machine.run("systemctl", "restart", "tlsproxy")
        asked, called = len(installed.upstream.requests) + 20, calls.made + 10
        until(lambda: len(installed.upstream.requests) > asked and calls.made > called, machine)
        done = load.end()
    assert machine.shown("tlsproxy", "MainPID") != process
    assert done["failures"] == []
    assert done["requests"] > 60
    assert calls.failures == []


def test_client_mode_has_a_service_for_each_configuration(machine: Machine, installed: Installed) -> None:
    unit = "tlsproxy-connect@qdrant"
    machine.run("groupadd", "--system", "app")
    machine.run("systemctl", "enable", "--now", unit)
    assert machine.shown(unit, "ActiveState") == "active"
    process = machine.shown(unit, "MainPID")
    lines = machine.run("cat", f"/proc/{process}/status").stdout
    assert "CapEff:\t0000000000000000" in lines

    def asked() -> int:
        with socket.create_connection(("127.0.0.1", installed.plain_port), DEADLINE) as sock:
            return ask(sock).status

    assert asked() == 200
    path = "/run/tlsproxy-connect/qdrant/rest.sock"
    program = f"import socket; socket.socket(socket.AF_UNIX).connect({path!r})"
    for group, status in (("app", 0), ("nogroup", 1)):
        command = ["setpriv", "--reuid=nobody", f"--regid={group}", "--clear-groups", PYTHON, "-c", program]
        assert machine.run(*command, check=False).returncode == status
    installed.site.issue("search", client=True, uris=["spiffe://example.org/search/web"])
    machine.run("chgrp", "tlsproxy-tls", "/etc/tlsproxy/certs/search.key")
    machine.run("chmod", "g+r", "/etc/tlsproxy/certs/search.key")
    machine.run("systemctl", "reload", unit)
    until(lambda: machine.shown(unit, "ActiveState") == "active", machine)
    assert machine.shown(unit, "MainPID") == process
    assert asked() == 200


def test_who_connects_starts_it(machine: Machine, installed: Installed) -> None:
    machine.run("systemctl", "stop", "tlsproxy.service")
    assert machine.shown("tlsproxy", "ActiveState") == "inactive"
    assert machine.shown("tlsproxy", "Result") == "success"
    assert installed.status_of() == 200
    assert machine.shown("tlsproxy", "ActiveState") == "active"


def test_a_group_of_the_operators_choice_reads_the_audit_log(machine: Machine, installed: Installed) -> None:
    """By observability/audit-group.conf and what it says; the files of before come along."""
    drop_in = "/opt/tlsproxy/share/doc/tlsproxy/observability/audit-group.conf"
    text = machine.run("cat", drop_in).stdout
    (commands,) = re.findall(r"^#   (groupadd .*)$", text, re.MULTILINE)
    machine.run("sh", "-euc", f"{commands}; useradd --system --groups tlsproxy-audit shipper")
    machine.run("install", "-m", "0644", drop_in, "/etc/systemd/system/tlsproxy.service.d/audit-group.conf")
    installed.write(audit={"dir": "/var/log/tlsproxy", "group": "tlsproxy-audit"})
    machine.run("systemctl", "daemon-reload")
    machine.run("systemctl", "restart", "tlsproxy")
    assert installed.status_of() == 200
    read = [
        "setpriv",
        "--reuid=shipper",
        "--regid=shipper",
        "--init-groups",
        "sh",
        "-c",
        "cat /var/log/tlsproxy/audit.*",
    ]
    until(lambda: '"event":"stop"' in machine.run(*read).stdout.partition('"event":"start"')[2], machine)
    read[1:4] = ["--reuid=nobody", "--regid=nogroup", "--clear-groups"]
    assert machine.run(*read, check=False).returncode
    assert set(machine.run("find", "/var/log/tlsproxy/", "-printf", "%m %u %g\n").stdout.splitlines()) == {
        "750 tlsproxy-gateway tlsproxy-audit",
        "640 tlsproxy-gateway tlsproxy-audit",
    }


def test_uninstalling_leaves_what_an_operator_wrote(machine: Machine, installed: Installed) -> None:
    assert installed.status_of() == 200
    done = machine.run("sh", "/srv/systemd/install.sh", "uninstall")
    assert "Kept: /etc/tlsproxy (configuration, certificates, keys)" in done.stdout
    assert machine.shown("tlsproxy", "LoadState") == "not-found"
    assert machine.shown("tlsproxy-connect@qdrant", "ActiveState") == "inactive"
    assert machine.run("find", "/etc/systemd/system", "-name", "*tlsproxy*.service").stdout == ""
    assert machine.run("ls", "/opt").stdout == ""
    assert machine.run("find", "/usr/local", "-name", "*tlsproxy*").stdout == f"/{FOREIGN}\n"
    assert machine.run("ls", "/etc/tlsproxy").stdout.split() == ["api-key", "certs", "connect", "tlsproxy.yaml"]
    assert "audit." in machine.run("ls", "/var/log/tlsproxy/").stdout
    with pytest.raises(ConnectionRefusedError):
        installed.status_of()


# What `make install` refuses, before it does anything


@pytest.mark.parametrize(
    ("variables", "says"),
    [
        ({"PREFIX": "opt/tlsproxy"}, "PREFIX=opt/tlsproxy must be an absolute path"),
        ({"PREFIX": "/home/me/tlsproxy"}, "PREFIX=/home/me/tlsproxy is hidden from the service (ProtectHome=yes)"),
        ({"PREFIX": "/usr"}, "has something else in it: PREFIX is a directory of tlsproxy's own"),
        ({"PYTHON": "no-such-python"}, "there is no no-such-python: set PYTHON to a Python >= 3.11"),
        ({"DESTDIR": "relative"}, "DESTDIR=relative must be an absolute path"),
    ],
)
def test_what_cannot_be_installed(tmp_path: Path, variables: dict[str, str], says: str) -> None:
    (tmp_path / "usr/bin").mkdir(parents=True)
    for target in ("install", "uninstall") if "PYTHON" not in variables else ("install",):
        done = make(target, tmp_path, **variables)
        assert done.returncode
        assert f"error: {says}" in done.stderr or says in done.stderr
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["bin", "usr"]


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to be somebody else")
def test_only_root_installs_on_the_running_system(tmp_path: Path) -> None:
    script = tmp_path / "systemd/install.sh"
    shutil.copytree(ROOT / "systemd", script.parent)
    command = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "sh", "-s", "install"]
    with (ROOT / "systemd/install.sh").open() as source:
        done = subprocess.run(command, stdin=source, cwd="/", capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == "error: must be root (or set DESTDIR to make a tree for a package)\n"
