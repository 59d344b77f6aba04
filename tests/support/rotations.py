"""Every way in which an input of a gateway is replaced, good and bad, and what each is to come to.

An :class:`Input` is one thing that is judged for itself. Its good changes are a table, and so are its bad ones, each
with the file that is to be told of. After any of them ``agrees`` says whether a gateway is as it should be: a bad
change leaves what the last good one came to.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import secrets
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, ClassVar, Protocol

import jwt
import yaml
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from jwt.algorithms import ECAlgorithm

from support.certificates import certified, fingerprint
from support.site import Site
from tlsproxy.tls.pki import Authority, Issued

SERVER: dict[str, Any] = {"common_name": "localhost", "dns": ["localhost"], "ips": ["127.0.0.1"], "server": True}
DAY = timedelta(days=1)
JUNK = random.Random(7).randbytes(1 << 20)  # noqa: S311 - any bytes
PAST = datetime.now(UTC) - 9 * DAY

ISSUER = {"name": "login", "issuer": "https://login/", "audience": "qdrant", "algorithm": "ES256"}


class Seen(Protocol):
    """A gateway as an operator and a client see it; the client is `probe`."""

    status: dict[str, Any]

    def role(self) -> str: ...
    def accepts(self, credential: str) -> bool: ...


class Input:
    """``good`` and ``bad`` are the ways; those of ``bad`` return the file that they spoil, which is to be told of.

    ``told`` is that of the last change, and empty where it was a good one.
    """

    path: str
    good: ClassVar[tuple[Callable[[Any], None], ...]]
    bad: ClassVar[tuple[Callable[[Any], str], ...]]

    def __init__(self, site: Site) -> None:
        self.site = site
        self.told = ""
        self.numbers = itertools.count(2)

    @property
    def files(self) -> tuple[str, ...]:
        """Those that are judged together: what is wrong is told of one of them."""
        return (self.path,)

    def agrees(self, seen: Seen) -> bool:
        raise NotImplementedError

    def change(self, way: Callable[[Any], str | None]) -> None:
        self.told = way(self) or ""

    def put(self, data: bytes, name: str = "") -> None:
        """Rename-over, whatever is there."""
        path = self.site.directory / (name or self.path)
        if path.is_dir() and not path.is_symlink():
            path.rmdir()
        self.site.replace(path.name, data)

    def link(self, name: str, target: str) -> None:
        fresh = self.site.directory / f".{name}.link"
        fresh.symlink_to(target)
        path = self.site.directory / name
        if path.is_dir() and not path.is_symlink():
            path.rmdir()
        fresh.replace(path)

    # What may happen to any file

    def torn(self) -> str:
        data = (self.site.directory / self.path).read_bytes() if self._readable() else JUNK
        self.put(data[: min(len(data) // 2, 400)])
        return self.path

    def empty(self) -> str:
        self.put(b"")
        return self.path

    def junk(self) -> str:
        self.put(JUNK)
        return self.path

    def missing(self) -> str:
        self.empty()
        (self.site.directory / self.path).unlink()
        return self.path

    def directory(self) -> str:
        self.missing()
        (self.site.directory / self.path).mkdir()
        return self.path

    def dangling(self) -> str:
        self.link(self.path, "nowhere")
        return self.path

    def _readable(self) -> bool:
        return (self.site.directory / self.path).is_file()


ANY_FILE = (Input.torn, Input.empty, Input.junk, Input.missing, Input.directory, Input.dangling)


class ServerPair(Input):
    """``server.pem`` and ``server.key``. Each way may find what another one left, links included."""

    path = "server.pem"

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        self.serial = site.serial("server")

    @property
    def files(self) -> tuple[str, ...]:
        return ("server.pem", "server.key")

    def agrees(self, seen: Seen) -> bool:
        return int(seen.status["certificate"]["serial"], 16) == self.serial

    def _issued(self) -> Issued:
        issued = self.site.authority.issue(**SERVER)
        self.serial = issued.serial
        return issued

    def renamed(self) -> None:
        issued = self._issued()
        self.put(issued.key_pem, "server.key")
        self.put(issued.chain_pem)

    def renamed_certificate_first(self) -> None:
        issued = self._issued()
        self.put(issued.chain_pem)
        self.put(issued.key_pem, "server.key")

    def written_in_place(self) -> None:
        """Each is cut off, then written (spiffe-helper)."""
        issued = self._issued()
        for name, data in (("server.key", issued.key_pem), ("server.pem", issued.chain_pem)):
            path = self.site.directory / name
            if not path.is_file() or path.resolve() != path:
                self.put(b"", name)
            self.site.write(name, data)

    def written_through_another_name(self) -> None:
        """No notification tells of it: as on a network file system."""
        issued = self._issued()
        for name, data in (("server.key", issued.key_pem), ("server.pem", issued.chain_pem)):
            path, other = self.site.directory / name, self._beside("elsewhere") / name
            if not path.is_file() or path.resolve() == self.site.directory.resolve() / self.path != path:
                self.put(b"", name)  # a file of its own
            os.link(path.resolve(), other)
            other.write_bytes(data)

    def links_moved(self) -> None:
        """certbot: each name is a link into an archive, and is moved on by itself."""
        archive = self._archived(self._issued())
        for name in ("server.pem", "server.key"):
            self.link(name, f"{archive.name}/{name}")

    def directory_swapped(self) -> None:
        """Kubernetes: the names are links into ..data, which is a link to a directory."""
        archive = self._archived(self._issued())
        self.link("..data", archive.name)
        for name in ("server.pem", "server.key"):
            path = self.site.directory / name
            if not (path.is_symlink() and str(path.readlink()).startswith("..data/")):
                self.link(name, f"..data/{name}")

    def combined(self) -> None:
        """One file under both names: nothing to see between the two."""
        issued = self._issued()
        self.put(issued.key_pem + issued.chain_pem)
        self.link("server.key", "server.pem")

    def mismatched(self) -> str:
        self.put(self.site.authority.issue(**SERVER).key_pem, "server.key")
        return "server.key"

    def expired(self) -> str:
        return self._dated(PAST, DAY)

    def not_yet_valid(self) -> str:
        return self._dated(datetime.now(UTC) + DAY, DAY)

    def key_missing(self) -> str:
        self.put(b"", "server.key")
        (self.site.directory / "server.key").unlink()
        return "server.key"

    def key_of_junk(self) -> str:
        self.put(JUNK, "server.key")
        return "server.key"

    def _dated(self, begin: datetime, lifetime: timedelta) -> str:
        issued = self.site.authority.issue(**SERVER, not_before=begin, lifetime=lifetime)
        self.put(issued.key_pem, "server.key")
        self.put(issued.chain_pem)
        return self.path

    def _beside(self, label: str) -> Path:
        path = self.site.directory / f"{label}-{next(self.numbers)}"
        path.mkdir()
        return path

    def _archived(self, issued: Issued) -> Path:
        archive = self._beside("archive")
        for name, data in (("server.key", issued.key_pem), ("server.pem", issued.chain_pem)):
            self.site.write(f"{archive.name}/{name}", data)
        return archive

    good = (
        renamed,
        renamed_certificate_first,
        written_in_place,
        written_through_another_name,
        links_moved,
        directory_swapped,
        combined,
    )
    bad = (*ANY_FILE, mismatched, expired, not_yet_valid, key_missing, key_of_junk)


class Authorities(Input):
    """``ca.pem``: the clients' CA in one form or another, those that stay, and others of which nobody has anything."""

    path = "ca.pem"

    def __init__(self, site: Site, *stay: Authority) -> None:
        super().__init__(site)
        self.stay = stay
        self.parent = Authority.create("a root above it")
        self.bystanders: list[Authority] = []
        self.forms = [site.authority]
        self.step = 1
        self._write()

    def agrees(self, seen: Seen) -> bool:
        return {each["sha256"] for each in seen.status["authorities"]} == {fingerprint(each) for each in self._all()}

    def _all(self) -> list[Authority]:
        return [*self.forms, *self.stay, *self.bystanders]

    def _write(self) -> None:
        self.put(b"".join(each.certificate_pem for each in self._all()[:: self.step]))

    def reissued(self) -> None:
        """The same name and key."""
        self.forms = [certified(self.site.authority, self.site.authority)]
        self._write()

    def reissued_beside_the_old(self) -> None:
        self.forms = [*self.forms[-1:], certified(self.site.authority, self.site.authority)]
        self._write()

    def old_dropped(self) -> None:
        self.forms = self.forms[-1:]
        self._write()

    def cross_signed(self) -> None:
        self.forms = [certified(self.site.authority, self.parent)]
        self._write()

    def cross_signed_with_its_root(self) -> None:
        self.forms = [self.parent, certified(self.site.authority, self.parent)]
        self._write()

    def bystander_added(self) -> None:
        self.bystanders = [*self.bystanders[-3:], Authority.create(f"bystander {next(self.numbers)}")]
        self._write()

    def bystander_removed(self) -> None:
        self.bystanders = self.bystanders[1:]
        self._write()

    def reordered(self) -> None:
        self.step = -self.step
        self._write()

    def annotated(self) -> None:
        """Other bytes, the same CAs."""
        self._write()
        self.put((self.site.directory / self.path).read_bytes() + f"# {next(self.numbers)}\n".encode())

    def a_leaf(self) -> str:
        self.put((self.site.directory / "admin.pem").read_bytes())
        return self.path

    good = (
        reissued,
        reissued_beside_the_old,
        old_dropped,
        cross_signed,
        cross_signed_with_its_root,
        bystander_added,
        bystander_removed,
        reordered,
        annotated,
    )
    bad = (*ANY_FILE, a_leaf)


class RevocationList(Input):
    """``ca.crl``, of the clients' CA; ``others`` are in the file too."""

    path = "ca.crl"

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        self.number = 1
        self.revoked: list[int] = []
        self.others = b""
        self.foreigner = Authority.create("somebody else")
        self._write()

    def agrees(self, seen: Seen) -> bool:
        own = [each for each in seen.status["crls"] if each["issuer"] == self._issuer()]
        return [(each["number"], each["count"]) for each in own] == [(self.number, len(self.revoked))]

    def _issuer(self) -> str:
        return self.site.authority._certificate().subject.rfc4514_string()

    def _pem(self, **dates: datetime) -> bytes:
        return self.site.authority.crl_pem(self.revoked, number=self.number, **dates)

    def _write(self) -> None:
        self.put(self._pem() + self.others)

    def renumbered(self) -> None:
        self.number += 1
        self._write()

    def revoking_a_bystander(self) -> None:
        self.revoked.append(x509.random_serial_number())
        self.renumbered()

    def unchanged(self) -> None:
        """Signed anew, with the number that it had."""
        self._write()

    def der(self) -> None:
        self.number += 1
        crl = x509.load_pem_x509_crl(self._pem())
        self.put(crl.public_bytes(serialization.Encoding.DER))

    def older(self) -> str:
        self.put(self.site.authority.crl_pem([], number=self.number - 1, this_update=PAST, next_update=PAST + 30 * DAY))
        return self.path

    def expired(self) -> str:
        number = self.number + 1
        self.put(self.site.authority.crl_pem(self.revoked, number=number, this_update=PAST, next_update=PAST + DAY))
        return self.path

    def dated_ahead(self) -> str:
        self.put(self.site.authority.crl_pem(self.revoked, number=self.number + 1, this_update=datetime.now(UTC) + DAY))
        return self.path

    def foreign(self) -> str:
        self.put(self.foreigner.crl_pem())
        return self.path

    good = (renumbered, revoking_a_bystander, unchanged, der)
    bad = (*ANY_FILE, older, expired, dated_ahead, foreign)


class Configuration(Input):
    """The YAML: roles, rules, named keys and limits of nobody who is innocent.

    Each time the probe's role has another name, by which one sees that it is in force; ``mapped`` is the common name
    whose holders have the role `guest`.
    """

    def __init__(self, site: Site, path: Path) -> None:
        super().__init__(site)
        self.path = path.name
        self.tree: dict[str, Any] = yaml.safe_load(path.read_text())
        self.shuffle = random.Random(13).shuffle  # noqa: S311 - a fixed mix
        self.role = self.mapped = ""
        self.renamed()

    def agrees(self, seen: Seen) -> bool:
        return seen.role() == self.role

    def renamed(self) -> None:
        number, tree = next(self.numbers), self.tree
        tree["roles"].pop(self.role, None)
        self.role = f"probe-{number % 8}"  # metrics know every role that there was
        tree["roles"][self.role] = {"access": "r"}
        rules = [each for each in tree["identities"] if each["name"] not in {"probe", "guest"}]
        rules.append({"name": "probe", "match": {"cn": "probe"}, "role": self.role})
        if self.mapped:
            rules.append({"name": "guest", "match": {"cn": self.mapped}, "role": "guest"})
        tree["identities"] = rules
        self.put(yaml.safe_dump(tree, sort_keys=False).encode())

    def reordered(self) -> None:
        self.shuffle(self.tree["identities"])
        self.renamed()

    def key_added(self) -> None:
        number = next(self.numbers)
        key = {"name": f"nobody-{number}", "sha256": f"{number:064x}", "role": "guest"}
        self.tree["keys"] = [*self.tree["keys"][:4], key]
        self.renamed()

    def key_removed(self) -> None:
        self.tree["keys"] = self.tree["keys"][:1]
        self.renamed()

    def limits_changed(self) -> None:
        self.tree["limits"]["idle_timeout"] = 60 + next(self.numbers) % 7
        self.renamed()

    def not_yaml(self) -> str:
        self.put(b"roles: [\n" + yaml.safe_dump(self.tree).encode())
        return self.path

    def unknown_role(self) -> str:
        rule = {"name": "astray", "match": {"cn": "astray"}, "role": "no such role"}
        self.put(yaml.safe_dump(self.tree | {"identities": [*self.tree["identities"], rule]}).encode())
        return self.path

    good = (renamed, reordered, key_added, key_removed, limits_changed)
    bad = (*ANY_FILE, not_yaml, unknown_role)


class Secret(Input):
    """``spare.key``: an API key."""

    path = "spare.key"

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        self.key = "none yet"
        self.replaced()

    def agrees(self, seen: Seen) -> bool:
        return seen.accepts(self.key) and not seen.accepts(self.former)

    def replaced(self) -> None:
        self.former, self.key = self.key, secrets.token_hex(16)
        self.put(self.key.encode())

    good = (replaced,)
    bad = (Input.empty, Input.missing, Input.directory, Input.dangling)


class KeySet(Input):
    """``keys.json``: the public keys of an issuer of tokens."""

    path = "keys.json"

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        self.replaced()

    def agrees(self, seen: Seen) -> bool:
        return seen.accepts(self.token)

    def replaced(self) -> None:
        key, kid = ec.generate_private_key(ec.SECP256R1()), str(next(self.numbers))
        public = ECAlgorithm.to_jwk(key.public_key(), as_dict=True) | {"kid": kid, "use": "sig", "alg": "ES256"}
        self.put(json.dumps({"keys": [public]}).encode())
        claims = {"iss": ISSUER["issuer"], "aud": ISSUER["audience"], "exp": 4_000_000_000, "access": "r"}
        self.token = jwt.encode(claims, key, "ES256", {"kid": kid})

    good = (replaced,)
    bad = ANY_FILE
