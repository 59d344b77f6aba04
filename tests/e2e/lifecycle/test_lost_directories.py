"""A directory of inputs that is gone, or cannot be read for a while: told of once, and recovered from."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path

from support.gateway import Gateway
from support.hung_files import Unanswering, wait_for_inputs
from support.kept_connection import Caller
from support.site import Site
from support.upstream import ScriptedUpstream

FILES = {"cert": "mount/server.pem", "key": "mount/server.key", "ca_cert": "mount/ca.pem", "crl": ["mount/a.crl"]}

Spoil = Callable[[Path, Unanswering], None]


def gone(mount: Path, _unanswering: Unanswering) -> None:
    mount.rename(mount.with_name("aside"))


def stale(mount: Path, unanswering: Unanswering) -> None:
    unanswering.fail(mount, errno.ESTALE)


def forbidden(mount: Path, unanswering: Unanswering) -> None:
    unanswering.fail(mount, errno.EACCES)  # mode 0000 stops everybody but root, who may run this test


def restore(mount: Path, unanswering: Unanswering) -> None:
    unanswering.answer()
    aside = mount.with_name("aside")
    if aside.exists():
        aside.rename(mount)


def test_it_is_told_of_and_recovered_from(own_site: Site, upstream: ScriptedUpstream, tmp_path: Path) -> None:
    mount = own_site.directory / "mount"
    mount.mkdir()
    for name in ("server.pem", "server.key", "ca.pem"):
        (own_site.directory / name).rename(mount / name)
    own_site.write("mount/a.crl", own_site.authority.crl_pem())
    own_site.write("ca.pem", own_site.authority.certificate_pem)
    unanswering = Unanswering(tmp_path / "unanswering")
    config = own_site.write_config(upstream.url, workers=2, tls={**FILES, "poll_interval": 0.05})
    context = own_site.client()

    with Gateway(config, **unanswering.environ) as gateway, Caller(gateway, context) as early:
        for spoil in (gone, stale, forbidden):
            spoil(mount, unanswering)
            wait_for_inputs(gateway, str(mount))
            with Caller(gateway, context) as late:
                assert (early.ask().status, late.ask().status) == (200, 200)
            restore(mount, unanswering)
            wait_for_inputs(gateway, "ok")
        own_site.write("mount/a.crl", own_site.authority.crl_pem([own_site.serial("admin")], number=2))
        gateway.audited(event="connection", reason="certificate_revoked")
