"""The operators' commands against a running gateway, over loopback and its unix socket."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import pty
import re
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest
from support import forked
from support.gateway import DEADLINE, Gateway
from support.raw_request import Client, ask
from support.site import CONFIG, Site
from support.upstream import ScriptedUpstream
from support.workers import at_each

PATH = {"PATH": "/usr/bin:/bin", "PYTHONWARNINGS": "error"}
COLOUR = re.compile(r"\x1b\[(\d+;)*(3\d|9\d)(;\d+)*m")


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-P", "-m", "tlsproxy", *arguments]


def ran(*arguments: str) -> tuple[int, str, str]:
    """(exit status, standard output, standard error)."""
    done = forked.run(*arguments)
    return done.returncode, done.stdout, done.stderr


@pytest.fixture(params=["loopback", "unix"])
def where(
    request: pytest.FixtureRequest, own_site: Site, upstream: ScriptedUpstream
) -> Iterator[tuple[Gateway, list[str]]]:
    """A gateway, and the options that find its admin server."""
    unix = f"unix:{own_site.directory / 'admin.sock'}"
    listen = unix if request.param == "unix" else "127.0.0.1:0"
    with Gateway(own_site.write_config(upstream.url, admin={"listen": listen})) as gateway:
        yield gateway, ["--config", str(gateway.config)] if request.param == "unix" else ["--admin", gateway.admin]


def test_status_shows_who_is_there_and_who_was_refused(own_site: Site, where: tuple[Gateway, list[str]]) -> None:
    gateway, options = where
    with Client(gateway, own_site.client("search")) as client:
        assert client.ask().status == 200
        assert client.ask("DELETE", "/collections/docs").status == 403
        status, out, err = ran("status", *options)
        assert (status, err) == (0, "")
        told = json.loads(ran("status", "--json", *options)[1])
    for text in (
        "serving\nrest on 127.0.0.1",
        "generation 1",
        "spiffe://example.org/search/web",
        "needs_manage",
        "CN=localhost",
    ):
        assert text in out
    assert re.search(r"^search .*\s1\s+1\s+0 ", out, re.MULTILINE)
    assert "\x1b" not in out
    assert told["connections"]["live"][0]["role"] == "search"
    assert told["refusals"][0]["reason"] == "needs_manage"


def test_clients_are_listed_looked_up_and_cut(own_site: Site, upstream: ScriptedUpstream) -> None:
    key = {"name": "nightly", "sha256": hashlib.sha256(b"k" * 40).hexdigest(), "role": "ingest"}
    roles = {"mark": {"access": [{"collection": "docs", "access": "rw"}], "filter": {"owner": "{cn}"}}}
    rules = [{"name": "guests", "match": {"cn": "nobody"}, "role": "mark"}, *CONFIG["identities"]]
    config = own_site.write_config(upstream.url, keys=[key], roles=roles, identities=rules)
    with (
        Gateway(config) as gateway,
        gateway.connect(own_site.client("search")) as search,
        Client(gateway, own_site.client("stranger")) as guest,
    ):
        options = ["--admin", f"http://{gateway.admin}/"]
        assert [ask(search).status, ask(search, "DELETE", "/collections/docs").status] == [200, 403]
        assert guest.ask(target="/_tlsproxy/whoami").status == 200
        status, listed, err = ran("connections", *options)
        assert (status, err) == (0, "")
        assert len(re.findall(r"^ *\d+  .*127\.0\.0\.1 rest", listed, re.MULTILINE)) == 2
        live = json.loads(ran("connections", "--json", *options)[1])["live"]
        (number,) = (one["number"] for one in live if one["role"] == "search")
        filtered = json.loads(gateway.ask_admin("/status?subject=WEB")[1])["connections"]
        assert (filtered["open"], [one["number"] for one in filtered["live"]]) == (2, [number])

        status, told, err = ran("who", "EXAMPLE.org/search", *options)
        assert (status, err) == (0, "")
        lines = [line.strip() for line in told.splitlines()]
        assert lines[:3] == ["spiffe://example.org/search/web", "rule        search-svc", "role        search: r"]
        assert re.fullmatch(rf"connection  no\. {number}: rest from 127\.0\.0\.1 for .*, 2 requests, .*", lines[3])
        assert re.fullmatch(
            r"refused     \d{4}-\d\d-\d\d [\d:]+ UTC  needs_manage  delete_collection docs  from 127.0.0.1", lines[4]
        )
        assert 'role        mark: docs rw where owner = "{cn}"' in ran("who", "cn=nobody", *options)[1]
        assert ran("who", "nightly", *options)[1] == "key nightly\n  role        ingest: docs rw\n"
        assert list(json.loads(ran("who", "nightly", "--json", *options)[1])["keys"]) == ["nightly"]
        status, told, err = ran("who", "CN=mallory", *options)
        assert (status, told) == (1, "")
        assert "nobody: " in err

        assert ran("cut", str(number), *options) == (0, f"connection {number} is cut\n", "")
        assert search.recv(1) == b""
        assert ran("cut", str(number), "999999", *options) == (
            1, "", f"there is no connection {number}\nthere is no connection 999999\n"
        )  # fmt: skip
        assert guest.ask(target="/_tlsproxy/whoami").status == 200
        assert gateway.audited(event="connection", reason="cut_by_operator")["certificate_subject"]


def test_reload_waits_for_the_verdict_and_prints_what_changed(own_site: Site, where: tuple[Gateway, list[str]]) -> None:
    """Where the gateway's own watching was faster, it prints what that changed."""
    gateway, options = where
    status, out, err = ran("reload", *options)
    assert (status, out, err) == (0, "unchanged: the files are those that served already; generation 1\n", "")
    serial = own_site.issue("renewed", common_name="localhost", dns=["localhost"], ips=["127.0.0.1"], server=True)
    own_site.edit_config(
        gateway.config,
        tls={"cert": "renewed.pem", "key": "renewed.key"},
        roles={"auditor": {"access": "r"}},
        service={"api_key": "s3cret-key", "http_port": 1},
    )
    status, out, err = ran("reload", *options)
    assert status == 0
    assert re.match(r"(published|unchanged): .*generation 2\n", out)
    assert re.search(rf"\n  certificate CN=localhost changed: serial \w+ until .* → serial {serial:x} until ", out)
    for line in (
        "role auditor added: access r",
        "key api_key added: access m",
        "setting service.http_port changed: 0 → 1",
    ):
        assert f"\n  {line}\n" in out
    assert err == "restart needed: service.http_port has changed\n"
    assert "s3cret" not in out
    status, out, _ = ran("reload", *options)
    assert (status, "what they changed last, at " in out, "  role auditor added: access r\n" in out) == (0, True, True)


def test_a_reload_that_is_refused_says_why_and_changes_nothing(
    own_site: Site, where: tuple[Gateway, list[str]]
) -> None:
    gateway, options = where
    own_site.write("ca.pem", b"")
    status, out, err = ran("reload", *options)
    assert (status, out) == (1, "")
    assert "failed: " in err
    assert "ca.pem" in err
    assert "nothing has changed: generation 1 goes on serving" in err
    assert gateway.process.poll() is None


def test_several_workers_are_shown_as_one(site: Site, upstream: ScriptedUpstream) -> None:
    with Gateway(site.write_config(upstream.url, workers=2)) as gateway, contextlib.ExitStack() as stack:
        for _, client in at_each(gateway, site, stack).values():
            client.send(b"GET /nowhere HTTP/1.1\r\nhost: h\r\n\r\n")
            assert client.response().status == 404
        out = ran("status", "--admin", gateway.admin)[1]
        page = gateway.ask_admin("/")[1]
        who = ran("who", "cn=ALICE", "--admin", gateway.admin)[1]
        assert who.count(" no. ") == who.count(", TLSv1.3 TLS_AES_256_GCM_SHA384") == out.count("127.0.0.1 rest")
        assert f"{who.count(' no. ')} connections, {who.count(' no. ')} TLSv1.3, to Qdrant" in out
        assert ran("who", "search", "--admin", gateway.admin)[0] == 1
    assert len(re.findall(r"^worker \d: process \d+, 0 restarts, generation 1$", out, re.MULTILINE)) == 2
    assert re.search(r"^admin .*\s[1-9]\d*\s+2\s+0 ", out, re.MULTILINE)
    assert out.count("unknown_operation") == 2
    assert "The processes that serve" in page
    assert page.count('<button aria-label="cut connection') == out.count("127.0.0.1 rest")


def test_top_follows_until_it_is_interrupted(shared_gateway: Gateway) -> None:
    """On a terminal it keeps to one screen, and without colours where NO_COLOR says so."""
    for colourless in ({}, {"NO_COLOR": "1"}):
        master, slave = pty.openpty()
        arguments = command("top", "--admin", shared_gateway.admin, "--interval", "0.2")
        environ = PATH | {"TERM": "xterm-256color", "COLUMNS": "120", "LINES": "40"} | colourless
        with subprocess.Popen(arguments, stdin=slave, stdout=slave, stderr=slave, env=environ) as process:
            os.close(slave)
            seen = ""
            with open(master, "rb", buffering=0) as terminal:  # noqa: PTH123 - a descriptor
                while seen.count("serving") < 2:
                    seen += terminal.read(65536).decode()
                process.send_signal(signal.SIGINT)
                with contextlib.suppress(OSError):  # EIO is a terminal's end
                    while data := terminal.read(65536):
                        seen += data.decode()
            assert process.wait(DEADLINE) == 0
        assert "\x1b[?1049h" in seen
        assert "\x1b[?1049l" in seen.rpartition("serving")[2]
        assert bool(COLOUR.search(seen)) is not bool(colourless)
        assert "Traceback" not in seen


def test_top_prints_once_where_nobody_watches(shared_gateway: Gateway) -> None:
    environ = PATH | {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii"}
    arguments = command("top", "--admin", shared_gateway.admin)
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=DEADLINE, check=False, env=environ)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("serving\nrest on") == 1
    assert done.stdout.isascii()
    assert "\x1b" not in done.stdout
    assert "CN=localhost" in done.stdout
