"""The units as shipped: systemd understands every line of them, and finds little to expose."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from support import forked
from support.site import Site

from tlsproxy.config.model import Service

UNITS = Path(__file__).parents[2] / "systemd"
SERVICE = UNITS / "tlsproxy.service"
CLIENT_MODE = UNITS / "tlsproxy-connect@.service"
SOCKETS = sorted(UNITS.glob("*.socket"))
needs_systemd = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs Debian's systemd package")


def verified(*units: Path) -> tuple[int, str]:
    """It exits with 0 on keys that it does not know: what it says is what counts."""
    command = ["systemd-analyze", "verify", *map(str, units)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    return result.returncode, result.stderr


@pytest.fixture
def unit(tmp_path: Path) -> Path:
    """The service, with a program that is there: the installed one is at /opt. The other units stand beside it."""
    for one in (SERVICE, CLIENT_MODE, *SOCKETS):
        text = one.read_text().replace("/opt/tlsproxy/bin/tlsproxy", "/bin/true")
        (tmp_path / one.name).write_text(text)
    return tmp_path / SERVICE.name


@needs_systemd
def test_systemd_understands_every_line(unit: Path) -> None:
    assert verified(unit, unit.with_name(CLIENT_MODE.name), *unit.parent.glob("*.socket")) == (0, "")


@needs_systemd
@pytest.mark.parametrize(("name", "key"), [(SERVICE.name, "NoNewPrivileges"), ("tlsproxy.socket", "FreeBind")])
def test_systemd_says_so_where_a_line_is_wrong(unit: Path, name: str, key: str) -> None:
    wrong = unit.with_name(name)
    wrong.write_text(wrong.read_text().replace(f"{key}=", f"{key}Not="))
    assert f"{key}Not" in verified(wrong)[1]


@needs_systemd
def test_the_exposure_is_small(unit: Path) -> None:
    instance = unit.with_name("tlsproxy-connect@.service").rename(unit.with_name("tlsproxy-connect@qdrant.service"))
    command = [
        "systemd-analyze",
        "security",
        "--offline=true",
        "--threshold=15",
        "--no-pager",
        str(unit),
        str(instance),
    ]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout


def test_client_mode_is_confined_as_the_gateway_is() -> None:
    def confinement(unit: Path) -> list[str]:
        lines = unit.read_text().splitlines()
        return lines[lines.index("CapabilityBoundingSet=") :]

    assert confinement(CLIENT_MODE) == confinement(SERVICE)


def test_a_refused_configuration_waits_for_a_person() -> None:
    assert "RestartPreventExitStatus=2" in SERVICE.read_text()


def test_a_reload_is_vetoed_by_nothing() -> None:
    """A reload that takes rights away gets through, whatever is wrong beside it; aged input is no error."""
    reloads = [line for line in SERVICE.read_text().splitlines() if line.startswith("ExecReload=")]
    assert reloads[0] == "ExecReload=/bin/kill -HUP $MAINPID"
    assert "tlsproxy check --reload --config" in reloads[1]
    assert reloads[1].endswith(" --as-user %n")
    assert "tlsproxy reload --if-admin --config" in reloads[2]


def test_each_socket_is_one_listener_of_the_default_configuration() -> None:
    """A socket is named after what listens there, and several of them are told apart by that."""
    told = {}
    for one in SOCKETS:
        keys = dict(line.split("=", 1) for line in one.read_text().splitlines() if "=" in line and line[0] != "#")
        assert keys["Service"] == SERVICE.name
        told[keys["FileDescriptorName"]] = keys["ListenStream"]
    service = Service()
    assert told.pop("rest") == f"{service.host}:{service.http_port}"
    assert told.pop("grpc") == f"{service.host}:{service.grpc_port}"
    assert told.keys() == {"tcp"}


def test_the_first_configuration_is_a_good_one(own_site: Site) -> None:
    """As soon as there are certificates where it looks for them."""
    first = UNITS / "tlsproxy.yaml"
    text = first.read_text().replace("certs/", "")
    own_site.write("tlsproxy.yaml", text.encode())
    done = forked.run("check", "--config", str(own_site.directory / "tlsproxy.yaml"))
    assert (done.returncode, done.stderr) == (0, "")
    lines = SERVICE.read_text().splitlines()
    assert "LogsDirectory=tlsproxy" in lines
    assert "dir: /var/log/tlsproxy}" in text
    assert "RuntimeDirectory=tlsproxy" in lines
    assert "unix:/run/tlsproxy/admin.sock" in text
