"""Locks as people and commands write them: `revoked` of the configuration, and the lock file beside it.

The lock file (`tlsproxy.yaml.locks`) is JSON: `{"locks": [{"subject": "CN=alice", "until": …}]}`, with the keys of
`revoked` and the marks of `tlsproxy unlock`. A lock that was taken back stays in it, marked, so that a file which lost
an entry lifts nothing.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Final, Self

from pydantic import AwareDatetime, Field, ValidationError

from tlsproxy.authz.claims import MalformedToken, read_object
from tlsproxy.authz.keys import NEVER
from tlsproxy.authz.locks import KINDS, Lock, LockKind, Selector
from tlsproxy.config.callers import Section
from tlsproxy.errors import MaterialError

SUFFIX: Final = ".locks"
LIMIT: Final = 1 << 20
"""Bytes of a lock file, which are some thousand locks."""
MAX_TEXT: Final = 500
"""Characters of an author's name, and of a reason."""

Text = Annotated[str, Field(max_length=MAX_TEXT)]


class LockEntry(Section):
    """A caller to refuse. Exactly one of `subject`, `sha256`, `serial`, `key` and `jti` is required."""

    subject: str | None = None
    """Subject of a client certificate (RFC 4514, parts in any order) or one of its names: common name, URI, DNS name,
    email address, IP address. Also `sub` or `subject` of a token, or of who acts in it (`act`). In any case."""
    sha256: str | None = None
    """SHA-256 fingerprint of a client certificate in hex, with or without colons."""
    serial: str | None = None
    """Serial number of a client certificate in hex, with or without colons; that of every issuer, unless `issuer` is
    given."""
    issuer: str | None = None
    """The issuer of `serial`, as RFC 4514 writes it."""
    key: str | None = None
    """Name of a key as the audit log has it: one of `keys`, `api_key`, `alt_api_key` or `read_only_api_key`. Tokens
    signed with it are refused too; the name of one of `jwt_issuers` refuses all of its tokens."""
    jti: str | None = None
    """The `jti` claim of a token."""
    until: AwareDatetime | None = None
    """End of the lock: RFC 3339, with a time zone; null for none."""
    by: Text = ""
    """Its author, for the audit log."""
    at: AwareDatetime | None = None
    """Its beginning, for the audit log. It counts at once."""
    reason: Text = ""
    """The reason, for the audit log. Clients are not told."""

    def given(self) -> tuple[LockKind, ...]:
        return tuple(kind for kind in KINDS if getattr(self, kind) is not None)

    def lock(self, *, configured: bool = False) -> Lock:
        """Raises ValueError unless it names exactly one caller, in a form that one could have."""
        kinds = self.given()
        if len(kinds) != 1:
            raise ValueError(f"must name exactly one caller, by {', '.join(KINDS[:-1])} or {KINDS[-1]}")
        try:
            return Lock(
                kinds[0],
                getattr(self, kinds[0]),
                self.issuer or "",
                NEVER if self.until is None else self.until.timestamp(),
                self.by,
                0.0 if self.at is None else self.at.timestamp(),
                self.reason,
                configured,
            )
        except ValueError as error:
            raise ValueError(f"{kinds[0]}: {error}") from None


class FileEntry(LockEntry):
    """An entry of a lock file. With `lifted_at` the lock was taken back."""

    lifted_by: Text = ""
    lifted_at: AwareDatetime | None = None
    lifted_reason: Text = ""

    @classmethod
    def of(cls, lock: Lock) -> Self:
        issuer = {"issuer": lock.issuer} if lock.issuer else {}
        until = None if lock.until == NEVER else moment(lock.until)
        return cls(**{lock.kind: lock.value}, **issuer, until=until, by=lock.by, at=moment(lock.at), reason=lock.reason)


class DrainEntry(Section):
    """A node of `upstream.nodes` that gets nothing new until its entry is removed."""

    node: str
    by: Text = ""
    at: AwareDatetime | None = None
    reason: Text = ""


class LockFile(Section):
    """Content of a lock file. Locks from before `all_lifted_at` were taken back together. It also has the nodes that
    `tlsproxy node` has drained.
    """

    all_lifted_at: AwareDatetime | None = None
    all_lifted_by: Text = ""
    drained: tuple[DrainEntry, ...] = ()
    locks: tuple[FileEntry, ...] = ()

    def in_force(self, now: float) -> dict[Selector, FileEntry]:
        """Entries that hold at ``now``; a lock that was taken back does not. Of several for one caller the longest."""
        given = ((entry, entry.lock()) for entry in self.locks if entry.lifted_at is None)
        held = sorted(((entry, lock) for entry, lock in given if now < lock.until), key=lambda each: each[1].until)
        return {lock.selector: entry for entry, lock in held}

    def after(self, former: LockFile, now: float) -> LockFile:
        """Adds the locks of ``former`` that it neither has nor took back: nothing is lifted by a loss."""
        own = {entry.lock().selector for entry in self.locks}
        lifted = -1.0 if self.all_lifted_at is None else self.all_lifted_at.timestamp()
        held = former.in_force(now).items()
        lost = [entry for key, entry in held if key not in own and entry.lock().at > lifted]
        return self.model_copy(update={"locks": (*self.locks, *lost)}) if lost else self

    def given(self) -> tuple[Lock, ...]:
        """Locks that were not taken back."""
        return tuple(entry.lock() for entry in self.locks if entry.lifted_at is None)


def moment(when: float) -> datetime:
    """Whole seconds, as a person reads them."""
    return datetime.fromtimestamp(int(when), UTC)


def lock_path(config_path: Path) -> Path:
    """`tlsproxy.yaml.locks` beside `tlsproxy.yaml`."""
    return config_path.with_name(config_path.name + SUFFIX)


def read_lock_file(path: Path, data: bytes) -> LockFile:
    """Raises MaterialError, with the place of the first mistake."""
    advice = "correct it, or have `tlsproxy unlock --all` write an empty one"
    try:
        file = LockFile.model_validate_json(data)
        read_object(data)  # no member twice, of which one would be lost
    except MalformedToken as error:
        raise MaterialError(str(path), f"is no lock file: {error}; {advice}") from None
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = _place(first["loc"])
        raise MaterialError(str(path), f"is no lock file: {where}{first['msg']}; {advice}") from None
    for index, entry in enumerate(file.locks):
        try:
            entry.lock()
        except ValueError as error:
            raise MaterialError(str(path), f"is no lock file: {_place(('locks', index))}{error}; {advice}") from None
    return file


def write_lock_file(file: LockFile) -> bytes:
    """One entry a line, for people and `diff`."""
    head, *entries = map(_json, (file.model_copy(update={"locks": ()}), *file.locks))
    before = f"{head[:-1]}, " if head != "{}" else "{"
    lines = "".join(f"\n{entry}," for entry in entries).rstrip(",")
    return f'{before}"locks": [{lines}\n]}}\n'.encode()


def _json(section: Section) -> str:
    return json.dumps(section.model_dump(mode="json", exclude_defaults=True), ensure_ascii=False)


def _place(loc: Iterable[Any]) -> str:
    steps = [f"entry {step + 1}" if isinstance(step, int) else str(step) for step in loc if step != "locks"]
    return f"{': '.join(steps)}: " if steps else ""
