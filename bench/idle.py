"""Memory of connections that rest. Each contender is freshly started, and alone: memory is not noisy, but it is not
given back either.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import ExitStack

from bench.errors import BenchError
from bench.generator import Generator
from bench.peers.peer import Peer, Program
from bench.results import Results
from bench.rounds import Setting, takes
from bench.workloads import BY_NAME

_ASKED = BY_NAME["get"]
_START = 5.0
"""Seconds around a contender's handshakes: its start, and until its memory is settled."""


def run_idle(setting: Setting, programs: Mapping[Peer, Program], connections: Iterable[int], results: Results) -> None:
    for count in connections:
        told = results.idle.setdefault(str(count), {})
        for peer, program in programs.items():
            if not _rests(peer):
                continue
            line = f"{count} idle connections on {peer.name}: "
            try:
                with ExitStack() as stack:
                    idle = setting.generator.rest(setting.start(stack, peer, program), _ASKED, count)
            except BenchError as error:
                line += str(error)
            else:
                told[peer.name] = idle
                line += f"{idle.bytes_each / 1024:.1f} KiB each"
                line += f", {idle.errors} errors: {idle.error}" if idle.errors else ""
            setting.journal.step(results, _planned(setting.generator, count), line)


def planned_idle(generator: Generator, peers: Iterable[Peer], connections: Iterable[int]) -> float:
    """Seconds."""
    return sum(_planned(generator, count) for count in connections) * sum(map(_rests, peers))


def _planned(generator: Generator, count: int) -> float:
    return _START + generator.planned_rest(count)


def _rests(peer: Peer) -> bool:
    """Variants of a peer keep connections as it does."""
    return not peer.only and takes(peer, _ASKED)
