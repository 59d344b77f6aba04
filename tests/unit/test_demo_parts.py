"""What the demo is made of: its directory, its programs, its steps, and its reading of the audit log."""

from __future__ import annotations

import json
import signal
import stat
import sys
from typing import TYPE_CHECKING

import grpc
import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from qdrant_client.http.exceptions import UnexpectedResponse

from tlsproxy.demo.audited import show_audit
from tlsproxy.demo.premises import Premises, prepare
from tlsproxy.demo.programs import ProgramError, running
from tlsproxy.demo.scenario import run_demo
from tlsproxy.demo.steps import Report, StepError, refusal
from tlsproxy.demo.upstream import Ports
from tlsproxy.errors import MaterialError

if TYPE_CHECKING:
    from pathlib import Path


def shown_pair(premises: Premises) -> tuple[x509.Certificate, bool]:
    """The server certificate that the configuration names, and whether its key is the one beside it."""
    current = premises.root / "certs" / "server" / "current"
    certificate = x509.load_pem_x509_certificate((current / "server.pem").read_bytes())
    key = load_pem_private_key((current / "server.key").read_bytes(), password=None)
    return certificate, certificate.public_key() == key.public_key()


def test_a_rotation_puts_a_new_pair_behind_one_name(tmp_path: Path) -> None:
    premises = prepare(tmp_path / "demo")
    before, _ = shown_pair(premises)
    serial = premises.rotate_server_certificate()
    after, belongs = shown_pair(premises)
    assert before.serial_number != after.serial_number == serial
    assert belongs


def test_only_the_owner_reads_the_keys(tmp_path: Path) -> None:
    premises = prepare(tmp_path / "demo")
    keys = list(premises.root.rglob("*.key"))
    assert {key.stem for key in keys} == {"admin", "ingest", "search", "stranger", "server"}
    assert {stat.S_IMODE(key.stat().st_mode) for key in keys} == {0o600}


def test_a_second_demo_replaces_what_the_first_one_left(tmp_path: Path) -> None:
    first = prepare(tmp_path / "demo")
    first.write_config(Ports(1, 2))
    first.ready_file.write_text("{}")
    (first.audit / "audit.2020-01-01.log").write_text("{}\n")
    ca = first.ca.read_bytes()
    second = prepare(tmp_path / "demo")
    assert second.ca.read_bytes() != ca
    assert not second.ready_file.exists()
    assert not list(second.audit.iterdir())


def test_a_directory_that_is_not_the_demos_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mine = tmp_path / "certs" / "server.key"
    mine.parent.mkdir()
    mine.write_text("precious")
    with pytest.raises(MaterialError, match="not made by"):
        prepare(tmp_path)
    assert run_demo(tmp_path, once=True) == 1
    assert "choose another" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["certs"]
    assert mine.read_text() == "precious"


def test_a_program_that_ends_too_early_says_why(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "import sys; sys.exit('no such port')"]
    with (
        running("gateway", command, tmp_path) as program,
        pytest.raises(ProgramError, match="ended with 1: no such port"),
    ):
        program.wait_until(lambda: None)


def test_a_program_is_stopped_with_its_context(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "import signal; print('up', flush=True); signal.pause()"]
    with running("child", command, tmp_path) as program:
        assert program.wait_until(lambda: program.output.read_text() or None) == "up\n"
    assert program.wait() == -signal.SIGTERM


def test_a_step_that_breaks_is_a_cross_and_the_next_one_still_runs(capsys: pytest.CaptureFixture[str]) -> None:
    report = Report()
    with report.step("first"):
        raise OSError("no route")
    with report.step("second") as step:
        step.result = "all of it"
    assert capsys.readouterr().out == "✗ first: OSError: no route\n✓ second: all of it\n"
    assert report.failed == 1


def answer(status: int) -> UnexpectedResponse:
    return UnexpectedResponse(status, "", b'{"status":{"error":"Forbidden: no"}}', httpx.Headers())


def raising(error: Exception) -> None:
    raise error


class Ended(grpc.RpcError):
    def __init__(self, code: grpc.StatusCode) -> None:
        self._code = code

    def code(self) -> grpc.StatusCode:
        return self._code

    def details(self) -> str:
        return "Forbidden: no"


def test_of_grpc_only_permission_denied_is_one() -> None:
    assert refusal(lambda: raising(Ended(grpc.StatusCode.PERMISSION_DENIED))) == "PERMISSION_DENIED Forbidden: no"
    with pytest.raises(StepError, match=r"got StatusCode\.UNAVAILABLE"):
        refusal(lambda: raising(Ended(grpc.StatusCode.UNAVAILABLE)))


def test_only_a_403_is_a_refusal() -> None:
    assert "Forbidden: no" in refusal(lambda: raising(answer(403)))
    with pytest.raises(StepError, match="got 500"):
        refusal(lambda: raising(answer(500)))
    with pytest.raises(StepError, match="was allowed"):
        refusal(lambda: None)


REFUSED = {"method": "upsert_points", "result": "denied", "status": 403, "reason": "write"}
HANDSHAKE = {"event": "handshake", "result": "failed", "reason": "no certificate"}
RELOAD = {"event": "reload", "result": "ok", "reason": "content"}


def test_the_audit_lines_are_shown_by_kind(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = [REFUSED, REFUSED, REFUSED, HANDSHAKE, RELOAD]
    file = tmp_path / "audit.2026-01-01.log"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"half": ')
    assert show_audit(tmp_path).startswith("5 lines")
    out = capsys.readouterr().out
    assert out.count("upsert_points") == 1
    assert "2 more of the kind" in out


@pytest.mark.parametrize("missing", [REFUSED, HANDSHAKE, RELOAD])
def test_an_audit_log_that_lacks_a_line_is_told(
    tmp_path: Path, missing: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tlsproxy.demo.audited._DEADLINE", 0.0)
    lines = [REFUSED, REFUSED, REFUSED, HANDSHAKE, RELOAD]
    lines.remove(missing)
    (tmp_path / "audit.2026-01-01.log").write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(StepError, match="not in"):
        show_audit(tmp_path)
