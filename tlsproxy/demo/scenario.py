"""``tlsproxy demo``: a whole gateway in one command, shown step by step and then left for the user to try.

Embedded upstream and gateway are processes of their own, and end with the demo. The steps are those of clients, over
mutual TLS. All files are in the demo's directory.
"""

from __future__ import annotations

import json
import math
import signal
import sys
from contextlib import ExitStack, closing, contextmanager
from typing import TYPE_CHECKING, Any, NoReturn

from qdrant_client import models

from tlsproxy.demo import hints, programs
from tlsproxy.demo.audited import show_audit
from tlsproxy.demo.clients import handshake_refusal, qdrant, tls_context
from tlsproxy.demo.premises import COLLECTION, Premises, prepare
from tlsproxy.demo.rotation import rotate_under_load
from tlsproxy.demo.steps import Report, StepError, refusal
from tlsproxy.demo.upstream import Ports
from tlsproxy.errors import TlsproxyError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from types import FrameType

_POINTS = 300
_BATCH = 100
_DIMENSIONS = 8


def run_demo(directory: Path, *, once: bool) -> int:
    """Run the demo in ``directory``. Returns 0 if every step succeeded, else 1.

    Without ``once`` it then stays up until Ctrl-C or SIGTERM.
    """
    report = Report()
    try:
        with _stopped_by_signals(), ExitStack() as stack:
            premises = prepare(directory)
            gateway, ports, admin = _start(premises, stack)
            _show(premises, ports, report)
            if once:
                print(f"{report.failed} steps failed" if report.failed else "every step did what it should")
            else:
                print(hints.to_try(premises, ports, admin), flush=True)
                raise StepError(f"the gateway ended with {gateway.wait()}: see {gateway.log}")
    except KeyboardInterrupt:
        if once:
            report.failed += 1
        print("\nstopped")
    except TlsproxyError as error:
        report.failed += 1
        print(f"✗ {error}", file=sys.stderr)
    return 1 if report.failed else 0


def _start(premises: Premises, stack: ExitStack) -> tuple[programs.Program, Ports, str]:
    """Start the upstream, then the gateway. Returns the gateway, its ports, and its admin server's address."""
    arguments = [sys.executable, "-m", "tlsproxy.demo.upstream", "--until-stdin-closes"]
    upstream = stack.enter_context(programs.running("upstream", arguments, premises.logs))
    behind = Ports(**upstream.wait_until(lambda: _json_in(upstream.output)))
    print(f"✓ an embedded Qdrant in plaintext on 127.0.0.1:{behind.rest} (gRPC: 127.0.0.1:{behind.grpc})")
    premises.write_config(behind)
    arguments = [sys.executable, "-m", "tlsproxy", "run", "--config", str(premises.config)]
    arguments += ["--ready-file", str(premises.ready_file)]
    gateway = stack.enter_context(programs.running("gateway", arguments, premises.logs))
    ready = gateway.wait_until(lambda: _json_in(premises.ready_file))
    addresses = {one["protocols"][0]: one["address"] for one in ready["listeners"]}
    where = f"{addresses['rest']} (gRPC: {addresses['grpc']})"
    text = f"✓ the gateway with mutual TLS on {where}, configured by {premises.config}"
    print(text, flush=True)
    ports = Ports(**{protocol: int(address.rpartition(":")[2]) for protocol, address in addresses.items()})
    return gateway, ports, str(ready["admin"])


def _json_in(path: Path) -> dict[str, Any] | None:
    """The JSON object in a file; None until it is complete."""
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (FileNotFoundError, json.JSONDecodeError):
        return None


def _show(premises: Premises, ports: Ports, report: Report) -> None:
    port = ports.rest
    with ExitStack() as stack:
        admin, ingest, search, stranger = (
            stack.enter_context(closing(qdrant(premises, name, port)))
            for name in ("admin", "ingest", "search", "stranger")
        )
        by_grpc, writing_by_grpc = (
            stack.enter_context(closing(qdrant(premises, name, port, ports.grpc))) for name in ("search", "ingest")
        )
        space = models.VectorParams(size=_DIMENSIONS, distance=models.Distance.COSINE)
        with report.step(f"admin creates the collection `{COLLECTION}`"):
            admin.create_collection(COLLECTION, vectors_config=space)
        with report.step(f"ingest loads {_POINTS} points") as step:
            for first in range(0, _POINTS, _BATCH):
                ingest.upsert(COLLECTION, [_point(n) for n in range(first, first + _BATCH)], wait=True)
            step.result = f"{_counted(ingest)} are there"
        with report.step("search finds the nearest three") as step:
            step.result = ", ".join(str(point.payload) for point in _nearest(search))
        with report.step("search finds them over gRPC too") as step:
            step.result = ", ".join(str(point.payload) for point in _nearest(by_grpc))
        with report.step("search may not write") as step:
            step.result = refusal(lambda: search.upsert(COLLECTION, [_point(0)]))
        with report.step("nor over gRPC") as step:
            step.result = refusal(lambda: by_grpc.upsert(COLLECTION, [_point(0)]))
        with report.step("ingest may not write elsewhere over gRPC") as step:
            step.result = refusal(lambda: writing_by_grpc.upsert("other", [_point(0)]))
        with report.step("ingest may not create a collection") as step:
            step.result = refusal(lambda: ingest.create_collection("mine", vectors_config=space))
        with report.step("a certificate without a role may do nothing") as step:
            step.result = refusal(stranger.get_collections)
        with report.step("without a certificate there is no connection") as step:
            step.result = handshake_refusal(tls_context(premises, None), port)
        with report.step("the server certificate changes while clients search") as step:
            done = rotate_under_load(premises, port, _vector(7))
            step.result = (
                f"{done.kept_alive} searches on a kept connection and {done.new_connections} on new ones, none failed; "
                f"serial {done.old_serial:x} became {done.new_serial:x} after {done.seconds:.1f} s"
            )
        with report.step("the audit log has all of it") as step:
            step.result = show_audit(premises.audit)


def _vector(n: int) -> list[float]:
    return [math.sin((n + 1) * (k + 1)) for k in range(_DIMENSIONS)]


def _point(n: int) -> models.PointStruct:
    return models.PointStruct(id=n, vector=_vector(n), payload={"title": f"document {n}"})


def _counted(client: Any) -> int:
    counted = int(client.count(COLLECTION).count)
    if counted != _POINTS:
        raise StepError(f"{counted} points are there, not {_POINTS}")
    return counted


def _nearest(client: Any) -> list[models.ScoredPoint]:
    points: list[models.ScoredPoint] = client.query_points(COLLECTION, query=_vector(7), limit=3).points
    if [point.id for point in points[:1]] != [7] or len(points) != 3:  # noqa: PLR2004 - the three that were asked for
        raise StepError(f"not the nearest three of document 7: {points}")
    return points


@contextmanager
def _stopped_by_signals() -> Iterator[None]:
    """Treat SIGTERM and a closed terminal like Ctrl-C, so that the programs are stopped then too."""

    def stop(_: int, __: FrameType | None) -> NoReturn:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
