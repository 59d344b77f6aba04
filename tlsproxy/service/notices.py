"""Warnings on a generation and on its inputs as last read, and the lifetimes of all that it serves by."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tlsproxy.config.tokens import key_sources
from tlsproxy.snapshot.lifetimes import Lifetime, lifetimes_of
from tlsproxy.snapshot.nodes import drain_warnings

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tlsproxy.snapshot.bundles import Bundles
    from tlsproxy.snapshot.files import Inputs
    from tlsproxy.snapshot.generation import Generation
    from tlsproxy.snapshot.jwks import KeySets
    from tlsproxy.snapshot.states import Fault, Input


class Notices:
    """Notices of a configuration's files, and of documents fetched beside them."""

    def __init__(self, key_sets: KeySets, bundles: Bundles) -> None:
        self._key_sets = key_sets
        self._bundles = bundles

    def lifetimes(self, generation: Generation) -> tuple[Lifetime, ...]:
        return lifetimes_of(generation, self._bundles.current)

    def of(self, generation: Generation, inputs: Inputs, faults: Mapping[Input, Fault], now: float) -> tuple[str, ...]:
        """All warnings but those on expiry, which :mod:`tlsproxy.service.expiry_log` logs at their moments."""
        return (
            *generation.warnings,
            *drain_warnings(generation.nodes),
            *generation.material.warnings(now),
            *inputs.warnings,
            *(
                f"{source.shown}: its keys have not been fetched yet: the tokens that they verify are refused"
                for source in key_sources(generation.config)
                if source not in generation.states.documents
            ),
            *self._key_sets.warnings(generation.config),
            *self._bundles.warnings(),
            *(fault.text for subject, fault in faults.items() if subject.kind == "name" and fault.kept),
        )
