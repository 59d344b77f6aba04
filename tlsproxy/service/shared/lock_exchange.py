"""Locks of all gateways: pure. Each lock is an entry with an id of its own; entries only come, and are only lifted.

So gateways agree whatever order they hear in, and by no clock: a lock holds everywhere until somebody lifts it, and a
store that lost entries gets them again from whoever knows them. Lifting names a caller, not an entry: it lifts all
entries of that caller that this gateway knows then.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from typing import Final

from pydantic import ValidationError

from tlsproxy.authz.keys import NEVER
from tlsproxy.authz.locks import Selector
from tlsproxy.config.locks import FileEntry, LockFile

MAX_ENTRIES: Final = 10_000
"""Locks in the store, with those that were taken back."""
KEPT: Final = 7 * 86400.0
"""Seconds for which a lock that is over or was taken back stays in the store, so that no gateway misses it."""
LOCKED, LIFTED = "L", "U"


@dataclass(frozen=True, slots=True)
class SharedLock:
    """An entry as the store has it."""

    id: str
    entry: FileEntry
    selector: Selector

    @property
    def lifted(self) -> bool:
        return self.entry.lifted_at is not None

    @property
    def state(self) -> str:
        return LIFTED if self.lifted else LOCKED

    @property
    def text(self) -> str:
        return _text(self.entry)

    def kept(self, now: float) -> float:
        """Seconds for which the store keeps it, negative for good. ``now`` is seconds since the epoch."""
        if self.entry.lifted_at is not None:
            return KEPT
        until = self.entry.lock().until
        return -1.0 if until == NEVER else max(0.0, until - now) + KEPT


class LockExchange:
    """``unsaid`` are entries that the store may not have as they are here. ``version`` grows with each change that
    :meth:`merged` shows. ``unread`` are entries of the store, by id, that this version cannot read.
    """

    def __init__(self, mint: Callable[[], str]) -> None:
        """``mint`` makes an id that no other entry has."""
        self._mint = mint
        self._known: dict[str, SharedLock] = {}
        self._texts: dict[str, str] = {}
        self._own: dict[FileEntry, str] = {}
        self._file: LockFile | None = None
        self._seen: set[str] = set()
        self.unsaid: dict[str, SharedLock] = {}
        self.version = 0
        self.unread: set[str] = set()

    def look(self, file: LockFile) -> None:
        """Take up this gateway's own file."""
        former, self._file = self._file, file
        if former is file or former == file:
            return
        self.version += 1
        before = set() if former is None else {entry for entry in former.locks if entry.lifted_at is not None}
        given = [entry for entry in file.locks if entry.lifted_at is None]
        self._own = {entry: self._own.get(entry) or self._named(entry, new=former is not None) for entry in given}
        for entry, name in self._own.items():
            if name not in self._known:
                self._learn(SharedLock(name, entry, entry.lock().selector), unsaid=True)
        if former is not None and former.all_lifted_at != file.all_lifted_at and file.all_lifted_at is not None:
            mark = {"lifted_by": file.all_lifted_by, "lifted_at": file.all_lifted_at}
            self._lift([one for one in self._known.values() if one.id not in self._own.values()], mark)
        for entry in file.locks:
            if entry.lifted_at is None or entry in before:
                continue
            mark = {name: getattr(entry, name) for name in ("lifted_by", "lifted_at", "lifted_reason")}
            selector, name = entry.lock().selector, _id(_locked(entry))
            held = [one for one in self._known.values() if one.selector == selector]
            if former is None:  # it may have been locked again elsewhere since
                held = [one for one in held if one.id == name]
            if name not in self._known:
                self._learn(SharedLock(name, _locked(entry), selector), unsaid=False)
                held.append(self._known[name])
            self._lift([one for one in held if one.id not in self._own.values()], mark)

    def hear(self, entries: Iterable[tuple[str, str]], *, begin: bool, end: bool) -> None:
        """Take up entries of the store: ids and texts. From one with ``begin`` to one with ``end`` all are read."""
        if begin:
            self._seen = set()
            self.unread = set()
        for name, text in entries:
            self._seen.add(name)
            if not text or self._texts.get(name) == text:
                continue
            entry = _read(text)
            if entry is None:
                self.unread.add(name)
                continue
            self._texts[name] = text
            known = self._known.get(name)
            if known is None or (entry.lifted_at is not None and not known.lifted):
                self._learn(SharedLock(name, entry, entry.lock().selector), unsaid=False)
            elif known.lifted and entry.lifted_at is None:
                self.unsaid[name] = known
        if end:
            lost = self._known.keys() - self._seen
            self.unsaid |= {name: self._known[name] for name in lost}

    def said(self, entries: Iterable[SharedLock]) -> None:
        """The store has taken these."""
        for one in entries:
            if self.unsaid.get(one.id) == one:
                del self.unsaid[one.id]

    def forget(self, now: float) -> None:
        """Forget what is over for so long that the store has forgotten it too."""
        for one in list(self._known.values()):
            lifted = one.entry.lifted_at
            end = one.entry.lock().until if lifted is None else lifted.timestamp()
            if end + KEPT < now and one.id not in self._own.values():
                del self._known[one.id]
                self._texts.pop(one.id, None)
                self.unsaid.pop(one.id, None)

    def merged(self, file: LockFile) -> LockFile:
        """The file of this gateway, with the locks of others, and without those that others lifted."""
        own = self._own
        entries = [self._present(entry, own) for entry in file.locks]
        mine = set(own.values())
        others = (one.entry for one in self._known.values() if one.id not in mine)
        there = {_id(_locked(entry)) for entry in entries}
        entries += [entry for entry in others if not (entry.lifted_at is not None and _id(_locked(entry)) in there)]
        return file.model_copy(update={"locks": tuple(entries)})

    def _present(self, entry: FileEntry, own: Mapping[FileEntry, str]) -> FileEntry:
        name = own.get(entry)
        known = None if name is None else self._known.get(name)
        return known.entry if known is not None and known.lifted else entry

    def _named(self, entry: FileEntry, *, new: bool) -> str:
        """The id of an entry of the own file: its digest, unless an entry like it was lifted before."""
        name = _id(entry)
        known = self._known.get(name)
        return self._mint() if new and known is not None and known.lifted else name

    def _lift(self, held: Iterable[SharedLock], mark: Mapping[str, object]) -> None:
        for one in held:
            if not one.lifted:
                entry = one.entry.model_copy(update=dict(mark))
                self._learn(SharedLock(one.id, entry, one.selector), unsaid=True)

    def _learn(self, one: SharedLock, *, unsaid: bool) -> None:
        self._known[one.id] = one
        self.version += 1
        if unsaid:
            self.unsaid[one.id] = one


def _locked(entry: FileEntry) -> FileEntry:
    """The entry before it was lifted."""
    return entry.model_copy(update={"lifted_by": "", "lifted_at": None, "lifted_reason": ""})


def _text(entry: FileEntry) -> str:
    return json.dumps(entry.model_dump(mode="json", exclude_defaults=True), ensure_ascii=False)


def _id(entry: FileEntry) -> str:
    return blake2b(_text(entry).encode(), digest_size=12).hexdigest()


def _read(text: str) -> FileEntry | None:
    """An entry of the store, after its state; None for one that cannot be read."""
    try:
        entry = FileEntry.model_validate_json(text[1:])
        entry.lock()
    except (ValidationError, ValueError):
        return None
    return entry
