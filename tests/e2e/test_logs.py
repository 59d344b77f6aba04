"""The log: for people or for machines, on a terminal, to the journal, never mixed with the audit log."""

from __future__ import annotations

import fcntl
import http.client
import json
import os
import pty
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from support import forked
from support.gateway import DEADLINE, Gateway
from support.polling import until
from support.raw_request import Client
from support.site import Site
from support.upstream import ScriptedUpstream

from tlsproxy.config.locks import SUFFIX

TIME = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z"


@pytest.fixture
def taken() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def run(config: Path, stderr: int | None, **environ: str) -> str:
    """One that cannot serve, since its port is taken: it says so and ends. What it printed."""
    done = forked.run("run", "--config", str(config), stderr=stderr, **environ)
    assert done.returncode == 1
    return done.stdout


def test_json_is_an_object_a_line(own_site: Site, upstream: ScriptedUpstream) -> None:
    config = own_site.write_config(upstream.url, logger={"format": "json"})
    with Gateway(config) as gateway:
        own_site.replace("server.key", b"no key")
        line = gateway.log.wait(lambda line: '"ERROR"' in line)
        gateway.stop()
    records = [json.loads(line) for line in gateway.log.seen]
    assert all(list(one)[:5] == ["timestamp", "level", "logger", "pid", "message"] for one in records)
    assert all(re.fullmatch(TIME, one["timestamp"]) for one in records)
    assert {one["pid"] for one in records} == {gateway.process.pid}
    failed = json.loads(line)
    assert failed["logger"] == "tlsproxy.service.reload_trail"
    assert "server.key" in failed["message"]
    assert failed["fields"]["generation"] == 1


def test_text_is_a_line_for_people(gateway: Gateway) -> None:
    gateway.stop()
    shape = re.compile(rf"{TIME} INFO tlsproxy\.[a-z.]+\[{gateway.process.pid}\]: \S.*")
    assert len(gateway.log.seen) >= 2
    assert all(shape.fullmatch(line) for line in gateway.log.seen)


def test_the_level_changes_while_it_runs(own_site: Site, upstream: ScriptedUpstream) -> None:
    config = own_site.write_config(upstream.url)
    with Gateway(config) as gateway:
        own_site.edit_config(config, logger={"format": "json"}, log_level="ERROR")
        gateway.reloaded()
        assert json.loads(gateway.ask_admin("/status")[1])["generation"]["restart_needed"] == ["logger"]
        own_site.edit_config(config, log_level="INFO")
        gateway.log.wait(lambda line: "generation 3 serves" in line)
    assert not [line for line in gateway.log.seen if "generation 2 serves" in line]


def test_the_journal_has_priorities_and_its_own_times(site: Site, tmp_path: Path, taken: int) -> None:
    config = site.write_config("http://127.0.0.1:1", service={"http_port": taken})
    path = tmp_path / "journal"
    with path.open("w") as stream:
        facts = os.fstat(stream.fileno())
        run(config, stream.fileno(), JOURNAL_STREAM=f"{facts.st_dev}:{facts.st_ino}")
    assert re.fullmatch(r"<2>CRITICAL tlsproxy\.service\.server\[\d+\]: cannot serve: .*\n", path.read_text())
    with path.open("w") as stream:  # somebody else's: a shell in a unit has redirected it
        run(config, stream.fileno(), JOURNAL_STREAM="1:1")
    assert re.match(rf"{TIME} CRITICAL ", path.read_text())


def test_a_terminal_has_colours_unless_it_asks_for_none(site: Site, taken: int) -> None:
    config = site.write_config("http://127.0.0.1:1", service={"http_port": taken})
    for environ, expected in (({}, "\x1b[1;31mCRITICAL\x1b[0m "), ({"NO_COLOR": "1"}, " CRITICAL ")):
        ours, theirs = pty.openpty()
        try:
            run(config, theirs, **environ)
            assert expected in os.read(ours, 65_536).decode()
        finally:
            os.close(ours)
            os.close(theirs)


def test_standard_output_is_one_log_s_alone(site: Site, own_site: Site, taken: int) -> None:
    config = site.write_config("http://127.0.0.1:1", logger={"output": "stdout"})
    done = forked.run("check", "--config", str(config))
    assert done.returncode == 2
    assert "logger.output: standard output is the audit log's" in done.stderr

    config = own_site.write_config(
        "http://127.0.0.1:1", logger={"output": "stdout"}, audit={"dir": "audit"}, service={"http_port": taken}
    )
    assert re.fullmatch(rf"{TIME} CRITICAL .*\n", run(config, None))


def test_a_request_s_text_is_in_no_log_line_as_itself(site: Site, upstream: ScriptedUpstream) -> None:
    config = site.write_config(upstream.url, log_level="DEBUG")
    with Gateway(config) as gateway, Client(gateway, site.client()) as client:
        client.ask(target="/collections/%0A%1B%5B31mforged", fields=[("x-request-id", "a\x1b[31mforged")])
        gateway.stop()
    assert all(line.isascii() and line.isprintable() for line in gateway.log.seen)


def test_a_log_that_nobody_reads_holds_no_client(own_site: Site, upstream: ScriptedUpstream) -> None:
    config = own_site.write_config(upstream.url)
    locks = [{"subject": f"CN=left-{number}", "reason": "has left the company"} for number in range(200)]
    config.with_name(f"{config.name}{SUFFIX}").write_text(json.dumps({"locks": locks}))
    reading, writing = os.pipe()
    fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, 4096)
    ready = own_site.directory / "ready"
    command = [sys.executable, "-P", "-m", "tlsproxy", "run", "--config", str(config), "--ready-file", str(ready)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=writing) as gateway, os.fdopen(reading) as log:
        os.close(writing)
        try:
            until(ready.exists)
            port = int(json.loads(ready.read_text())["listeners"][0]["address"].rpartition(":")[2])
            client = http.client.HTTPSConnection("localhost", port, context=own_site.client(), timeout=DEADLINE)
            with closing(client):
                client.request("GET", "/collections")
                assert client.getresponse().status == 200
        finally:
            gateway.terminate()
        assert sum(" locked (start): subject CN=left-" in line for line in log) == len(locks)
        assert gateway.wait(DEADLINE) == 0
