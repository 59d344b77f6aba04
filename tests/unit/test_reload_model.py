"""Random sequences of changes, ages, faults and clock steps: who may enter and who may stay is what the oracle says.

The real side judges bytes, and shakes hands with OpenSSL in memory at the hour of the model.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import Phase, note, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test
from support.model_files import certificate, crl, handshake, seconds, written
from support.model_values import AUTHORITIES, BELOW, BELOWS, CLIENTS, CONTENTS, CRLS, FIRST, NAMESAKE, NAMESAKES, ROOT
from support.openssl_time import set_time
from support.reload_model import CAS, CONFIG, SERVER, Client, Content, Oracle

from tlsproxy.config.loader import Loaded, parse
from tlsproxy.errors import TlsproxyError
from tlsproxy.snapshot.config_files import ConfigFiles
from tlsproxy.snapshot.files import Inputs
from tlsproxy.snapshot.generation import Generation, propose
from tlsproxy.snapshot.name_resolution import Resolved
from tlsproxy.snapshot.validation import InputReading
from tlsproxy.tls.peer import Peer

LONG = bool(os.environ.get("TLSPROXY_FUZZ"))
DIRECTORY = Path("/nowhere")
NAMES = {"upstream.rest": Resolved("http://127.0.0.1:1", ((2, ("127.0.0.1", 1)),))}
REST = ("rest",)
ALL_CAS = {each for found in AUTHORITIES for each in found}
ALL_CRLS = {each for files in CRLS.values() for found in files for each in found}


@functools.cache
def parsed(data: bytes) -> Loaded:
    return parse(data, DIRECTORY / "tlsproxy.yaml", {})


class System:
    """The gateway's own judgement over files that are bytes in memory."""

    def __init__(self, disk: Mapping[str, Content], hour: int) -> None:
        self.generation: Generation
        self._former: Generation | None = None
        self._states: Any = None
        self._faults: Any = None
        self._loaded: Loaded
        self._configured = b""
        self.judge(disk, hour)

    def judge(self, disk: Mapping[str, Content], hour: int) -> None:
        inputs = self._read(disk)
        started = None if self._former is None else self._former.started
        reading = InputReading(DIRECTORY / "tlsproxy.yaml", {}, inputs, NAMES, {}, started)
        found = propose(reading, self._former, seconds(hour), states=self._states, faults=self._faults)
        assert found.generation is not None
        self._former = self.generation = found.generation
        self._states, self._faults = found.states, found.faults

    def _read(self, disk: Mapping[str, Content]) -> Inputs:
        files: dict[Path, bytes] = {}
        failures: dict[Path, TlsproxyError] = {}
        path = DIRECTORY / "tlsproxy.yaml"
        try:
            (data,) = written(CONFIG, disk[CONFIG])
            self._loaded, self._configured = parsed(data), data
        except TlsproxyError as error:
            failures[path] = error
        files[path] = self._configured
        tls = self._loaded.config.tls
        wanted = {SERVER: (tls.cert, tls.key), CAS: (tls.ca_cert,)} | {each.name: (each,) for each in tls.crl}
        for name, paths in wanted.items():
            try:
                files |= zip(paths, written(name, disk[name]), strict=True)
            except TlsproxyError as error:
                failures |= dict.fromkeys(paths, error)
        read = str((files, failures))
        return Inputs(self._loaded, files, read, {}, (), failures, config_files=ConfigFiles(self._configured))

    def enters(self, client: Client, hour: int) -> Peer | None:
        """As a connection begins: OpenSSL's handshake, then the rule. Its peer, if it may go on."""
        context = self.generation.contexts[REST]
        set_time(context, seconds(hour))
        peer = handshake(context, client)
        return peer if peer is not None and self.stays(peer, hour) else None

    def stays(self, peer: Peer, hour: int) -> bool:
        refusal = self.generation.verdict_of(peer, seconds(hour)).refusal
        return not refusal and self.generation.principal_of(peer).refusal is None


class Reload(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.disk, self.hour = dict(FIRST), 0
        self.oracle = Oracle.of(self.disk, self.hour)
        self.system = System(self.disk, self.hour)
        self.live: dict[Client, Peer] = {}

    @rule(choose=st.randoms(use_true_random=True))
    def files_change(self, choose: Random) -> None:
        for path in choose.sample(sorted(CONTENTS), choose.choice((1, 2, 3))):
            self.disk[path] = choose.choice(CONTENTS[path])
            note(f"{path}: {self.disk[path]!r}")
        self._publish()

    @rule(hours=st.sampled_from((-5, -2, 1, 2, 3, 5)))
    def time_passes(self, hours: int) -> None:
        self.hour += hours
        self._publish()

    @rule(clients=st.lists(st.sampled_from(CLIENTS), min_size=1, max_size=4, unique=True))
    def some_connect(self, clients: list[Client]) -> None:
        for client in clients:
            peer = self.system.enters(client, self.hour)
            assert (peer is not None) == self.oracle.may(client, self.hour), self.oracle.refusal(client, self.hour)
            if peer is not None:
                self.live[client] = peer

    def _publish(self) -> None:
        self.oracle.judge(self.disk, self.hour)
        self.system.judge(self.disk, self.hour)

    @invariant()
    def who_is_there_is_who_would_be_let_in(self) -> None:
        for client, peer in list(self.live.items()):
            stays = self.system.stays(peer, self.hour)
            assert stays == self.oracle.may(client, self.hour), (
                client.leaf.subject,
                self.oracle.refusal(client, self.hour),
            )
            if not stays:
                del self.live[client]

    @invariant()
    def each_input_is_at_its_best(self) -> None:
        states = self.system.generation.states
        assert states.server.value.chain[0] == certificate(self.oracle.server)
        assert states.authorities is not None
        known = {certificate(each): each for each in ALL_CAS}
        usable = {known[each] for each in states.authorities.value if known[each].valid(self.hour)}
        assert usable == {each for each in self.oracle.anchors if each.valid(self.hour)}
        used = {each.der for found in self.system.generation.material.trust.crls.values() for each in found}
        assert {each for each in ALL_CRLS if crl(each) in used} == set(self.oracle.used)


def test_a_crl_that_a_clock_made_early_goes_with_its_file() -> None:
    """The clock was ahead when it came; another file, with an overdue one of the same CA, must not keep it."""
    machine = Reload()
    changes: tuple[tuple[int, dict[str, Content]], ...] = (
        (0, {"below.crl": (BELOWS[1], NAMESAKES[3]), CAS: (ROOT, BELOW)}),
        (3, {"namesake.crl": (NAMESAKES[1], NAMESAKES[4])}),
        (1, {CAS: (ROOT, NAMESAKE)}),
        (1, {"namesake.crl": (NAMESAKES[2],)}),
    )
    for machine.hour, files in changes:
        machine.disk |= files
        machine._publish()
        machine.each_input_is_at_its_best()


@pytest.mark.fuzz
def test_the_oracle_and_the_gateway_agree() -> None:
    run_state_machine_as_test(
        Reload,
        settings=settings(
            max_examples=500 if LONG else 12,
            stateful_step_count=60 if LONG else 20,
            deadline=None,
            derandomize=not LONG,
            phases=[Phase.explicit, Phase.reuse, Phase.generate],  # a failure is short enough, and shrinking takes long
        ),
    )
