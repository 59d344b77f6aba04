"""Trail of a reload in the log and the audit log: changes in words, affected connections, configuration digest."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, Final

from tlsproxy.admin.view import sentence
from tlsproxy.service import impact_report
from tlsproxy.snapshot.diff import Change
from tlsproxy.snapshot.generation import Generation
from tlsproxy.text import rfc3339

MAX_CHANGES: Final = 40
"""Most changes in one line; the status has more of them."""

_log = logging.getLogger(__name__)


def sentences(changes: Sequence[Change]) -> str:
    """Changes on one line: `role ingest: access rw on docs added; rule staff removed`."""
    more = len(changes) - MAX_CHANGES
    told = [sentence(asdict(change)) for change in changes[:MAX_CHANGES]]
    return "; ".join([*told, f"{more} more"] if more > 0 else told)


def log_published(
    trigger: str,
    generation: Generation,
    changes: Sequence[Change],
    consequences: Mapping[str, Any] | None,
    error: str,
) -> None:
    """Log that ``generation`` serves. ``consequences`` is None if it served before, ``error`` has a fault a line."""
    _log.info(
        "reload (%s): generation %d serves%s, certificate %s until %s, configuration SHA-256 %s%s",
        trigger,
        generation.number,
        " (the files are the same)" if consequences is None else "",
        generation.material.leaf.serial,
        rfc3339(generation.material.leaf.not_after),
        generation.config_sha256,
        log_text(changes, consequences),
        extra={"trigger": trigger, "generation": generation.number},
    )
    for problem in error.splitlines():
        _log.error("reload (%s): not in generation %d: %s", trigger, generation.number, problem)
    for name in generation.restart_needed:
        _log.warning("%s has changed, which takes effect at the next restart only", name)
    for consequence in impact_report.sentences(consequences) if consequences is not None else ():
        _log.warning("reload (%s): %s", trigger, consequence)


def log_kept(
    trigger: str,
    outcome: str,
    generation: Generation,
    changes: Sequence[Change],
    consequences: Mapping[str, Any] | None,
    error: str,
) -> None:
    """Log that ``generation`` stays: a reload has failed, or is held back with its ``changes``."""
    problems = error.splitlines()
    for number, problem in enumerate(problems, 1):
        _log.error(
            "reload (%s) %s, generation %d goes on serving: %s%s",
            trigger,
            outcome,
            generation.number,
            problem,
            log_text(changes, consequences) if number == len(problems) else "",
            extra={"trigger": trigger, "generation": generation.number},
        )


def log_text(changes: Sequence[Change], consequences: Mapping[str, Any] | None) -> str:
    """Begins with `; `, and is empty without consequences."""
    told = [] if consequences is None else filter(None, (sentences(changes), impact_report.affected(consequences)))
    return "".join(f"; {each}" for each in told)


def audit_fields(changes: Sequence[Change], consequences: Mapping[str, Any] | None) -> dict[str, str | int]:
    """Fields of an audit line; none without ``consequences``."""
    if consequences is None:
        return {}
    affected, roles = consequences["affected"]["count"], impact_report.affected_roles(consequences)
    texts = {"changes": sentences(changes), "affected_roles": roles}
    return {"affected": affected, **{name: text for name, text in texts.items() if text}}


def certificate_fields(old: Generation, new: Generation) -> dict[str, str | int]:
    return {
        "old_certificate_sha256": old.material.leaf.sha256,
        "new_certificate_sha256": new.material.leaf.sha256,
    }


def held_text(consequences: Mapping[str, Any], *, renewed: bool) -> str:
    """The reason of a held result. ``renewed``: a new server certificate was published."""
    reasons = "; ".join(impact_report.sentences(consequences))
    exception = ", but for the server's own certificate" if renewed else ""
    until = "until `tlsproxy reload --force`, or until the files cut fewer"
    return f"held back by limits.mass_cut{exception} {until}: {reasons}"
