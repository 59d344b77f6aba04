"""What clients notice of a new server certificate each second: failed requests, and how long the slowest wait."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import replace

from cryptography import x509

from bench.errors import BenchError
from bench.figures import Rotation, Sample
from bench.generator import finish
from bench.peers.peer import Peer, Program
from bench.process import Running
from bench.results import Results
from bench.rounds import Setting
from bench.site import Site
from bench.workloads import BY_NAME

SECONDS = 10
STILL = 3
"""Seconds before, without a rotation, for comparison."""
INTERVAL = 1.0
_PLANNED = STILL + SECONDS + 2
_KEPT = replace(BY_NAME["get"], connections=8)
_NEW = replace(BY_NAME["handshake"], connections=2)


def run_rotations(setting: Setting, programs: Mapping[Peer, Program], results: Results) -> None:
    """Of the contenders that this bench can tell to reload."""
    for peer, program in programs.items():
        if not _reloads(peer):
            continue
        line = f"rotations of {peer.name}: "
        try:
            with ExitStack() as stack:
                told = _rotate(setting, setting.start(stack, peer, program))
        except BenchError as error:
            line += str(error)
        else:
            results.rotation[peer.name] = told
            line += f"{told.taken} of {told.rotations} taken up, {told.failed} failed, p99 {told.p99:.1f} ms"
        setting.journal.step(results, _PLANNED, line)


def planned_rotations(peers: Iterable[Peer]) -> float:
    """Seconds."""
    return _PLANNED * sum(map(_reloads, peers))


def _reloads(peer: Peer) -> bool:
    return peer.reload is not None and not peer.only


def _rotate(setting: Setting, contender: Running) -> Rotation:
    generator = replace(setting.generator, seconds=SECONDS)
    still = replace(generator, seconds=STILL).measure(contender, _KEPT)
    rotations = taken = 0
    with ExitStack() as stack:
        loads = [stack.enter_context(generator.beside(contender, workload)) for workload in (_KEPT, _NEW)]
        while all(load.poll() is None for load in loads):
            rotations += 1
            taken += _renew(contender, setting.site)
        kept, new = (finish(load) for load in loads)
    return Rotation(
        rotations=rotations,
        taken=taken,
        requests=kept.requests,
        handshakes=new.requests,
        failed=kept.errors + new.errors,
        error=kept.error or new.error,
        p99_still=_ms(still),
        p99=_ms(kept),
        p99_handshake=_ms(new),
    )


def _ms(sample: Sample) -> float:
    return sample.p99 * 1e3


def _renew(contender: Running, site: Site) -> bool:
    """Takes the interval; whether a client saw the new certificate in it."""
    end = time.monotonic() + INTERVAL
    serial = site.renew_server()
    if contender.peer.reload:
        contender.process.send_signal(contender.peer.reload)
    taken = False
    while (left := end - time.monotonic()) > 0:
        taken = taken or _shown(contender, site) == serial
        time.sleep(min(left, 0.05 if not taken else left))
    return taken


def _shown(contender: Running, site: Site) -> int | None:
    """The serial number of the certificate that a new client is shown."""
    try:
        with (
            socket.create_connection(("127.0.0.1", contender.place.http), timeout=INTERVAL) as sock,
            site.client().wrap_socket(sock, server_hostname="localhost") as secured,
        ):
            shown = secured.getpeercert(binary_form=True)
    except OSError:
        return None
    return x509.load_der_x509_certificate(shown).serial_number if shown else None
