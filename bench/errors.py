"""What can go wrong around a measurement."""

from __future__ import annotations


class BenchError(Exception):
    """Its text is for the one who runs the bench."""


class AbsentError(BenchError):
    """Why a peer is not there."""


class CannotBuildError(BenchError):
    """What is missing, or what the compiler said."""


class GeneratorError(BenchError):
    """The load generator could not measure: what it said."""
