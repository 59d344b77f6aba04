"""A contender's ports are still free when it binds them."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from bench import process


def test_ports_are_none_that_clients_are_given() -> None:
    """Else a connection of a contender that runs already may have one before it is bound."""
    clients = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    ports = process.free_ports(3)
    assert len(set(ports)) == 3
    assert max(ports) < clients


def test_port_that_is_taken_is_not_given(monkeypatch: pytest.MonkeyPatch) -> None:
    taken, free = process.free_ports(2)
    monkeypatch.setattr("random.sample", lambda _range, _count: [taken, free])
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", taken))
        assert process.free_ports(1) == [free]
