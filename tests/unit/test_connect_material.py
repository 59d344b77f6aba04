"""Files of client mode: the best of each, and one object for as long as nothing changes."""

from __future__ import annotations

import asyncio
import errno
import socket
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.site import Site

from tlsproxy.connector import material, serving
from tlsproxy.connector.check import Check
from tlsproxy.connector.dialling import Candidate
from tlsproxy.connector.material import Source
from tlsproxy.connector.model import ConnectConfig
from tlsproxy.connector.serving import Serving
from tlsproxy.connector.targets import TargetState
from tlsproxy.snapshot.startup import CannotStart

TLS = {"ca_cert": "ca.pem", "cert": "client.pem", "key": "client.key", "settle_time": 5}
LISTENERS = [{"listen": "127.0.0.1:6333", "targets": ["gw.example.org:6333"]}]


class Bench:
    def __init__(self, directory: Path) -> None:
        self.site = Site(directory)
        self.site.issue("client", common_name="web-1", client=True)
        self.configure()
        self.source = Source(directory / "client.yaml", {})
        self.present = self.source.first(pytest.fail)
        self.started: ConnectConfig = self.present.config

    def configure(self, listeners: Any = LISTENERS, **tls: Any) -> None:
        self.site.write("client.yaml", yaml.dump({"listeners": listeners, "tls": TLS | tls}).encode())

    def next(self) -> bool:
        """Whether a reading brings something new."""
        former, self.present = self.present, self.source.next(self.present, self.started)
        return self.present is not former

    def told(self, later: float = 0.0) -> list[str]:
        return self.present.problems(time.time() + later)


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    monkeypatch.setattr(material, "PAUSE", 0.0)
    return Bench(tmp_path)


def test_a_configuration_of_a_file_that_is_missing_waits_for_it(bench: Bench) -> None:
    ways = bench.present.ways
    assert not bench.next()
    bench.configure(cert="new.pem", key="new.key")
    assert bench.next()
    assert (bench.told(), bench.present.ways) == ([], ways), "it may be about to come"
    assert not bench.next()
    (problem,) = bench.told(later=6)
    assert "new.pem: does not exist" in problem
    bench.site.issue("new", common_name="web-2", client=True)
    assert bench.next()
    assert bench.told(later=6) == []
    assert bench.present.certificate is not None
    assert "web-2" in bench.present.certificate.chain[0].subject.rfc4514_string()


def test_equal_files_make_equal_ways(bench: Bench) -> None:
    """So a connection is known to be as a new one would be."""
    (way,) = bench.present.ways.values()
    bench.site.write("ca.pem", bench.site.authority.certificate_pem + b"\n")
    bench.next()
    bench.configure([{**LISTENERS[0], "targets": ["gw.example.org:6333", "other.example.org:6333"]}])
    assert bench.next()
    assert len(bench.present.ways) == 2
    assert bench.present.ways["127.0.0.1:6333", "gw.example.org:6333"].expected == way.expected


def test_listeners_come_and_go_with_a_restart_alone(bench: Bench) -> None:
    bench.configure([{"listen": "127.0.0.1:1", "targets": ["gw:1"]}])
    assert bench.next()
    assert bench.told() == ["listeners: a restart applies it"]
    assert bench.present.listeners.keys() == {"127.0.0.1:6333"}
    assert bench.present.ways.keys() == {("127.0.0.1:6333", "gw.example.org:6333")}
    assert not bench.next()
    bench.configure()
    assert bench.next()
    assert bench.told() == []


def test_a_start_needs_good_files(bench: Bench) -> None:
    bench.configure(settle_time=0)
    bench.site.write("client.key", b"no key")
    with pytest.raises(CannotStart, match=r"client\.key"):
        bench.source.first(pytest.fail)


def test_a_want_of_descriptors_for_targets_is_told(
    bench: Bench, runner: asyncio.Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Accepting has no trouble as long as one is left for each client."""

    def refuse(*_arguments: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    async def told() -> str:
        with closing(Serving(bench.present, asyncio.Event())) as now:
            assert (await now.ready()).ready
            candidate = Candidate(*next(iter(bench.present.ways)), (socket.AF_INET, ("127.0.0.1", 1)), last=True)
            with pytest.raises(OSError, match="Too many open files"):
                now.dial(candidate, Check(now, TargetState()))  # type: ignore[arg-type]
            return (await now.ready()).headline

    monkeypatch.setattr(serving, "dial", refuse)
    assert "descriptors: none is left for connections to targets" in runner.run(told())
