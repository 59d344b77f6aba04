"""Changes of points in a gRPC message, confined: the filter that selects them, and the marks of those that they make.

Ids in a message become a filter of these ids. A payload that is cleared is overwritten with the marks alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from tlsproxy.errors import BadRequest, Unconfined
from tlsproxy.qdrant import tenant_texts
from tlsproxy.qdrant.grpc_conditions import RewriteState, Within
from tlsproxy.qdrant.grpc_marks import entry, entry_of, twice
from tlsproxy.qdrant.rest_tenant_changes import is_elsewhere
from tlsproxy.wire.cooperative import Steps, at_once
from tlsproxy.wire.protobuf import Field, delimited


@dataclass(frozen=True, slots=True)
class Change:
    """How the message of a change is confined. The members are numbers of its fields.

    ``update_filter`` gets the confinements, present or not; so does the PointsSelector ``selector``, which must be
    there. ``within``: functions for nested messages. ``keys``: paths of a payload that are deleted.

    ``payload`` must not have the keys of marks; that of a new point (``makes``) may, with the caller's values, as may
    one that has to choose one of several. What is missing is added as the field ``marks`` of the message that is sent.
    ``key``: a path below which a payload is set. ``renumbered``: fields that have another number there.
    """

    message: str
    update_filter: int = 0
    selector: int = 0
    within: Mapping[int, Within] = field(default_factory=dict)
    keys: int = 0
    payload: int = 0
    makes: bool = False
    marks: int = 0
    key: int = 0
    renumbered: Mapping[int, int] = field(default_factory=dict)

    def confined(self, content: bytes, state: RewriteState) -> Steps[bytes]:
        """The new message. Raises :class:`Unconfined`, :class:`BadRequest`, :class:`ProtobufError`."""
        seen: dict[int, bytes] = {}
        payload: set[bytes] = set()
        return (
            yield from state.reading.rewritten(
                self.message,
                content,
                lambda one: self._take(one, seen, payload, state),
                lambda: self._added(seen, payload, state),
            )
        )

    def _take(
        self, one: Field, seen: dict[int, bytes], payload: set[bytes], state: RewriteState
    ) -> bytes | Steps[bytes]:
        """The field's replacement; nothing where it is set aside."""
        number = one.number
        if number in self.within:
            return self._nested(one, state)
        if number == self.payload:
            return self._entry(one, payload, state)
        if number in {self.keys, self.key}:
            self._check_path(one, state)
        elif number in {self.selector, self.update_filter}:
            seen[number] = one.content()
            return b""
        if number == self.key:
            seen[number] = b""
        return one.tagged(self.renumbered[number]) if number in self.renumbered else one.raw

    def _check_path(self, one: Field, state: RewriteState) -> None:
        """Checks that a change at a path touches no mark."""
        elsewhere = is_elsewhere(one.content().decode(errors="replace"), state.confinements)
        if one.number == self.keys and not elsewhere:
            raise Unconfined(tenant_texts.KEPT)
        if one.number == self.key and (self.marks or not elsewhere):
            raise Unconfined(tenant_texts.BELOW_A_KEY)

    def _nested(self, one: Field, state: RewriteState) -> Steps[bytes]:
        return delimited(one.number, (yield from self.within[one.number](one.content(), state)))

    def _entry(self, one: Field, payload: set[bytes], state: RewriteState) -> Steps[bytes]:
        """An entry of the payload; a new point's has its marks."""
        key, value = entry(one.content(), state.reading)
        if key in payload:
            raise twice()
        payload.add(key)
        changed = value
        marks = [mark for mark in state.marks if mark.root == key] if self.makes or self.marks else []
        if marks and not self.makes and all(len(mark.values) == 1 for mark in marks):
            raise Unconfined(tenant_texts.SET.format(key.decode()))
        for mark in marks:
            changed = yield from mark.marked(changed, state.reading)
        return one.raw if changed is value else delimited(self.payload, entry_of(key, changed))

    def _added(self, seen: dict[int, bytes], payload: set[bytes], state: RewriteState) -> Steps[bytes]:
        added = []
        if self.marks:
            added += [delimited(self.marks, one) for one in self._missing(payload, state)]
        elif self.payload:
            for mark in state.marks:
                if mark.root in payload and self.key not in seen:
                    raise Unconfined(tenant_texts.SET.format(mark.condition.root))
        if self.update_filter:
            narrowed = state.narrowed(seen.get(self.update_filter, b""), alone=True)
            added.append(delimited(self.update_filter, narrowed))
        if self.selector:
            if self.selector not in seen:
                raise BadRequest(f"Field {self.selector} of {self.message} is missing")
            number = self.renumbered.get(self.selector, self.selector)
            added.append(delimited(number, (yield from _selected(seen[self.selector], state))))
        return b"".join(added)

    def _missing(self, payload: set[bytes], state: RewriteState) -> list[bytes]:
        """Entries of the marks whose keys the payload does not have."""
        values: dict[bytes, bytes] = {}
        for mark in state.marks:
            if mark.root not in payload:
                if not self.payload and len(mark.values) > 1:
                    raise Unconfined(tenant_texts.SEVERAL_MARKS)
                values[mark.root] = at_once(mark.marked(values.get(mark.root), state.reading))
        return [entry_of(key, value) for key, value in values.items()]


def _selected(selector: bytes, state: RewriteState) -> Steps[bytes]:
    """A PointsSelector: by ids (1) or by a filter (2), of which a filter is made in either case."""
    chosen = state.reading.alone("PointsSelector", selector)
    if chosen is None:
        raise BadRequest("Either points or a filter is expected")
    if chosen.number == 1:
        ids = chosen.content()
        for _ in state.reading.fields_of("PointsIdsList", ids):
            if state.reading.is_step():
                yield state.reading.memory
        return delimited(2, state.narrowed(b"", alone=True, ids=ids))
    return delimited(2, state.narrowed(chosen.content(), alone=True))
