"""`lock`, `unlock` and `locks`: callers refused at once, by a file beside the configuration.

They need neither a running gateway nor a sound configuration. Where the admin server answers, they wait until the
gateway has taken up the change.
"""

from __future__ import annotations

import json
import os
import pwd
import re
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, TypeVar

import click

from tlsproxy.authz.keys import NEVER
from tlsproxy.authz.locks import KINDS, Lock, Selector
from tlsproxy.cli import lock_store
from tlsproxy.cli.admin_client import AdminClient, AdminError, admin_of, admin_options
from tlsproxy.cli.common import explained
from tlsproxy.config.locks import LIMIT, MAX_TEXT, FileEntry, LockFile, lock_path, moment, write_lock_file
from tlsproxy.config.problems import did_you_mean
from tlsproxy.errors import TlsproxyError
from tlsproxy.snapshot.files import read_configuration
from tlsproxy.text import printable, span, utc_time

PATIENCE: Final = 5.0
"""Seconds to wait for the gateway: it reads the file four times a second."""
POLL: Final = 0.1
ASKED: Final = 1.0
"""Seconds for a status: a gateway that does not answer holds up no lock."""
_NAMED: Final = 20
"""Connected clients that are listed."""
_UNITS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
_LONGEST: Final = 10 * 366 * 86400
_DURATION: Final = re.compile(r"(?:\d{1,9}[smhdw])+")

F = TypeVar("F", bound=Callable[..., Any])


def _duration(_context: click.Context, _parameter: click.Parameter, value: str | None) -> float | None:
    """Seconds of `1h`, `90m`, `2d` or `1h30m`."""
    if value is None:
        return None
    text = value.strip().lower()
    parts = re.findall(r"(\d+)([smhdw])", text) if _DURATION.fullmatch(text) else []
    seconds = sum(int(count) * _UNITS[unit] for count, unit in parts)
    if len({unit for _, unit in parts}) != len(parts) or not 0 < seconds <= _LONGEST:
        raise click.BadParameter(f"{value!r} is no duration: 45s, 90m, 1h30m, 2d or 1w, up to ten years")
    return float(seconds)


def _selectors(command: F) -> F:
    for option in (
        click.option("--jti", metavar="ID", help="A token by its jti claim."),
        click.option("--key", metavar="NAME", help="A key by its name in the audit log, and tokens signed with it."),
        click.option("--issuer", metavar="SUBJECT", help="The issuer of --serial.  [default: any]"),
        click.option("--serial", metavar="HEX", help="A certificate by its serial number."),
        click.option("--sha256", metavar="HEX", help="A certificate by its SHA-256 fingerprint."),
        click.argument("subject", required=False),
    ):
        command = option(command)
    return command


@click.command()
@admin_options
@_selectors
@click.option("--for", "duration", callback=_duration, metavar="TIME", help="45s, 90m, 1h30m, 2d.  [default: no end]")
@click.option("--reason", default="", metavar="TEXT", help="For the audit log; clients are not told.")
def lock(config_path: Path, admin: str | None, duration: float | None, reason: str, **given: str | None) -> None:
    """Refuse a caller at once, on live connections too.

    SUBJECT is a certificate's subject or one of its names (common name, URI, DNS name, email address), or the sub or
    subject of tokens. Without --for the lock has no end but `tlsproxy unlock`. A lock that is there already is
    extended, never shortened.
    """
    now = time.time()
    with explained():
        wanted = _lock(given, until=NEVER if duration is None else float(int(now + duration)), reason=reason, at=now)
        server, before = asked(config_path, admin)
        found = _extended(lock_store.read(config_path), wanted, now)
        lifted = before is not None and "shared" in before and _entry(before, found) is None
        if lifted:  # by another gateway: the one in the file holds nobody
            found = wanted
        if found is not wanted:
            click.echo(f"locked already: {_line(found, now)}")
        else:
            lock_store.change(config_path, lambda file: _with(file, wanted if lifted else _extended(file, wanted, now)))
            click.echo(f"locked: {_line(wanted, wanted.at)}")
    entry = awaited(config_path, server, lambda status: _entry(status, found))
    if entry is None:
        sys.exit(1 if server is not None else 0)
    if found is not wanted:
        click.echo("in force")
    else:
        _tell_effect(entry, found, before or {})


@click.command()
@admin_options
@_selectors
@click.option("--all", "everything", is_flag=True, help="Lift all locks, also those of a file that is broken or gone.")
@click.option("--reason", default="", metavar="TEXT", help="For the audit log.")
def unlock(config_path: Path, admin: str | None, reason: str, *, everything: bool, **given: str | None) -> None:
    """Lift a lock, named as `tlsproxy lock` was told.

    Locks under `revoked` in the configuration end there. Exits with 1 if there is no such lock.
    """
    now = time.time()
    with explained():
        if everything:
            if any(given.values()):
                raise click.UsageError("--all lifts every lock: name none besides")
            empty = LockFile(all_lifted_at=moment(now + 1), all_lifted_by=operator())
            server, _ = asked(config_path, admin)
            lock_store.change(config_path, lambda file: _all_lifted(file, empty, reason), broken=LockFile())
            click.echo("unlocked: all")
            done = awaited(config_path, server, lambda status: _none_left(status) or None)
            sys.exit(1 if done is None and server is not None else 0)
        wanted = _lock(given, until=NEVER, reason="", at=now)
        server, before = asked(config_path, admin)
        held = lock_store.read(config_path).in_force(now)
        known = _entry(before, wanted, exactly=False) if before is not None else None
        if wanted.selector not in held and known is None:
            click.echo(f"not locked: {printable(wanted.name)}; `tlsproxy locks` lists what is", err=True)
            _tell_configured(before, wanted)
            sys.exit(1)
        lock_store.change(config_path, lambda file: _lifted(file, wanted, reason, now))
        click.echo(f"unlocked: {printable(wanted.name)}")
    gone = awaited(config_path, server, lambda status: _entry(status, wanted, exactly=False) is None or None)
    _tell_configured(before, wanted)
    sys.exit(1 if gone is None and server is not None else 0)


@click.command()
@admin_options
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")
def locks(config_path: Path, admin: str | None, *, as_json: bool) -> None:
    """List the locks: whom they hold, what is left of them, who made them and why."""
    now = time.time()
    with explained():
        server, status = asked(config_path, admin)
        own = {key: entry.lock() for key, entry in lock_store.read(config_path).in_force(now).items()}
        configured = _revoked(config_path, status)
    in_force = None if status is None or "locks" not in status else status["locks"]["entries"]
    rows = [(each, _state(each, in_force)) for each in (*own.values(), *configured) if now < each.until]
    if in_force is not None:
        rows += [(each, "not in the file") for each in map(_of_status, in_force) if _missing(each, own)]
    if as_json:
        listed = [{**_as_json(each), "state": state or "in force", "left": _left(each, now)} for each, state in rows]
        click.echo(json.dumps(listed, indent=2))
        return
    for each, state in rows:
        click.echo(f"{_line(each, now)}{f' [{state}]' if state else ''}")
    if not rows:
        click.echo(f"no locks in {lock_path(config_path)}")
    if server is None:
        tell_unasked()


def _lock(given: Mapping[str, str | None], *, until: float, reason: str, at: float) -> Lock:
    """Raises UsageError unless exactly one caller is named, in a form that one could have."""
    kinds = [kind for kind in KINDS if given[kind] is not None]
    if len(kinds) != 1:
        raise click.UsageError("name one caller: SUBJECT, --sha256, --serial, --key or --jti")
    if len(reason) > MAX_TEXT:
        raise click.UsageError(f"--reason has at most {MAX_TEXT} characters")
    try:
        return Lock(kinds[0], given[kinds[0]] or "", given["issuer"] or "", until, operator(), float(int(at)), reason)
    except ValueError as error:
        raise click.UsageError(f"{kinds[0]}: {error}") from None


def operator() -> str:
    """The person at the keyboard: behind sudo, else of the login, else the user."""
    if os.geteuid() == 0:
        for variable in ("SUDO_USER", "DOAS_USER"):
            if name := os.environ.get(variable):
                return printable(name)[:MAX_TEXT]
        try:
            return os.getlogin()
        except OSError:  # no terminal: a job
            pass
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return f"uid {os.getuid()}"


# Changes of the file


def _extended(file: LockFile, wanted: Lock, now: float) -> Lock:
    """The lock that is there already, if it holds as long as this one; else this one."""
    known = file.in_force(now).get(wanted.selector)
    return wanted if known is None or known.lock().until < wanted.until else known.lock()


def _with(file: LockFile, lock: Lock) -> LockFile:
    others = [entry for entry in file.locks if entry.lock().selector != lock.selector]
    return file.model_copy(update={"locks": (*others, FileEntry.of(lock))})


def _lifted(file: LockFile, wanted: Lock, reason: str, now: float) -> LockFile:
    entry = next((each for each in file.locks if each.lock().selector == wanted.selector), FileEntry.of(wanted))
    others = [each for each in file.locks if each.lock().selector != wanted.selector]
    return file.model_copy(update={"locks": (*others, _marked(entry, reason, now))})


def _all_lifted(file: LockFile, empty: LockFile, reason: str) -> LockFile:
    now = time.time()
    marked = (each if each.lifted_at is not None else _marked(each, reason, now) for each in file.locks)
    empty = empty.model_copy(update={"drained": file.drained})
    told = empty.model_copy(update={"locks": tuple(marked)})
    return told if len(write_lock_file(told)) <= LIMIT else empty


def _marked(entry: FileEntry, reason: str, now: float) -> FileEntry:
    mark = {"lifted_by": operator(), "lifted_at": moment(now), "lifted_reason": reason}
    return entry.model_copy(update=mark)


# The gateway


def asked(config_path: Path, admin: str | None) -> tuple[AdminClient | None, dict[str, Any] | None]:
    """The running gateway and its status, if its admin server is there and answers soon."""
    try:
        server = admin_of(config_path, admin)
    except TlsproxyError:
        return None, None
    try:
        return server, server.status(deadline=ASKED)
    except AdminError:
        return (server if server.silent else None), None


def awaited(config_path: Path, server: AdminClient | None, found: Callable[[Mapping[str, Any]], Any]) -> Any:
    """What ``found`` sees in the status once the gateway has read the file. None, and told so, where it has not."""
    if server is None:
        tell_unasked()
        return None
    end, trouble = time.monotonic() + PATIENCE, ""
    while time.monotonic() < end:
        try:
            status = server.status(deadline=ASKED)
        except AdminError as error:
            trouble = str(error)
        else:
            section = status.get("locks")
            if section is None:
                trouble = f"this gateway ({status['version']}) knows no locks: upgrade it"
                break
            if (result := found(status)) is not None:
                return result
            trouble = section["error"] or _other_file(section["file"], lock_path(config_path))
        time.sleep(POLL)
    click.echo(f"error: not in force: {trouble or f'the gateway has not read it within {PATIENCE:g} s'}", err=True)
    return None


def _other_file(theirs: str, ours: Path) -> str:
    if os.path.realpath(theirs) == os.path.realpath(ours):
        return ""
    return f"the gateway reads {theirs}, not {ours}: name its configuration by --config"


def tell_unasked() -> None:
    click.echo("no gateway was asked: one that runs takes it up within two seconds", err=True)


def _entry(
    section: Mapping[str, Any], wanted: Lock, *, exactly: bool = True, configured: bool = False
) -> Mapping[str, Any] | None:
    """The lock in a status, or in its section; ``exactly``: with this end."""
    section = section.get("locks", section)
    until = None if wanted.until == NEVER else wanted.until
    for entry in section.get("entries", ()):
        if _of_status(entry).selector == wanted.selector and entry["configured"] == configured:
            return entry if not exactly or entry["until"] == until else None
    return None


def _tell_configured(status: Mapping[str, Any] | None, wanted: Lock) -> None:
    if status is not None and _entry(status, wanted, exactly=False, configured=True) is not None:
        click.echo("`revoked` of the configuration holds it, until it is removed there", err=True)


def _none_left(status: Mapping[str, Any]) -> bool:
    return all(entry["configured"] for entry in status["locks"]["entries"])


def _of_status(entry: Mapping[str, Any]) -> Lock:
    return Lock(
        entry["kind"],
        entry["value"],
        entry["issuer"] or "",
        NEVER if entry["until"] is None else entry["until"],
        entry["by"],
        entry["at"] or 0.0,
        entry["reason"],
        entry["configured"],
    )


def _tell_effect(entry: Mapping[str, Any], lock: Lock, before: Mapping[str, Any]) -> None:
    """The number of connections that were cut; where there was none, names that may have been meant."""
    cut = entry["cut"]
    if cut is None:
        click.echo("in force")
        return
    click.echo(f"in force: {cut} connection{'s' * (cut != 1)} cut")
    if cut or lock.kind not in {"subject", "key"}:
        return
    live = before.get("connections", {}).get("live", ())
    field = "identity" if lock.kind == "subject" else "key"
    names = list(dict.fromkeys(each[field] for each in live if each[field]))
    if lock.kind == "key":
        names = list(dict.fromkeys([*names, *before.get("keys", ()), *before.get("token_issuers", ())]))
        if lock.value in names:
            return
    hint = did_you_mean(lock.value, names)
    shown = ", ".join(map(printable, names[:_NAMED])) + (f" and {len(names) - _NAMED} more" * (len(names) > _NAMED))
    held = "; if it is of tokens, they are refused from now on" if lock.kind == "subject" else ""
    text = f"nobody of this name is connected{hint}{held}"
    known = f"; {'keys and token issuers' if lock.kind == 'key' else 'connected are'}: {shown}" if names else ""
    click.echo(f"warning: {text}{known}", err=True)


# Lists


def _revoked(config_path: Path, status: Mapping[str, Any] | None) -> list[Lock]:
    """Locks of the configuration in force, else of the file, if it can be read."""
    if status is not None and "locks" in status:
        return [_of_status(each) for each in status["locks"]["entries"] if each["configured"]]
    try:
        config = read_configuration(config_path, os.environ).config
    except TlsproxyError as error:
        click.echo(f"warning: `revoked` is not listed: {str(error).splitlines()[0]}", err=True)
        return []
    return [entry.lock(configured=True) for entry in config.revoked]


def _state(lock: Lock, in_force: list[Mapping[str, Any]] | None) -> str:
    if lock.configured:
        return "revoked in the configuration"
    if in_force is None or _entry({"entries": in_force}, lock) is not None:
        return ""
    return "not in force yet"


def _missing(lock: Lock, own: Mapping[Selector, Lock]) -> bool:
    return not lock.configured and lock.selector not in own


def _left(lock: Lock, now: float) -> float | None:
    return None if lock.until == NEVER else max(lock.until - now, 0.0)


def _as_json(lock: Lock) -> dict[str, Any]:
    until = None if lock.until == NEVER else lock.until
    return {
        "lock": lock.name,
        "kind": lock.kind,
        "value": lock.value,
        "issuer": lock.issuer or None,
        "until": until,
        "by": lock.by,
        "at": lock.at or None,
        "reason": lock.reason,
        "configured": lock.configured,
    }


def _line(lock: Lock, now: float) -> str:
    """`subject CN=alice: until 2026-11-29 02:00:00 UTC, 59 minutes left, since … by root: theft`."""
    left = "no end" if lock.configured else "until unlocked"
    if lock.until != NEVER:
        left = f"until {utc_time(lock.until)}, {span(lock.until - now)} left"
    since = f", since {utc_time(lock.at)}" if lock.at else ""
    by = f" by {printable(lock.by)}" if lock.by else ""
    reason = f": {printable(lock.reason)}" if lock.reason else ""
    return f"{printable(lock.name)}: {left}{since}{by}{reason}"
