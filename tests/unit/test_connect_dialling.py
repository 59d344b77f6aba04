"""Dialling of candidates: failures, deadlines, and what is none of a target's fault."""

from __future__ import annotations

import errno
import os
import socket
from typing import Any

import pytest

from tlsproxy.connector.dialling import Candidate, Dialling, failure_reason, failure_text
from tlsproxy.connector.model import ConnectLimits
from tlsproxy.tls.client_context import ServerRefused

CANDIDATES = [
    Candidate("here", "a:1", (socket.AF_INET, ("127.0.0.1", 1)), last=False),
    Candidate("here", "a:1", (socket.AF_INET, ("127.0.0.2", 1)), last=True),
    Candidate("here", "b:1", (socket.AF_INET, ("127.0.0.3", 1)), last=True),
]


class DialledStub:
    reached = False
    negotiated = None

    def __init__(self) -> None:
        self.deadline, self.aborted = 0.0, False
        self.error: Exception | None = None

    def abort(self, error: Exception | None = None) -> None:
        self.aborted, self.error = True, error


class DiallerStub:
    """Dials as ``outcomes`` say: an error, or a stream."""

    def __init__(self, *outcomes: OSError | DialledStub) -> None:
        self.outcomes = list(outcomes)
        self.dialled: list[Candidate] = []
        self.blamed: list[tuple[Candidate, str]] = []
        self.stands: list[tuple[Candidate, Any]] = []
        self.exhausted: list[Exception] = []
        self.current = True
        self.limits = ConnectLimits()
        self.dialling = Dialling(self, CANDIDATES, lambda *one: self.stands.append(one), self.exhausted.append)

    def dial(self, candidate: Candidate, _handler: object) -> Any:
        self.dialled.append(candidate)
        outcome = self.outcomes.pop(0)
        if isinstance(outcome, OSError):
            raise outcome
        return outcome

    def is_current(self, _candidate: Candidate, _stream: object) -> bool:
        return self.current

    def agreed(self, negotiated: object) -> None:
        """Counts nothing."""

    def failed(self, candidate: Candidate, error: Exception) -> None:
        self.blamed.append((candidate, failure_reason(error)))


def test_the_candidates_are_tried_in_their_order() -> None:
    stream, good = DialledStub(), DialledStub()
    dialler = DiallerStub(OSError(errno.EHOSTUNREACH, "no route"), stream, good)
    dialler.dialling.next()
    assert dialler.dialled == CANDIDATES[:2]
    dialler.dialling.connection_lost(ServerRefused("expired", "it has expired"))
    dialler.dialling.connected()
    assert dialler.stands == [(CANDIDATES[2], good)]
    assert dialler.blamed == [(CANDIDATES[0], "unreachable"), (CANDIDATES[1], "expired")]
    dialler.dialling.connection_lost(None)
    assert not dialler.exhausted, "a stream that stands is somebody else's"


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE])
def test_a_want_of_descriptors_is_no_fault_of_a_target(number: int) -> None:
    dialler = DiallerStub(OSError(number, os.strerror(number)))
    dialler.dialling.next()
    assert (dialler.blamed, len(dialler.exhausted), len(dialler.dialled)) == ([], 1, 1)


def test_the_handshake_has_its_own_time_after_the_connection() -> None:
    first, second = DialledStub(), DialledStub()
    dialler = DiallerStub(first, second)
    dialler.limits = ConnectLimits(connect_timeout=1.0, handshake_timeout=1000.0)
    dialler.dialling.next()
    dialler.dialling.deadline_passed()
    assert "no TCP connection within 1 s" in str(first.error)
    dialler.dialling.connection_lost(first.error)
    assert dialler.blamed == [(CANDIDATES[0], "timeout")]
    second.reached, begun = True, second.deadline
    dialler.dialling.deadline_passed()
    assert not second.aborted
    assert second.deadline == begun + 1000.0
    dialler.limits = ConnectLimits(connect_timeout=1e-9, handshake_timeout=1e-9)
    dialler.dialling.deadline_passed()
    assert "no TLS handshake within" in str(second.error)


def test_a_server_that_stands_by_a_former_configuration_is_dialled_again() -> None:
    former, present = DialledStub(), DialledStub()
    dialler = DiallerStub(former, present)
    dialler.dialling.next()
    dialler.current = False
    dialler.dialling.connected()
    assert former.aborted
    dialler.current = True
    dialler.dialling.connected()
    assert dialler.dialled == [CANDIDATES[0], CANDIDATES[0]]
    assert dialler.stands == [(CANDIDATES[0], present)]
    assert dialler.blamed == []


def test_one_that_is_cancelled_dials_no_more() -> None:
    stream = DialledStub()
    dialler = DiallerStub(stream)
    dialler.dialling.next()
    dialler.dialling.cancel()
    assert stream.aborted
    dialler.dialling.connection_lost(None)
    assert (dialler.blamed, dialler.exhausted) == ([], [])


def test_words_of_failures() -> None:
    assert failure_text(ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused")) == "Connection refused"
    assert failure_reason(ConnectionRefusedError()) == "refused"
    assert failure_reason(socket.gaierror("gw cannot be resolved")) == "unresolved"
    assert failure_text(socket.gaierror("gw cannot be resolved")) == "gw cannot be resolved"
