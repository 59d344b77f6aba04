"""The embedded upstream as a program: a plaintext stand-in for Qdrant on loopback, with REST and gRPC.

``python -m tlsproxy.demo.upstream --rest-port 0 --grpc-port 0`` prints one line of JSON when both are up,
``{"rest": PORT, "grpc": PORT}``, and ends at SIGTERM or SIGINT. It has no authentication, so it listens on 127.0.0.1
only, and its data is in memory.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import sys
import warnings
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from aiohttp import web

from tlsproxy.demo.engine import Engine
from tlsproxy.demo.grpc_api import server
from tlsproxy.demo.rest import application

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

LOOPBACK = "127.0.0.1"

# Local mode advises to use a server for speed or size, which is beside the point here; tools read the output.
_EXPECTED_WARNINGS = (
    "Local mode is not recommended for collections with more than",
    "Local mode performs exact",
    "Payload indexes have no effect in the local Qdrant",
)
_STOP_GRACE = 1.0


@dataclass(frozen=True, slots=True)
class Ports:
    """Ports on loopback."""

    rest: int
    grpc: int


@asynccontextmanager
async def running(rest_port: int = 0, grpc_port: int = 0) -> AsyncIterator[Ports]:
    """An upstream on loopback during the context. Port 0 is a free one. Raises OSError, RuntimeError."""
    engine = Engine()
    rest = web.AppRunner(application(engine), access_log=None, shutdown_timeout=_STOP_GRACE)
    grpc = server(engine)
    try:
        await rest.setup()
        await web.TCPSite(rest, LOOPBACK, rest_port).start()
        bound = grpc.add_insecure_port(f"{LOOPBACK}:{grpc_port}")
        await grpc.start()
        yield Ports(rest=rest.addresses[0][1], grpc=bound)
    finally:
        await grpc.stop(_STOP_GRACE)
        await rest.cleanup()
        engine.close()


class _UntilClosed(asyncio.Protocol):
    """Watches a parent's pipe for its end."""

    def __init__(self, stop: asyncio.Event) -> None:
        self._stop = stop

    def connection_lost(self, _: Exception | None) -> None:
        self._stop.set()


async def _serve(rest_port: int, grpc_port: int, *, until_stdin_closes: bool) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    if until_stdin_closes:
        await loop.connect_read_pipe(lambda: _UntilClosed(stop), sys.stdin)
    async with running(rest_port, grpc_port) as ports:
        print(json.dumps({"rest": ports.rest, "grpc": ports.grpc}), flush=True)
        await stop.wait()


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m tlsproxy.demo.upstream", description=__doc__)
    parser.add_argument("--rest-port", type=int, default=0)
    parser.add_argument("--grpc-port", type=int, default=0)
    parser.add_argument(
        "--until-stdin-closes",
        action="store_true",
        help="end when standard input, a pipe, reaches its end: the parent's death takes this process with it",
    )
    options = parser.parse_args(arguments)
    for message in _EXPECTED_WARNINGS:
        warnings.filterwarnings("ignore", message=message, category=UserWarning)
    asyncio.run(_serve(options.rest_port, options.grpc_port, until_stdin_closes=options.until_stdin_closes))


if __name__ == "__main__":
    main()
