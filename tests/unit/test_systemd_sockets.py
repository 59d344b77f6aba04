from __future__ import annotations

import os
import secrets
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tlsproxy.config.endpoints import UnixSocket
from tlsproxy.config.listeners import Listening, listening
from tlsproxy.config.model import Config
from tlsproxy.service.systemd.sockets import (
    Inherited,
    InheritedSocketError,
    _taken,
    inherited_sockets,
    open_sockets,
)


@pytest.fixture
def closed() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def held() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        yield sock


def config(port: int | str, *protocols: str, host: str = "127.0.0.1") -> Config:
    """A listener on a port, or on the unix socket of that name."""
    files: dict[str, Any] = {"cert": Path("/c"), "key": Path("/k"), "ca_cert": Path("/ca")}
    listeners = [{"unix" if isinstance(port, str) else "port": port, "protocols": protocols}]
    return Config.model_validate(
        {"service": {"host": host, "http_port": None, "grpc_port": None}, "tls": files, "listeners": listeners}
    )


def listeners(*arguments: Any, **keys: Any) -> list[Listening]:
    return [*listening(config(*arguments, **keys))]


def port_of(sock: socket.socket) -> int:
    return int(sock.getsockname()[1])


@pytest.mark.parametrize("name", ["rest", "grpc", None])
def test_of_a_port_for_both_either_name_is_right(held: socket.socket, closed: ExitStack, name: str | None) -> None:
    (bound,) = open_sockets(listeners(port_of(held), "grpc", "rest"), [Inherited(held, name)], closed)
    assert bound.sock is held
    assert bound.where.protocols == ("rest", "grpc")


def test_a_host_may_be_a_name(held: socket.socket, closed: ExitStack) -> None:
    (bound,) = open_sockets(listeners(port_of(held), "rest", host="localhost"), [Inherited(held, "rest")], closed)
    assert bound.sock is held


@pytest.mark.parametrize("name", ["grpc", "tcp", "tlsproxy.socket", "unknown", ""])
def test_another_name_is_wrong(held: socket.socket, closed: ExitStack, name: str) -> None:
    says = rf"'{name}' on 127.0.0.1:\d+ has the wrong name: .* REST, so its socket unit needs FileDescriptorName=rest$"
    with pytest.raises(InheritedSocketError, match=says):
        open_sockets(listeners(port_of(held), "rest"), [Inherited(held, name)], closed)
    assert held.fileno() < 0, "all or none"


@pytest.mark.parametrize("host", ["::", "127.0.0.2", "0.0.0.0", "nowhere.invalid"])  # noqa: S104 - not bound
def test_another_address_is_no_match(held: socket.socket, closed: ExitStack, host: str) -> None:
    says = r"is for no listener of the configuration .* let ListenStream= of its socket unit say the address"
    with pytest.raises(InheritedSocketError, match=says):
        open_sockets(listeners(port_of(held), "rest", host=host), [Inherited(held, "rest")], closed)


def test_twice_is_once_too_often(held: socket.socket, closed: ExitStack) -> None:
    with held.dup() as again, pytest.raises(InheritedSocketError, match="was passed twice: two socket units"):
        open_sockets(listeners(port_of(held), "rest"), [Inherited(held, "rest"), Inherited(again, "rest")], closed)


def test_it_is_ours_alone_and_never_waits(held: socket.socket) -> None:
    number = os.dup(held.fileno())
    os.set_inheritable(number, True)
    with _taken(number, "rest").sock as sock:
        assert not sock.get_inheritable()
        assert not sock.getblocking()
        with pytest.raises(BlockingIOError):
            sock.accept()


@pytest.mark.parametrize("kind", ["datagram", "unix", "connected", "pipe"])
def test_what_does_not_listen_is_refused(kind: str) -> None:
    with ExitStack() as stack:
        if kind == "pipe":
            number, write = os.pipe()
            stack.callback(os.close, write)
        elif kind == "connected":
            one, other = socket.socketpair()
            stack.enter_context(other)
            number = one.detach()
        else:
            family, of = (socket.AF_UNIX, socket.SOCK_STREAM) if kind == "unix" else (socket.AF_INET, socket.SOCK_DGRAM)
            number = socket.socket(family, of).detach()
        with pytest.raises(InheritedSocketError, match=rf"^descriptor {number} \(rest\) is no .*socket"):
            _taken(number, "rest")
        if kind == "pipe":
            os.close(number)


def test_what_is_for_another_process_is_not_touched() -> None:
    environ = {"LISTEN_PID": "41", "LISTEN_FDS": "2", "LISTEN_FDNAMES": "rest:grpc", "HOME": "/"}
    assert inherited_sockets(environ, 42) == ()
    assert environ == {"HOME": "/"}, "nor told to children"


def test_names_that_do_not_add_up_are_refused() -> None:
    environ = {"LISTEN_PID": "42", "LISTEN_FDS": "1", "LISTEN_FDNAMES": "rest:grpc"}
    with pytest.raises(InheritedSocketError, match="names 2 sockets, LISTEN_FDS says 1"):
        inherited_sockets(environ, 42)


@pytest.mark.parametrize("kind", ["path", "abstract"])
def test_a_unix_socket_is_found_by_its_name_and_stays(closed: ExitStack, tmp_path: Path, kind: str) -> None:
    name = str(tmp_path / "s") if kind == "path" else f"@{secrets.token_hex(8)}"
    with socket.socket(socket.AF_UNIX) as held:
        held.bind(UnixSocket(name).sockaddr)
        held.listen()
        number = os.dup(held.fileno())
        (bound,) = open_sockets(listeners(name, "rest"), [_taken(number, "rest")], closed)
        assert (bound.sock.fileno(), bound.address) == (number, f"unix:{name}")
        closed.close()
        assert (tmp_path / "s").exists() == (kind == "path"), "it is systemd's"
        with pytest.raises(InheritedSocketError, match=rf"'rest' on unix:{name} is for no listener .*\(unix:/other\)"):
            open_sockets(listeners("/other", "rest"), [_taken(os.dup(held.fileno()), "rest")], closed)
