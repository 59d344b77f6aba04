"""The server certificate is replaced in every way that is in use, good files and bad, and no client notices."""

from __future__ import annotations

import itertools
import os
import random
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from support.gateway import Gateway
from support.loading import Load
from support.site import Site
from support.upstream import ScriptedUpstream

from tlsproxy.tls.pki import Issued

LONG = bool(os.environ.get("TLSPROXY_SOAK"))
ROTATIONS = 2_000 if LONG else 60
KEPT, NEW = 24, 8
NAMES = {"common_name": "localhost", "dns": ["localhost"], "ips": ["127.0.0.1"], "server": True}


class Rotation:
    """``server.pem`` and ``server.key``, each replaced as one tool or another does it."""

    def __init__(self, site: Site, gateway: Gateway) -> None:
        self.site = site
        self.gateway = gateway
        self._numbers = itertools.count()

    # The ways. Each may find what another one left, links included.

    def rename_over(self, issued: Issued) -> None:
        self.site.replace("server.key", issued.key_pem)
        self.site.replace("server.pem", issued.chain_pem)

    def rename_over_certificate_first(self, issued: Issued) -> None:
        self.site.replace("server.pem", issued.chain_pem)
        self.site.replace("server.key", issued.key_pem)

    def write_in_place(self, issued: Issued) -> None:
        """Each is cut off, then written (spiffe-helper)."""
        self.site.write("server.pem", issued.chain_pem)
        self.site.write("server.key", issued.key_pem)

    def write_through_another_name(self, issued: Issued) -> None:
        """No notification tells of it: as on a network file system."""
        elsewhere = self._directory("elsewhere")
        for name in ("server.key", "server.pem"):
            os.link((self.site.directory / name).resolve(), elsewhere / name)
        # The new link itself is notified of, and looked at meanwhile.
        self.gateway.hang_up()
        self.gateway.log.wait(lambda line: "reload (sighup)" in line)
        (elsewhere / "server.key").write_bytes(issued.key_pem)
        (elsewhere / "server.pem").write_bytes(issued.chain_pem)

    def swap_links(self, issued: Issued) -> None:
        """certbot: each name is a link into an archive, and is moved on by itself."""
        archive = self._archived(issued)
        for name in ("server.pem", "server.key"):
            self._link(name, f"{archive.name}/{name}")

    def swap_directory(self, issued: Issued) -> None:
        """Kubernetes: the names are links into ..data, which is a link to a directory."""
        archive = self._archived(issued)
        already = all(self._points_into_data(name) for name in ("server.pem", "server.key"))
        self._link("..data", archive.name)
        if not already:
            for name in ("server.pem", "server.key"):
                self._link(name, f"..data/{name}")

    def key_first_with_a_gap(self, issued: Issued) -> None:
        """The other file comes only when the gateway has seen, and told, that they do not belong together."""
        self.site.replace("server.key", issued.key_pem)
        self._refused("does not belong")
        self.site.replace("server.pem", issued.chain_pem)

    def certificate_first_with_a_gap(self, issued: Issued) -> None:
        self.site.replace("server.pem", issued.chain_pem)
        self._refused("does not belong")
        self.site.replace("server.key", issued.key_pem)

    WAYS = (
        rename_over,
        rename_over_certificate_first,
        write_in_place,
        write_through_another_name,
        swap_links,
        swap_directory,
        key_first_with_a_gap,
        certificate_first_with_a_gap,
    )

    def rotate(self, way: Callable[[Rotation, Issued], None], *, ask: Callable[[], None] | None) -> int:
        """Until the gateway serves it. ``ask`` makes it look at once. The serial number."""
        issued = self.site.authority.issue(**NAMES)
        way(self, issued)
        if ask is not None:
            ask()
        shown = f"certificate {issued.serial:x} until"
        self.gateway.log.wait(lambda line: shown in line)
        return issued.serial

    # Bad files

    def truncated(self) -> str:
        self.site.replace("server.pem", (self.site.directory / "server.pem").read_bytes()[:400])
        return "cut off"

    def mismatched(self) -> str:
        self.site.replace("server.key", self.site.authority.issue(**NAMES).key_pem)
        return "does not belong"

    def expired(self) -> str:
        long_ago = datetime.now(UTC) - timedelta(days=9)
        self.swap_directory(self.site.authority.issue(**NAMES, not_before=long_ago, lifetime=timedelta(days=1)))
        return "expired at"

    def empty(self) -> str:
        self.site.write("server.pem", b"")
        return "is empty"

    def garbage(self) -> str:
        self.site.write("server.key", random.Random(7).randbytes(2000))  # noqa: S311 - any bytes
        return "server.key: "

    def removed(self) -> str:
        (self.site.directory / "server.pem").unlink()
        return "does not exist"

    MISTAKES = (truncated, mismatched, expired, empty, garbage, removed)

    def spoil(self, mistake: Callable[[Rotation], str]) -> None:
        self._refused(mistake(self))

    def mend(self) -> None:
        """What a mistake left behind is made usable again for the ways that need a file to be there."""
        self.rotate(Rotation.rename_over, ask=self.gateway.hang_up)

    def _refused(self, reason: str) -> None:
        self.gateway.hang_up()
        self.gateway.log.wait(lambda line: " ERROR " in line and reason in line)

    def _directory(self, label: str) -> Path:
        path = self.site.directory / f"{label}-{next(self._numbers)}"
        path.mkdir()
        return path

    def _archived(self, issued: Issued) -> Path:
        archive = self._directory("archive")
        self.site.write(f"{archive.name}/server.key", issued.key_pem)
        self.site.write(f"{archive.name}/server.pem", issued.chain_pem)
        return archive

    def _link(self, name: str, target: str) -> None:
        link = self.site.directory / f".{name}.link"
        link.symlink_to(target)
        link.replace(self.site.directory / name)

    def _points_into_data(self, name: str) -> bool:
        path = self.site.directory / name
        return path.is_symlink() and str(path.readlink()).startswith("..data/")


def resident(gateway: Gateway) -> int:
    """MiB."""
    pages = int(Path(f"/proc/{gateway.process.pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") >> 20


def descriptors(gateway: Gateway) -> int:
    return len(list(Path(f"/proc/{gateway.process.pid}/fd").iterdir()))


@pytest.mark.soak
@pytest.mark.timeout(3600 if LONG else 120)
def test_no_client_notices(own_site: Site, upstream: ScriptedUpstream) -> None:
    first = own_site.serial("server")
    with Gateway(own_site.write_config(upstream.url)) as gateway:
        gateway.audited(event="start")
        load = Load(own_site, gateway, KEPT, NEW)
        try:
            load.saw(first)
            done = _rotate_all(Rotation(own_site, gateway), load)
            after, open_after = resident(gateway), descriptors(gateway)
            ended = load.end()
        finally:
            load.kill()
        records = gateway.stop()

    assert ended["failures"] == []
    # The load was one, and went on all the time; a certificate may come and go between two of its handshakes.
    assert ended["requests"] > (KEPT + NEW) * 20
    assert ended["handshakes"] > KEPT + ROTATIONS
    assert len(ended["serials"]) > ROTATIONS // 2
    assert done["rotations"] == ROTATIONS
    reloads = Counter((each["reason"], each["result"]) for each in records if each.get("event") == "reload")
    for trigger in ("sighup", "watch", "poll", "admin"):
        assert reloads[trigger, "ok"] > 0, reloads
    assert reloads["sighup", "failed"] > ROTATIONS // 10
    assert not [each for each in records if each.get("event") == "handshake"]
    assert {each["status"] for each in records if "status" in each} == {200}
    assert sum("status" in each for each in records) == ended["requests"]
    assert after < done["memory"] + 30
    assert open_after < done["descriptors"] + 60  # clients come and go; a leak of one a rotation would be 150


def _rotate_all(rotation: Rotation, load: Load) -> dict[str, int]:
    """In a fixed order that mixes all ways, triggers and mistakes."""
    gateway = rotation.gateway
    asks: tuple[Callable[[], None] | None, ...] = (
        gateway.hang_up,
        None,
        gateway.hang_up,
        lambda: _ask_operator(gateway),
        gateway.hang_up,
    )
    choose = random.Random(ROTATIONS)  # noqa: S311 - a fixed mix
    memory, descriptors_then, serial, rotations = 0, 0, 0, 0
    while rotations < ROTATIONS:
        way = Rotation.WAYS[rotations % len(Rotation.WAYS)]
        ask = None if way is Rotation.write_through_another_name else choose.choice(asks)
        serial = rotation.rotate(way, ask=ask)
        rotations += 1
        if rotations == ROTATIONS // 4:
            memory, descriptors_then = resident(gateway), descriptors(gateway)
        if rotations % 5 == 0 and rotations < ROTATIONS:
            rotation.spoil(choose.choice(Rotation.MISTAKES))
            rotation.mend()
            rotations += 1
    load.saw(serial)
    return {"rotations": rotations, "memory": memory, "descriptors": descriptors_then}


def _ask_operator(gateway: Gateway) -> None:
    status, verdict = gateway.ask_admin("/reload", "POST")
    assert status == 200, verdict
