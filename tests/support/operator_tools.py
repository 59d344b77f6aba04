"""Programs that operators have: what they say about a gateway."""

from __future__ import annotations

import shutil
import subprocess

import pytest
from click.testing import CliRunner

from support.gateway import DEADLINE, Gateway
from support.site import Site
from tlsproxy.cli import main


def tool(name: str) -> str:
    """The program's path; the test is skipped where it is not installed."""
    path = shutil.which(name)
    if path is None:
        pytest.skip(f"{name} is not installed")
    return path


def operator(gateway: Gateway, *arguments: str) -> tuple[int, str, str]:
    """A command of ours that asks the gateway's admin server: (exit status, standard output, standard error)."""
    done = CliRunner().invoke(main, [*arguments, "--admin", gateway.admin])
    return done.exit_code, done.stdout, done.stderr


def curl(gateway: Gateway, site: Site, client: str | None, path: str, *options: str) -> tuple[int, int, str]:
    """(exit code, HTTP status, body)."""
    command = [
        tool("curl"),
        "-sS",
        "--noproxy",
        "*",
        "--cacert",
        str(site.directory / "ca.pem"),
        "-w",
        "\n%{http_code}",
    ]
    if client is not None:
        command += ["--cert", str(site.directory / f"{client}.pem"), "--key", str(site.directory / f"{client}.key")]
    done = subprocess.run(
        [*command, *options, gateway.url(path)], capture_output=True, text=True, timeout=DEADLINE, check=False
    )
    body, _, status = done.stdout.rpartition("\n")
    return done.returncode, int(status), body


def s_client(gateway: Gateway, site: Site, client: str | None, *options: str, say: str = "", order: str = "") -> str:
    """All that `openssl s_client` printed until it ended.

    ``say`` is what it sends after the handshake. ``order`` is one of its own commands, such as ``R`` to renegotiate.
    """
    command = [tool("openssl"), "s_client", "-connect", f"127.0.0.1:{gateway.port}", "-servername", "localhost"]
    command += ["-CAfile", str(site.directory / "ca.pem"), *options]
    if client is not None:
        command += ["-cert", str(site.directory / f"{client}.pem"), "-key", str(site.directory / f"{client}.key")]
    if say:
        command.append("-ign_eof")
    pipe = subprocess.PIPE
    with subprocess.Popen(
        command, stdin=pipe, stdout=pipe, stderr=subprocess.STDOUT, text=True, errors="replace"
    ) as process:
        assert process.stdin is not None
        if order:  # its input stays open: at the end of that it would end itself
            process.stdin.write(f"{order}\n")
            process.stdin.flush()
            process.wait(DEADLINE)
        return process.communicate(say or None, timeout=DEADLINE)[0]
