"""The verdict on readiness, made of parts. `/readyz`, `/status`, page, terminal, systemd, log and metric read this one.

Readiness changes nothing: a gateway that is not ready goes on serving as far as it can. A part that is degraded costs
no readiness, since other gateways of a fleet would be degraded for the same reason.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import TYPE_CHECKING, Any, Final, Self

from tlsproxy.text import utc_time
from tlsproxy.tls.certinfo import facts_of

if TYPE_CHECKING:
    from tlsproxy.snapshot.generation import Generation

# Names of parts.
LISTENERS: Final = "listeners"
UPSTREAM: Final = {"rest": "upstream_rest", "grpc": "upstream_grpc"}
CERTIFICATE: Final = "server_certificate"
CRL: Final = "crl"
AUDIT: Final = "audit"
DESCRIPTORS: Final = "descriptors"
RELOAD: Final = "reload"
BUNDLE: Final = "bundle"
SHARED: Final = "shared"
WORKERS: Final = "workers"

DRAINING: Final = "draining"
_MAX_NAMED: Final = 3
"""Faults in a part's text."""


class Level(IntEnum):
    """``DEGRADED``: it serves, and a person must look."""

    OK = 0
    DEGRADED = 1
    NOT_READY = 2


_HEADLINES: Final = {Level.DEGRADED: "DEGRADED", Level.NOT_READY: "NOT READY"}
_STATES: Final = {Level.OK: "serving", Level.DEGRADED: "degraded", Level.NOT_READY: "not_ready"}


@dataclass(frozen=True, slots=True)
class Part:
    """``text`` is the reason, empty for OK. ``where`` names the workers that it is about, if not all."""

    level: Level = Level.OK
    text: str = ""
    where: str = ""

    @property
    def good(self) -> bool:
        return self.level is Level.OK

    @property
    def reason(self) -> str:
        return f"{self.where}: {self.text}" if self.where else self.text

    def __str__(self) -> str:
        return {Level.OK: "ok", Level.DEGRADED: f"degraded: {self.reason}", Level.NOT_READY: self.reason}[self.level]


OK: Final = Part()


def degraded(text: str) -> Part:
    return Part(Level.DEGRADED, text)


def not_ready(text: str) -> Part:
    return Part(Level.NOT_READY, text)


@dataclass(frozen=True, slots=True)
class Readiness:
    """``refused`` counts what each part has refused since the start: requests, or handshakes."""

    parts: Mapping[str, Part]
    refused: Mapping[str, int] = field(default_factory=dict)

    @property
    def good(self) -> Mapping[str, bool]:
        """Whether each part is good."""
        return {name: part.good for name, part in self.parts.items()}

    @property
    def level(self) -> Level:
        return max((part.level for part in self.parts.values()), default=Level.OK)

    @property
    def ready(self) -> bool:
        return self.level is not Level.NOT_READY

    @property
    def draining(self) -> bool:
        return self.parts.get(LISTENERS, OK).text == DRAINING

    @property
    def headline(self) -> str:
        """`serving`, `draining`, `DEGRADED: …` or `NOT READY: …`, with every part of the worst level."""
        if self.draining:
            return DRAINING
        worst = self.level
        reasons = "; ".join(f"{name}: {part.reason}" for name, part in self.parts.items() if part.level is worst)
        return "serving" if worst is Level.OK else f"{_HEADLINES[worst]}: {reasons}"

    def with_part(self, name: str, part: Part) -> Self:
        return type(self)({**self.parts, name: part}, self.refused)

    def as_json(self) -> dict[str, Any]:
        """`ready`, `state` (serving, degraded, not_ready), `headline` and `parts`: `ok` or the reason why not."""
        return {
            "ready": self.ready,
            "state": DRAINING if self.draining else _STATES[self.level],
            "headline": self.headline,
            "parts": {name: str(part) for name, part in self.parts.items()},
        }

    def without_reasons(self) -> dict[str, Any]:
        """`ready` and `parts`, each `ok`, `degraded` or `not_ready`: reasons may hold names of files and callers."""
        return {
            "ready": self.ready,
            "parts": {name: part.level.name.lower() for name, part in self.parts.items()},
        }

    def encoded(self) -> dict[str, Any]:
        """As JSON values for :meth:`decoded`."""
        return {
            "parts": {name: [part.level, part.text, part.where] for name, part in self.parts.items()},
            "refused": dict(self.refused),
        }

    @classmethod
    def decoded(cls, values: Mapping[str, Any]) -> Self:
        parts = {name: Part(Level(level), text, where) for name, (level, text, where) in values["parts"].items()}
        return cls(parts, values["refused"])


def nodes_part(states: Mapping[str, str], probed: Part) -> Part:
    """Ready while one node serves; those that do not are named, but for drained ones.

    ``states`` are those of several nodes by name, none of a single one. ``probed`` is the verdict on one that serves.
    """
    out = [f"node {name} is {state}" for name, state in states.items() if state not in {"up", "drained"}]
    serving = list(states.values()).count("up")
    if states and not serving:
        return not_ready(_named(out or ["every node is drained"]))
    if probed.level is Level.NOT_READY and serving > 1:
        return degraded(_named([f"a node is out: {probed.text}", *out]))
    return degraded(_named(out)) if out and probed.good else probed


def certificate_part(generation: Generation, now: float) -> Part:
    """Also of its intermediates: clients refuse what rests on an expired one."""
    material = generation.material
    if material.leaf.not_after <= now:
        return not_ready("the server certificate has expired")
    for facts in map(facts_of, material.server.chain[1:]):
        if facts.not_after <= now and facts != material.needless:
            return not_ready(f"its intermediate {facts.subject} has expired")
    return not_ready("the server certificate is not valid yet") if material.leaf.not_before > now else OK


def crl_part(generation: Generation, now: float) -> Part:
    """An expired CRL costs readiness if its clients are refused (`tls.crl_expired`)."""
    trust = generation.material.trust
    outdated = sorted(trust.outdated(now))
    if not outdated:
        return OK
    return (not_ready if trust.policy.deny_expired else degraded)(_named(outdated))


def reload_part(faults: Sequence[str]) -> Part:
    """``faults``: the files that are not in force as they are. Their last good state serves."""
    return degraded(_named(["; ".join(fault.splitlines()) for fault in faults])) if faults else OK


def bundle_part(bundle: Mapping[str, Any], now: float) -> Part:
    """``bundle`` is the status of the configuration's bundle. The last good one serves, whatever its age."""
    faults = ["; ".join(bundle["error"].splitlines())] if bundle["error"] else []
    if bundle["expires"] is not None and bundle["expires"] <= now:
        faults.append(f"version {bundle['version']} expired at {utc_time(bundle['expires'])}, and serves on")
    return degraded(_named(faults)) if faults else OK


def _named(each: Sequence[str]) -> str:
    more = [f"and {len(each) - _MAX_NAMED} more"] if len(each) > _MAX_NAMED else []
    return "; ".join([*each[:_MAX_NAMED], *more])


def audit_part(*, healthy: bool, accepts: bool, last_error: str) -> Part:
    if not healthy:
        return not_ready(last_error or "not writing")
    return OK if accepts else not_ready("the queue is full")
