"""Gateways without the half second that importing takes: each is forked from a process that has imported all of it.

That process has one thread, no loop and no connection. What is forked runs the command from its arguments on, with the
environment, directory, limits and pipes that it would have had, and ends with its threads and exit handlers. Run as a
program it is that process: `python -m support.forked DESCRIPTOR`.
"""

from __future__ import annotations

import array
import atexit
import fcntl
import gc
import json
import os
import resource
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, Any, Never

from support import names
from support.forked_workers import is_worker
from support.site import Site
from tlsproxy.snapshot.files import read_inputs
from tlsproxy.snapshot.startup import first_generation

_LARGEST = 1 << 16
_MOST_DESCRIPTORS = 16
_ABOVE = 64
"""A descriptor that nothing here has, nor any below it that is to be given a place."""
_DEADLINE = 20.0
_LIMITS = (resource.RLIMIT_NOFILE, resource.RLIMIT_FSIZE)


class ForkedProcess:
    """As much of :class:`subprocess.Popen` as the tests use, of `python -m tlsproxy` with these arguments.

    Both outputs are pipes, unless ``stderr`` is a descriptor of the caller's. ``inherit`` are listening sockets that it
    is passed as by systemd (sd_listen_fds(3)), each with its name.
    """

    def __init__(
        self,
        arguments: list[str],
        environ: dict[str, str],
        stderr: int | None = None,
        inherit: Sequence[tuple[str, socket.socket]] = (),
    ) -> None:
        self.args = arguments
        self.returncode: int | None = None
        out, err = os.pipe(), os.pipe()
        self.stdout: IO[str] = os.fdopen(out[0])
        self.stderr: IO[str] = os.fdopen(err[0])
        try:
            self.pid: int = _parent().ask(
                {
                    "arguments": arguments,
                    "environ": environ,
                    "directory": str(Path.cwd()),
                    "limits": [resource.getrlimit(limit) for limit in _LIMITS],
                    "inherited": [name for name, _ in inherit],
                },
                [out[1], err[1] if stderr is None else stderr, *(sock.fileno() for _, sock in inherit)],
            )
        finally:
            os.close(out[1])
            os.close(err[1])
        self._handle = os.pidfd_open(self.pid)
        self._lock = threading.Lock()

    def poll(self) -> int | None:
        with self._lock:
            if self.returncode is None and self._ended(0):
                self.returncode = os.waitstatus_to_exitcode(_parent().ask({"ended": self.pid}, []))
                os.close(self._handle)
            return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None and not self._ended(timeout):
            raise subprocess.TimeoutExpired(self.args, timeout or 0)
        code = self.poll()
        assert code is not None
        return code

    def _ended(self, timeout: float | None) -> bool:
        poll = select.poll()
        poll.register(self._handle, select.POLLIN)
        return bool(poll.poll(None if timeout is None else timeout * 1000))

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            signal.pidfd_send_signal(self._handle, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def run(*arguments: str, stderr: int | None = None, **environ: str) -> subprocess.CompletedProcess[str]:
    """`python -m tlsproxy` with these arguments, to its end. ``stderr`` as in :class:`ForkedProcess`."""
    process = ForkedProcess(list(arguments), {"PATH": os.defpath, **environ}, stderr)
    try:
        with process.stdout as out, process.stderr as err, ThreadPoolExecutor(1) as reading:
            said = reading.submit(err.read)
            printed = out.read()
        return subprocess.CompletedProcess(arguments, process.wait(_DEADLINE), printed, said.result())
    finally:
        process.kill()


class _Parent:
    """The process that forks, as the tests see it: one question at a time, and a number in answer."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "support.forked", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,  # as those that are forked have: a file would be one to seek in
                env={"PATH": "/usr/bin:/bin", "PYTHONWARNINGS": "error", "PYTHONPATH": str(Path(__file__).parents[1])},
            )
        self._socket = ours
        self._lock = threading.Lock()

    def ask(self, question: dict[str, Any], descriptors: list[int]) -> int:
        with self._lock:
            socket.send_fds(self._socket, [json.dumps(question).encode()], descriptors)
            answer = self._socket.recv(64)
        assert answer, "the process that forks has ended"
        return int(answer)

    def end(self) -> None:
        self._socket.close()
        self._process.communicate()


@cache
def _parent() -> _Parent:
    return _Parent()


def end() -> None:
    """Nothing more will be forked: for the end of a test run."""
    if _parent.cache_info().currsize:
        _parent().end()
        _parent.cache_clear()


def _serve(sock: socket.socket) -> None:
    """Returns in each fork, with its arguments in place, and raises SystemExit in the end."""
    while True:
        size = array.array("i").itemsize
        data, ancillary, _, _ = sock.recvmsg(_LARGEST, socket.CMSG_SPACE(_MOST_DESCRIPTORS * size))
        if not data:
            sock.close()
            raise SystemExit
        question = json.loads(data)
        if "ended" in question:
            sock.send(b"%d" % os.waitpid(question["ended"], 0)[1])
            continue
        descriptors = array.array("i")
        descriptors.frombytes(ancillary[0][2])
        if pid := os.fork():
            for descriptor in descriptors:
                os.close(descriptor)
            sock.send(b"%d" % pid)
            continue
        sock.close()
        apart = [fcntl.fcntl(descriptor, fcntl.F_DUPFD, _ABOVE) for descriptor in descriptors]
        for place, descriptor in enumerate(apart, 1):
            os.dup2(descriptor, place)
            os.close(descriptor)
        for descriptor in descriptors:
            if descriptor > len(apart):
                os.close(descriptor)
        os.environ.clear()
        os.environ.update(question["environ"] | _activation(question["inherited"]))
        os.chdir(question["directory"])
        for limit, values in zip(_LIMITS, question["limits"], strict=True):
            resource.setrlimit(limit, tuple(values))
        sys.argv[1:] = question["arguments"]
        signal.pthread_sigmask(
            signal.SIG_BLOCK, {signal.SIGHUP}
        )  # as `tlsproxy.cli` does where it is imported for `run`
        return


def _activation(names: list[str]) -> dict[str, str]:
    if not names:
        return {}
    told = {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": str(len(names))}
    return told | ({"LISTEN_FDNAMES": ":".join(names)} if any(names) else {})


def _customise() -> None:
    """As Python does at each start: `sitecustomize.py`, where there is one on its path."""
    for place in filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep)):
        program = Path(place, "sitecustomize.py")
        if program.exists():
            spec = spec_from_file_location("sitecustomize", program)
            assert spec is not None
            assert spec.loader is not None
            sys.modules["sitecustomize"] = module_from_spec(spec)
            spec.loader.exec_module(sys.modules["sitecustomize"])
            return


def _main() -> None:
    import encodings.idna  # noqa: PLC0415
    import encodings.utf_8_sig  # noqa: PLC0415, F401

    import click.shell_completion  # noqa: PLC0415
    import cryptography.hazmat.backends.openssl  # noqa: PLC0415, F401 - at the first check of a signature

    import tlsproxy.admin.server  # noqa: PLC0415
    import tlsproxy.service.server  # noqa: PLC0415
    import tlsproxy.service.shared.coordinator  # noqa: PLC0415, F401
    from tlsproxy.cli import main  # noqa: PLC0415
    from tlsproxy.service.workers import worker  # noqa: PLC0415

    context = click.Context(main)
    for name in main.list_commands(context):
        main.get_command(context, name)  # imports it
    _warm_up()
    gc.freeze()
    _serve(socket.socket(fileno=int(sys.argv[1])))
    program = worker.main if _has_workers(sys.argv[1:]) and is_worker() else partial(main, prog_name="tlsproxy")
    _customise()
    names.install()
    _to_its_end(program)


def _warm_up() -> None:
    """Generations are made until the interpreter has specialised their code: each fork then takes a sixth less."""
    with TemporaryDirectory() as directory:
        config = Site(Path(directory)).write_config("http://127.0.0.1:1", grpc="http://127.0.0.1:1")
        for _ in range(8):
            first_generation(config, {}, read_inputs(config, {}), {})
    for thread in threading.enumerate():
        if thread is not threading.current_thread():
            thread.join(_DEADLINE)
    assert threading.active_count() == 1


def _has_workers(arguments: list[str]) -> bool:
    if arguments[:2] != ["run", "--config"]:
        return False
    return "QDRANT__WORKERS" in os.environ or "\nworkers: " in Path(arguments[2]).read_text()


def _to_its_end(program: Callable[[], object]) -> Never:
    """As an interpreter ends, but without freeing each object, which takes as long as all else in a short life."""
    code: int | str | None = None
    try:
        program()
    except SystemExit as ended:
        code = ended.code
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else code is not None)


if __name__ == "__main__":
    _main()
