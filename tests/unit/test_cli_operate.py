"""What `status`, `top` and `reload` say where there is nobody to ask, and how a status looks on a terminal."""

from __future__ import annotations

import http.server
import io
import re
import socket
import threading
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from rich.console import Console
from snapshot_site import site
from support.sample_status import HOSTILE, NOW, connection, refusal, status

from tlsproxy.cli import main
from tlsproxy.cli.admin_client import admin_of
from tlsproxy.cli.terminal import BLOCKS, PLAIN, _overview, show

COMMANDS = ("status", "top", "reload", "connections", "who nobody", "cut 1")


def refused(*arguments: str) -> str:
    """What is said on standard error by a command that cannot do what it is asked."""
    done = CliRunner().invoke(main, arguments)
    assert (done.exit_code, done.stdout) == (2, "")
    return done.stderr


def drawn(told: dict[str, Any], *, width: int = 160, rows: int | None = None, **more: Any) -> str:
    to = Console(file=io.StringIO(), width=width, markup=False, emoji=False, highlight=False, **more)
    to.print(_overview(told, NOW, BLOCKS, rows))
    return to.file.getvalue()  # type: ignore[attr-defined, no-any-return]


def test_without_a_configuration_all_places_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("tlsproxy.cli.common.DEFAULT_CONFIG", tmp_path / "tlsproxy.yaml")
    for command in (*COMMANDS, "check", "run", "explain none GET /", "token verify -"):
        told = refused(*command.split())
        assert f"TLSPROXY_CONFIG is not set, and there is no {tmp_path}/tlsproxy.yaml" in told
        assert ("--config FILE or --admin ADDRESS is not given" in told) == (command in COMMANDS)


def test_the_configuration_of_the_environment_and_of_the_default_place(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    made = site(tmp_path)
    monkeypatch.setattr("tlsproxy.cli.common.DEFAULT_CONFIG", made.config)
    for environ, says in (
        ({}, f"{made.config}: admin.listen is not set"),
        ({"TLSPROXY_CONFIG": ""}, f"{made.config}: admin.listen is not set"),
        ({"TLSPROXY_CONFIG": str(tmp_path / "other.yaml")}, "other.yaml"),
    ):
        done = CliRunner().invoke(main, ["status"], env=environ)
        assert (done.exit_code, says in done.stderr) == (2, True), done.stderr


def test_the_configuration_says_where_it_is(tmp_path: Path) -> None:
    made = site(tmp_path)
    assert "admin.listen is not set" in refused("status", "--config", str(made.config))
    made.configure(admin={"listen": "127.0.0.1:0"})
    assert "leaves the port to the system" in refused("status", "--config", str(made.config))
    made.configure(admin={"listen": f"unix:{tmp_path}/admin.sock"})
    assert "No such file or directory: is the gateway running?" in refused("status", "--config", str(made.config))
    made.configure(admin={"listen": "localhost:9333"})
    assert admin_of(made.config, None).address == "localhost:9333"
    assert admin_of(made.config, "unix:/run/x").address == "unix:/run/x"
    assert "missing.yaml" in refused("status", "--config", str(tmp_path / "missing.yaml"))


def test_mistakes_in_the_configuration_hide_no_running_gateway(tmp_path: Path) -> None:
    config = tmp_path / "tlsproxy.yaml"
    for mistake in (
        "roles: {a: {access: rx}}", "identities: [{name: a, match: {cn: b}, role: nobody}]", "limits: 3", "x: y",
        "tls: {cert: [1]}", "service: {http_port: many}",
    ):  # fmt: skip
        config.write_text(f"admin: {{listen: localhost:9333}}\n{mistake}\n")
        assert admin_of(config, None).address == "localhost:9333"
    for unread, says in (("admin: [\n", ":2:1 "), ("admin: {listen: 9333}\n", ":1:9 admin.listen: must be text")):
        config.write_text(unread)
        told = refused("status", "--config", str(config)).splitlines()
        assert any(f"{config}{says}" in line for line in told)
        assert told[-1] == "error: a gateway that runs serves on without this file: --admin ADDRESS asks it"


def test_nobody_is_there() -> None:
    with socket.create_server(("127.0.0.1", 0)) as unused:
        address = f"127.0.0.1:{unused.getsockname()[1]}"
    for command in COMMANDS:
        for form in (address, f"http://{address}/", f"HTTP://{address}/status?paused#connections"):
            told = refused(*command.split(), "--admin", form)
            assert f"{address}: Connection refused: is the gateway running?" in told
    assert "is neither HOST:PORT nor unix:/path" in refused("status", "--admin", "127.0.0.1:http")
    assert "speaks plain HTTP" in refused("status", "--admin", f"https://{address}/")


@pytest.mark.parametrize(
    "answer", [b"HTTP/1.0 200 OK\r\n\r\n<html>", b'HTTP/1.0 200 OK\r\n\r\n{"a": 1}', b"220 ready\r\n"]
)
def test_another_server_is_not_taken_for_the_admin_server(answer: bytes) -> None:
    class Other(http.server.BaseHTTPRequestHandler):
        def handle(self) -> None:
            self.rfile.readline()
            self.wfile.write(answer)

    with http.server.HTTPServer(("127.0.0.1", 0), Other) as other:
        thread = threading.Thread(target=other.handle_request)
        thread.start()
        told = refused("reload", "--admin", f"127.0.0.1:{other.server_address[1]}")
        thread.join()
    assert "what answers there is not the admin server of a gateway" in told


def test_a_terminal_shows_what_the_page_shows() -> None:
    text = drawn(status())
    for told in (
        "serving\nrest on 0.0.0.0:6333", "generation 4", "last reload ok", "role search: access r → rw on docs",
        "restart needed: service.http_port", "30 days left", "expired 3 days ago", "12 revoked", "needs_write",
        "unknown_ca", "key nightly", "CN=Partner root", "certificate_revoked", "5.1 MiB out", "2027-01-14 09:46:45 UTC",
        "3 connections, 1 TLSv1.2 and 2 TLSv1.3, to Qdrant", "rest TLSv1.2",
    ):  # fmt: skip
        assert told in text
    assert re.search(r"^search .*█.*\s5405\s+54\s+0\s+6\.9", text, re.MULTILINE)


def test_a_sentence_stays_on_one_line_of_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    told = f"NOT READY: {'so much is wrong that ' * 20}nothing serves"
    show(status(readiness={"headline": told, "state": "not_ready"}), NOW)
    assert f" {told}\n" in capsys.readouterr().out


def test_what_strangers_chose_does_nothing_to_a_terminal() -> None:
    told = status(
        refusals=[refusal(1, HOSTILE)], connections={"open": 1, "draining": False, "live": [connection(1, HOSTILE)]}
    )
    text = drawn(told, width=400, force_terminal=True, color_system="standard")
    assert "\x1b[2J" not in text
    assert "\u202e" not in text
    assert text.count("\\x1b[2J\\u202e[red]&amp;") == 5


def test_lists_are_cut_to_the_height_of_a_terminal() -> None:
    live = [connection(number, "CN=alice") for number in range(1, 500)]
    told = status(connections={"open": 499, "draining": False, "live": live}, refusals=[refusal(1, "CN=bob")] * 100)
    lines = drawn(told, rows=50).splitlines()
    assert len(lines) <= 50
    assert sum("CN=alice" in line for line in lines) >= 5
    assert sum("CN=bob" in line for line in lines) >= 5
    assert re.search(r"\d+ more", "\n".join(lines))


def test_glyphs_for_those_who_have_but_ascii() -> None:
    assert (PLAIN.heights + PLAIN.full + PLAIN.empty).isascii()
    assert len(PLAIN.heights) == len(BLOCKS.heights)
