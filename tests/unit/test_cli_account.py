"""Files read with the rights of a service's account: of a user with groups, and of a unit that runs or does not."""

from __future__ import annotations

import grp
import os
import pwd
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner
from snapshot_site import SnapshotSite, site

from tlsproxy.cli import account
from tlsproxy.cli.account import NOBODY, Account, AccountError, account_of, acting_as
from tlsproxy.cli.check import check

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to be somebody else")
GROUP = grp.getgrgid(0).gr_name


@pytest.fixture
def made() -> Iterator[SnapshotSite]:
    """In a directory that others may enter, as pytest's are not."""
    directory = Path(tempfile.mkdtemp())
    directory.chmod(0o755)
    yield site(directory)
    shutil.rmtree(directory)


def unit(monkeypatch: pytest.MonkeyPatch, **properties: str) -> Account:
    monkeypatch.setattr(account, "_shown", lambda _: properties)
    return account_of("x.service")


def test_accounts(monkeypatch: pytest.MonkeyPatch) -> None:
    nobody = pwd.getpwnam("nobody")
    assert account_of("nobody") == Account("nobody", nobody.pw_uid, nobody.pw_gid, ())
    assert account_of(str(nobody.pw_uid)).uid == nobody.pw_uid
    assert account_of(f"nobody:{GROUP}").groups == (0,)
    assert account_of("nobody:0").groups == (0,)
    for name in ("no-such-user", "nobody:no-such-group", "999999", "nobody:999999"):
        with pytest.raises(AccountError, match="there is no"):
            account_of(name)
    dynamic = unit(monkeypatch, MainPID="0", DynamicUser="yes", SupplementaryGroups=GROUP)
    assert (dynamic.uid, dynamic.gid, dynamic.groups) == (NOBODY, NOBODY, (0,))
    user = unit(monkeypatch, MainPID="0", DynamicUser="no", User="nobody", Group=GROUP)
    assert (user.uid, user.gid) == (nobody.pw_uid, 0)
    assert unit(monkeypatch, MainPID="0", DynamicUser="no").uid == 0
    running = unit(monkeypatch, MainPID=str(os.getpid()), DynamicUser="yes")
    assert (running.uid, running.gid, set(running.groups)) == (os.getuid(), os.getgid(), set(os.getgroups()))
    with pytest.raises(AccountError, match="process 4194305"):
        unit(monkeypatch, MainPID="4194305")


def test_systemd_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(AccountError, match="systemd does not answer about x"):
        account_of("x.service")


@needs_root
def test_rights_are_taken_for_a_while(made: SnapshotSite) -> None:
    key = made.directory / "server.key"
    before = os.geteuid(), os.getegid(), os.getgroups()
    with acting_as(account_of("nobody")), pytest.raises(PermissionError):
        key.read_bytes()
    assert (os.geteuid(), os.getegid(), os.getgroups()) == before
    assert key.read_bytes()


@needs_root
def test_only_root_may(made: SnapshotSite) -> None:
    nobody = account_of("nobody")
    with acting_as(nobody), pytest.raises(AccountError, match="only root"), acting_as(account_of("root")):
        made.config.read_bytes()


@needs_root
def test_a_file_that_the_account_cannot_read_is_an_error(made: SnapshotSite) -> None:
    made.config.write_text(yaml.safe_dump(yaml.safe_load(made.config.read_text()) | {"audit": {"enabled": False}}))
    for name in ("server.pem", "ca.pem", "tlsproxy.yaml"):
        (made.directory / name).chmod(0o644)

    def checked(*options: str) -> tuple[int, str]:
        done = CliRunner().invoke(check, ["--config", str(made.config), *options])
        return done.exit_code, done.output

    key = made.directory / "server.key"
    for mode, group, who, found in (
        (0o600, 0, f"nobody:{GROUP}", 2),
        (0o640, 0, "nobody", 2),
        (0o640, 0, f"nobody:{GROUP}", 0),
    ):
        key.chmod(mode)
        os.chown(key, 0, group)
        for options in ([], ["--reload"]) if found else ([],):
            code, output = checked("--as-user", who, *options)
            assert (code, f"{key}: may not be read as {who} (uid " in output) == (found, found == 2), output
    made.config.chmod(0o600)
    code, output = checked("--as-user", "nobody", "--reload")
    assert (code, "tlsproxy.yaml: may not be read as nobody" in output) == (2, True)
    assert checked()[0] == 0
    assert checked("--as-user", "no-such-user") == (
        2,
        "error: there is no user 'no-such-user'; of a service with DynamicUser= name the unit\n",
    )
