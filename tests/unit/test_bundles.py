"""Bundles by URL that cannot be had, kept or trusted: the last good one stays."""

from __future__ import annotations

import asyncio
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from snapshot_site import CLIENT, ROOT, SERVER, SnapshotSite, site
from support.token_issuer import TokenIssuer

from tlsproxy.config.bundle import signed
from tlsproxy.errors import FailureKind, MaterialError
from tlsproxy.snapshot import bundles, jwks
from tlsproxy.snapshot.bundles import Bundles

KEY = Ed25519PrivateKey.generate()
PIECE = b"roles: {guest: {access: r}}"


class Bench:
    """A configuration with a bundle, its server, and the gateway's part that fetches it."""

    def __init__(self, directory: Path, server: TokenIssuer) -> None:
        self.server = server
        self.made: SnapshotSite = site(directory, bundle={"url": f"{server.url}/b", "public_key": "b.pub"})
        self.made.write("b.pub", KEY.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
        self.cache = directory / "configuration.bundle"
        self.bundles = Bundles(self.made.config, {})

    def offer(
        self, version: int, *, expires: float | None = None, piece: bytes = PIECE, padding: int = 0, **files: bytes
    ) -> bytes:
        files |= {"guest.yaml": piece, "padding": bytes(padding)}
        data = signed(KEY, version, time.time(), expires, files)
        self.server.answers["/b"] = (200, data)
        return data

    def first(self) -> str:
        return asyncio.run(self.bundles.first())

    def refreshed(self) -> str:
        """The error of a fetch."""
        asyncio.run(self.bundles.refresh(self.made.build()))
        return "".join(self.bundles.warnings())

    @property
    def version(self) -> int:
        assert self.bundles.current is not None
        return self.bundles.current.version


def test_the_main_file_is_parsed_beside_the_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may have thousands of rules."""
    parsers: list[int] = []
    parse = bundles.bundle_settings
    monkeypatch.setattr(
        bundles, "bundle_settings", lambda *args: (parsers.append(threading.get_ident()), parse(*args))[1]
    )
    with TokenIssuer() as server:
        bench = Bench(tmp_path, server)
        bench.offer(1)
        assert bench.first() == ""
    assert parsers
    assert threading.get_ident() not in parsers


def test_a_bundle_that_cannot_be_taken_leaves_the_last_good_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with TokenIssuer() as server:
        bench = Bench(tmp_path, server)
        with pytest.raises(MaterialError, match="the answer was 404; and there is no earlier one in") as caught:
            bench.first()
        assert caught.value.kind is FailureKind.ENVIRONMENT
        bench.offer(1, expires=time.time() - 1)
        with pytest.raises(MaterialError, match="version 1 expired on"):
            bench.first()
        kept = bench.offer(5)
        assert bench.first() == ""

        bench.offer(6, padding=9000)
        monkeypatch.setattr(bundles, "MAX_BUNDLE", 5000)
        assert "has more than 5000 bytes" in bench.refreshed()
        monkeypatch.undo()

        bench.offer(6)
        in_the_way = tmp_path / ".configuration.bundle.new"
        in_the_way.mkdir()
        assert "configuration.bundle: cannot be written: " in bench.refreshed()
        assert bench.version == 5
        in_the_way.rmdir()

        monkeypatch.setattr(jwks, "DEADLINE", 0.05)
        server.held.add("/b")
        assert "cannot be fetched: no answer within 0.05 s; the former bundle serves" in bench.refreshed()
        monkeypatch.undo()
        server.held.clear()

        assert bench.cache.read_bytes() == kept
        assert bench.refreshed() == ""
        assert bench.version == 6


def test_a_bundle_with_a_broken_certificate_is_not_taken_in_part(tmp_path: Path) -> None:
    piece = PIECE + b"\ntls: {cert: cert, key: key, ca_cert: ca}"
    good = {"cert": SERVER.chain_pem, "key": SERVER.key_pem, "ca": ROOT.certificate_pem}
    with TokenIssuer() as server:
        bench = Bench(tmp_path, server)
        tree = yaml.safe_load(bench.made.config.read_text())
        del tree["tls"]
        bench.made.config.write_text(yaml.safe_dump(tree))
        kept = bench.offer(1, piece=piece, **good)
        assert bench.first() == ""
        for version, (name, data, text) in enumerate(
            (
                ("cert", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "cannot be parsed"),
                ("key", CLIENT.key_pem, "does not belong to the first certificate"),
                ("ca", b"", "ca: "),
            ),
            start=2,
        ):
            bench.offer(version, piece=piece, **{**good, name: data})
            error = bench.refreshed()
            assert f"version {version} of the bundle: " in error
            assert text in error
            assert bench.cache.read_bytes() == kept


def test_a_cache_that_is_lost_lets_no_older_bundle_in(tmp_path: Path) -> None:
    with TokenIssuer() as server:
        bench = Bench(tmp_path, server)
        data = bench.offer(5)
        assert bench.first() == ""
        generation = bench.made.build()
        for lost in (bench.cache.unlink, lambda: bench.cache.write_bytes(b"junk")):
            lost()
            bench.offer(4)
            asyncio.run(bench.bundles.refresh(generation))
            assert "version 4 is older than 5" in bench.bundles.warnings()[0]
            server.answers["/b"] = (200, data)
            asyncio.run(bench.bundles.refresh(generation))
            assert (bench.bundles.warnings(), bench.cache.read_bytes()) == ((), data)


def test_a_cache_that_names_another_file_overwrites_none(tmp_path: Path) -> None:
    with TokenIssuer() as server:
        bench = Bench(tmp_path, server)
        bench.offer(1)
        bench.cache.write_bytes(b"roles: {}")
        with pytest.raises(MaterialError, match="holds something else than a bundle"):
            bench.first()
        assert bench.cache.read_bytes() == b"roles: {}"
        bench.cache.write_bytes(b"")
        assert bench.first() == ""
        assert bench.version == 1


def test_one_that_expired_serves_on_also_after_a_restart(tmp_path: Path) -> None:
    with TokenIssuer() as server:
        bench = Bench(tmp_path, server)
        bench.cache.write_bytes(bench.offer(5, expires=time.time() - 1))
        assert bench.first() == ""
        server.answers.clear()
        assert "the answer was 404; the earlier bundle in" in bench.first()
        assert bench.version == 5


@pytest.mark.parametrize(
    ("failure", "level"), [(RuntimeError("can't start new thread"), "WARNING"), (KeyError("x"), "CRITICAL")]
)
def test_nothing_ends_the_refreshing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, failure: Exception, level: str
) -> None:
    """Neither a lack of threads nor a defect: it is told, and the next fetch is a good one."""

    propose, failures = bundles.propose, [failure]

    def failing(*arguments: Any, **named: Any) -> Any:
        if failures:
            raise failures.pop()
        return propose(*arguments, **named)

    async def until_reload(bench: Bench) -> None:
        generation = bench.made.build()
        bench.offer(6)
        bench.made.configure(bundle={"url": f"{bench.server.url}/b", "public_key": "b.pub", "refresh": 7.0})
        reloads: asyncio.Queue[str] = asyncio.Queue()
        monkeypatch.setattr(bundles, "propose", failing)
        monkeypatch.setattr(bundles, "RETRY", 0.01)
        running = asyncio.create_task(bench.bundles.run(lambda: generation, reloads.put))
        async with asyncio.timeout(20):
            assert await reloads.get() == "bundle"
        running.cancel()

    with TokenIssuer() as server:
        bench = Bench(tmp_path, server)
        bench.offer(5)
        assert bench.first() == ""
        asyncio.run(until_reload(bench))
    assert bench.version == 6
    assert level in {record.levelname for record in caplog.records}


def test_a_cache_that_hangs_holds_up_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    released, keep = threading.Event(), bundles._keep

    def hung(path: Path, document: bytes) -> None:
        assert released.wait(20)
        keep(path, document)

    with TokenIssuer() as server:
        bench = Bench(tmp_path, server)
        bench.offer(5)
        assert bench.first() == ""
        bench.offer(6)
        monkeypatch.setattr(bundles, "_keep", hung)
        monkeypatch.setattr(bundles, "DEADLINE", 0.05)
        assert "configuration.bundle: its file system gives no answer since" in bench.refreshed()
        assert bench.version == 5
        released.set()
