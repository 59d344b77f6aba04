"""Listening sockets of the unix domain: their mode and file, those that are replaced, and those that cannot be."""

from __future__ import annotations

import os
import secrets
import socket
import stat
from contextlib import closing
from pathlib import Path

import pytest

from tlsproxy.config.endpoints import UnixSocket
from tlsproxy.config.networks import listed, networks
from tlsproxy.proxy.frontend.listener import address_of, bind, peer_of
from tlsproxy.proxy.limits.addresses import network_of
from tlsproxy.wire.proxy_protocol import Announcement, read


def test_its_mode_counts_whatever_the_umask_is(tmp_path: Path) -> None:
    former = os.umask(0o077)
    try:
        for mode in (0o600, 0o660, 0o666):
            with closing(bind(UnixSocket(str(tmp_path / "s")), mode)):
                assert stat.S_IMODE((tmp_path / "s").stat().st_mode) == mode
    finally:
        os.umask(former)


def test_what_a_crash_has_left_is_replaced_and_removed_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
    bind(UnixSocket(str(path)), 0o600).close()
    assert not path.exists()


def test_another_ones_socket_is_not_removed(tmp_path: Path) -> None:
    path = tmp_path / "s"
    first = bind(UnixSocket(str(path)), 0o600)
    path.rename(tmp_path / "former")
    with closing(bind(UnixSocket(str(path)), 0o600)):
        first.close()
        assert path.exists()


@pytest.mark.parametrize("kind", ["path", "abstract"])
def test_one_in_use_is_not_taken(tmp_path: Path, kind: str) -> None:
    where = UnixSocket(str(tmp_path / "s") if kind == "path" else f"@{secrets.token_hex(8)}")
    with closing(bind(where, 0o600)) as first:
        with pytest.raises(OSError, match=r"another process is listening there; `ss -lxp src .*` names its process"):
            bind(where, 0o600)
        assert address_of(first.sock) == where


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("missing/s", "there is no directory /.*/missing$"),
        ("file", "exists and is not a socket; remove it, or choose another path"),
        ("link", "exists and is not a socket"),
        ("file/s", "there is no directory"),
        ("x" * 108, "at most 107 bytes"),
    ],
)
def test_a_place_where_none_can_be(tmp_path: Path, name: str, says: str) -> None:
    (tmp_path / "file").write_text("kept")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    with pytest.raises(OSError, match=f"^unix:{tmp_path / name}: .*{says}"):
        bind(UnixSocket(str(tmp_path / name)), 0o600)
    assert (tmp_path / "file").read_text() == "kept"


def test_a_peer_is_its_user_and_process(tmp_path: Path) -> None:
    with closing(bind(UnixSocket(str(tmp_path / "s")), 0o600)) as bound, socket.socket(socket.AF_UNIX) as client:
        client.connect(str(tmp_path / "s"))
        sock, address = bound.sock.accept()
        with sock:
            peer = peer_of(sock, address)
    assert peer == (f"unix:uid={os.geteuid()}", os.getpid())
    assert network_of(peer[0]) == peer[0]
    assert listed(peer[0], networks(["10.0.0.0/8", "unix"]))
    assert not listed(peer[0], networks(["0.0.0.0/0", "::/0"]))
    assert not listed("127.0.0.1", networks(["unix"]))


def test_the_next_hop_is_told_no_address_of_it() -> None:
    def header(client: tuple[str, int], server: tuple[str, int]) -> tuple[str, bool]:
        data = Announcement(client, server, "TLSv1.3", "alice", verified=True, unique_id="1").header()
        found = read(data)
        assert found is not None
        assert found.size == len(data)
        assert b"alice" in data
        return found.address, found.local

    assert header(("unix:uid=1000", 7), ("", 0)) == ("", False)
    assert header(("192.0.2.1", 7), ("", 0)) == ("192.0.2.1", False)
    assert header(("2001:db8::1", 7), ("", 0)) == ("2001:db8::1", False)
