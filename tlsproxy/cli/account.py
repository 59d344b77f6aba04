"""Accounts of a service: reading of files with another account's rights, to find what it could not read."""

from __future__ import annotations

import grp
import os
import pwd
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tlsproxy.errors import FailureKind, TlsproxyError

NOBODY: Final = 65534
"""Stands for the account that systemd makes with DynamicUser=: it owns no file either."""
DEADLINE: Final = 10.0
"""Seconds for systemctl to answer."""

_PROPERTIES: Final = ("MainPID", "User", "Group", "DynamicUser", "SupplementaryGroups", "LoadState")


class AccountError(TlsproxyError):
    """An account that does not exist, or whose rights cannot be taken."""

    kind = FailureKind.INPUT


@dataclass(frozen=True, slots=True)
class Account:
    """``groups`` are all but ``gid``."""

    name: str
    uid: int
    gid: int
    groups: tuple[int, ...]


def account_of(name: str) -> Account:
    """The account of a user (`NAME`, or `NAME:GROUP,GROUP` with further groups), or of a unit (`NAME.service`).

    A unit that runs has the account of its main process. Raises AccountError.
    """
    if name.endswith(".service"):
        return _of_unit(name, _shown(name))
    user, _, groups = name.partition(":")
    return _of_user(name, user, groups.split(",") if groups else ())


@contextmanager
def acting_as(account: Account) -> Iterator[None]:
    """Files are opened with the rights of this account, by the whole process: nothing may be imported meanwhile.

    Raises AccountError if not root.
    """
    uid, gid, groups = os.geteuid(), os.getegid(), os.getgroups()
    try:
        os.setgroups(account.groups)
        os.setegid(account.gid)
        os.seteuid(account.uid)
    except PermissionError:
        raise AccountError(f"only root can read files as {account.name}") from None
    try:
        yield
    finally:
        os.seteuid(uid)
        os.setegid(gid)
        os.setgroups(groups)


def unreadable(account: Account, paths: Iterable[Path]) -> list[Path]:
    """Paths that exist and that the account may not open. Raises AccountError if not root."""
    with acting_as(account):
        return [path for path in paths if not _opens(path)]


def _opens(path: Path) -> bool:
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC))
    except PermissionError:
        return False
    except OSError:  # no matter of rights
        return True
    return True


def _of_user(name: str, user: str, groups: Iterable[str]) -> Account:
    try:
        entry = pwd.getpwuid(int(user)) if user.isdecimal() else pwd.getpwnam(user)
    except KeyError:
        raise AccountError(f"there is no user {user!r}; of a service with DynamicUser= name the unit") from None
    found = {*os.getgrouplist(entry.pw_name, entry.pw_gid), *map(_group, groups)} - {entry.pw_gid}
    return Account(name, entry.pw_uid, entry.pw_gid, tuple(sorted(found)))


def _group(name: str) -> int:
    try:
        return grp.getgrgid(int(name)).gr_gid if name.isdecimal() else grp.getgrnam(name).gr_gid
    except KeyError:
        raise AccountError(f"there is no group {name!r}") from None


def _of_unit(unit: str, properties: Mapping[str, str]) -> Account:
    if int(properties.get("MainPID") or 0):
        return _of_process(unit, int(properties["MainPID"]))
    groups = properties.get("SupplementaryGroups", "").split()
    if properties.get("DynamicUser") == "yes":
        return Account(unit, NOBODY, NOBODY, tuple(map(_group, groups)))
    user = _of_user(unit, properties.get("User") or "root", groups)
    if own := properties.get("Group"):
        return Account(unit, user.uid, _group(own), user.groups)
    return user


def _of_process(unit: str, process: int) -> Account:
    try:
        lines = Path(f"/proc/{process}/status").read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise AccountError(f"the account of {unit} (process {process}) cannot be found: {error.strerror}") from None
    fields = {name: value.split() for name, _, value in (line.partition(":") for line in lines)}
    gid, groups = int(fields["Gid"][0]), tuple(map(int, fields["Groups"]))
    return Account(unit, int(fields["Uid"][0]), gid, groups)


def _shown(unit: str) -> dict[str, str]:
    command = ["systemctl", "show", f"--property={','.join(_PROPERTIES)}", "--", unit]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE, check=True)  # noqa: S603 - no shell
    except (OSError, subprocess.SubprocessError):
        raise AccountError(f"systemd does not answer about {unit}; name a user: NAME:GROUP,GROUP") from None
    properties = dict(line.split("=", 1) for line in done.stdout.splitlines() if "=" in line)
    if properties.get("LoadState") != "loaded":
        raise AccountError(f"systemd knows no unit {unit}")
    return properties
