"""Reads of points in a gRPC message, confined: their filters, and of searches the parameters of their scores."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from tlsproxy.errors import Unconfined
from tlsproxy.qdrant import scoring
from tlsproxy.qdrant.grpc_conditions import RewriteState, Within
from tlsproxy.qdrant.grpc_examples import Inputs, place_of
from tlsproxy.qdrant.scoring import Scored
from tlsproxy.qdrant.tenant_examples import place
from tlsproxy.wire.cooperative import Steps
from tlsproxy.wire.protobuf import VARINT, Field, ProtobufError, delimited, flag

_EXACT: Final = 2
_QUANTIZATION: Final = 3
_INDEXED_ONLY: Final = 4
_IDF: Final = 6
"""Fields of SearchParams."""
_RESCORE: Final = 2
"""A field of QuantizationSearchParams."""


@dataclass(slots=True)
class _Found:
    """The parts of one message that its :class:`Search` needs."""

    filter: bytes = b""
    params: bytes | None = None
    inputs: Inputs = field(default_factory=Inputs)
    lookup: bytes | None = None
    using: str = ""


@dataclass(frozen=True, slots=True)
class Search:
    """How the message of a read is confined. The members are numbers of its fields.

    ``filter`` gets the confinements, present or not. ``within``: functions for nested messages. ``refused``: fields
    that are refused, with the text. ``set``: a flag that is set, whatever the caller sends.

    The ``params`` of a search depend on its vector: ``inputs`` (field → its message), or ``dense``, which the indices
    of ``sparse`` make a sparse one; ``using`` is the vector's name. Examples among the inputs are of the collection of
    ``lookup``, if there is one. Searches of groups are ``exact``. A ``matrix`` has no such parameters.
    """

    message: str
    filter: int = 0
    within: Mapping[int, Within] = field(default_factory=dict)
    refused: Mapping[int, str] = field(default_factory=dict)
    set: int = 0
    params: int = 0
    inputs: Mapping[int, str] = field(default_factory=dict)
    lookup: int = 0
    dense: int = 0
    sparse: int = 0
    using: int = 0
    exact: bool = False
    matrix: bool = False

    def confined(self, content: bytes, state: RewriteState) -> Steps[bytes]:
        """The new message.

        Raises :class:`Unconfined`, :class:`BadRequest`, :class:`ProtobufError`, :class:`FactsNeeded`.
        """
        found = _Found()
        state.exact |= self.exact
        return (
            yield from state.reading.rewritten(
                self.message,
                content,
                lambda one: self._take(one, found, state),
                lambda: self._added(found, state),
            )
        )

    def _take(self, one: Field, found: _Found, state: RewriteState) -> bytes | Steps[bytes]:
        """The field's replacement; nothing where it is set aside."""
        number = one.number
        if number in self.refused:
            raise Unconfined(self.refused[number])
        if number in self.within:
            return self._nested(one, state)
        if number in self.inputs:
            return self._input(one, found, state)
        if number == self.filter:
            found.filter = one.content()
        elif number == self.params:
            found.params = one.content()
        elif number == self.set:
            _check_flag(one, self.message)
        else:
            self._note(one, found)
            return one.raw
        return b""

    def _nested(self, one: Field, state: RewriteState) -> Steps[bytes]:
        return delimited(one.number, (yield from self.within[one.number](one.content(), state)))

    def _input(self, one: Field, found: _Found, state: RewriteState) -> Steps[bytes]:
        yield from found.inputs.reading(self.inputs[one.number], one.content(), state.reading)
        return one.raw

    def _note(self, one: Field, found: _Found) -> None:
        """Notes the kind and the name of a search's vector, and the place of its examples."""
        if one.number == self.lookup:
            found.lookup = one.content()
        elif one.number == self.sparse:
            found.inputs.scored = Scored.SPARSE
        elif one.number == self.dense and found.inputs.scored is Scored.NOTHING:
            found.inputs.scored = Scored.DENSE
        elif one.number == self.using:
            found.using = one.content().decode(errors="replace")

    def _added(self, found: _Found, state: RewriteState) -> Steps[bytes]:
        if found.inputs.examples:
            here = place(state.collection, None)
            asked = here if found.lookup is None else (yield from place_of(found.lookup, state.reading))
            for example in found.inputs.examples:
                state.examples.add(asked, example)
        return b"".join(self._confining(found, state))

    def _confining(self, found: _Found, state: RewriteState) -> Iterator[bytes]:
        if self.matrix:
            scoring.check_matrix(found.using, state.facts)
        if self.filter:
            yield delimited(self.filter, state.narrowed(found.filter))
        if self.params:
            params = _search_params(found, state)
            if params or found.params is not None:
                yield delimited(self.params, params)
        if self.set:
            yield flag(self.set)


def _search_params(found: _Found, state: RewriteState) -> bytes:
    """SearchParams without the influence of other tenants' points: on indexed segments (4), on codes of quantized
    vectors (3), and on the counts of words (6).
    """
    parts: list[bytes] = []
    corpus = quantization = None
    for one in state.reading.fields_of("SearchParams", found.params or b""):
        if one.number in {_EXACT, _INDEXED_ONLY}:
            _check_flag(one, "SearchParams")
        if one.number == _IDF:
            corpus = b"".join(filter_.content() for filter_ in state.reading.fields_of("IdfParams", one.content()))
        elif one.number == _QUANTIZATION:
            quantization = _quantization(one.content(), state)
        elif one.number != _INDEXED_ONLY and not (one.number == _EXACT and state.exact):
            parts.append(one.raw)
    if state.exact:
        parts.append(flag(_EXACT))
    if scoring.is_rescored(found.inputs.scored) or quantization is not None:
        parts.append(delimited(_QUANTIZATION, (quantization or b"") + flag(_RESCORE)))
    if scoring.needs_corpus(found.inputs.scored, found.using, state.facts) or corpus is not None:
        parts.append(delimited(_IDF, delimited(1, state.narrowed(corpus or b""))))
    return b"".join(parts)


def _quantization(content: bytes, state: RewriteState) -> bytes:
    """QuantizationSearchParams, without its rescore."""
    parts = []
    for one in state.reading.fields_of("QuantizationSearchParams", content):
        if one.number == _RESCORE:
            _check_flag(one, "QuantizationSearchParams")
        else:
            parts.append(one.raw)
    return b"".join(parts)


def _check_flag(one: Field, message: str) -> None:
    if one.wire_type != VARINT:
        raise ProtobufError(f"field {one.number} of {message} has another type")
