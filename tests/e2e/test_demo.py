"""`tlsproxy demo`: a whole gateway in one command, which says what it did and cleans up after itself."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from support.gateway import DEADLINE, Lines
from support.operator_tools import tool

from tlsproxy.cli import main

STEPS = (
    "an embedded Qdrant in plaintext on 127.0.0.1:",
    "the gateway with mutual TLS on 127.0.0.1:",
    "admin creates the collection `docs`",
    "ingest loads 300 points: 300 are there",
    "search finds the nearest three: {'title': 'document 7'}",
    "search finds them over gRPC too: {'title': 'document 7'}",
    "search may not write: 403 ",
    "nor over gRPC: PERMISSION_DENIED ",
    "ingest may not write elsewhere over gRPC: PERMISSION_DENIED ",
    "ingest may not create a collection: 403 ",
    "a certificate without a role may do nothing: 403 ",
    "without a certificate there is no connection: ",
    "the server certificate changes while clients search: ",
    "the audit log has all of it",
)
ENVIRON = {"PATH": os.defpath, "PYTHONWARNINGS": "error"}


def demo_once(directory: Path) -> Result:
    """In this process, which has imported the clients; upstream and gateway are processes of their own."""
    return CliRunner().invoke(main, ["demo", "--once", "--dir", str(directory)])


def test_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONWARNINGS", "error")  # theirs
    done = demo_once(tmp_path / "demo")
    assert done.exit_code == 0, done.output
    told = [line.removeprefix("✓ ") for line in done.stdout.splitlines() if line.startswith("✓ ")]
    assert len(told) == len(STEPS), done.stdout
    for line, step in zip(told, STEPS, strict=True):
        assert line.startswith(step)
    assert "✗" not in done.stdout
    assert done.stdout.endswith("every step did what it should\n")
    rotated = re.search(r"none failed; serial (\w+) became (\w+)", done.stdout)
    assert rotated
    assert rotated[1] != rotated[2]
    assert_ended(done.stdout)


def test_it_stays_up_until_it_is_told(tmp_path: Path) -> None:
    """And what it prints to be tried is true of a running gateway: the very command is run here."""
    tool("curl")
    command = [sys.executable, "-P", "-m", "tlsproxy", "demo", "--dir", str(tmp_path)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=ENVIRON | {"PYTHONUNBUFFERED": "1"}
    ) as demo:
        try:
            lines = Lines(demo.stdout)
            page = lines.wait(lambda line: line.startswith("  http://127.0.0.1:"), deadline=50).strip()
            with urllib.request.urlopen(page, timeout=DEADLINE) as shown:  # noqa: S310
                told = shown.read().decode()
            for seen in (
                "ingest-nightly",
                "needs_manage",
                "certificate CN=localhost",
                "spiffe://example.org/search/web",
            ):
                assert seen in told
            tried = lines.wait(lambda line: "curl" in line, deadline=50).strip()
            answered = subprocess.run(
                ["bash", "-c", tried], capture_output=True, text=True, timeout=DEADLINE, check=False
            )
            assert answered.returncode == 0, tried + answered.stderr
            assert '"docs"' in answered.stdout
            demo.send_signal(signal.SIGTERM)
            assert demo.wait(DEADLINE) == 0
            assert "stopped" in lines.drain()
            assert_ended("\n".join(lines.seen))
        finally:
            if demo.poll() is None:
                demo.kill()


def test_another_directory_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("do not touch")
    done = demo_once(tmp_path)
    assert done.exit_code == 1
    assert "is not empty" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def assert_ended(told: str) -> None:
    """Nobody listens any more on the ports that it told of."""
    ports = {int(port) for port in re.findall(r"127\.0\.0\.1:(\d+)", told)}
    assert ports
    for port in ports:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                pytest.fail(f"{port} is still served")
