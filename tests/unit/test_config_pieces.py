"""Pieces of a configuration: merged by sections, with positions and paths of the file that has them."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from snapshot_site import site
from support.rows import rows

from tlsproxy.config import pieces as pieces_of_configurations
from tlsproxy.config.loader import Loaded, bundle_settings, parse
from tlsproxy.config.pieces import MAX_FILES, Piece, packed, patterns, unpacked
from tlsproxy.config.problems import ConfigError
from tlsproxy.errors import MaterialError
from tlsproxy.snapshot.diff import changes_between
from tlsproxy.snapshot.files import read_configuration, read_inputs

FILE = Path("/etc/tlsproxy/tlsproxy.yaml")
MAIN = "include: conf.d/*.yaml\ntls: {cert: server.pem, key: server.key, ca_cert: ca.pem}\n"
ROLES = "roles:\n  search: {access: r}\n"
RULES = "identities:\n  - {name: searchers, match: {ou: search}, role: search}\n"


def load(*pieces: str, main: str = MAIN, **environ: str) -> Loaded:
    return parse(
        main.encode(), FILE, environ, [Piece(named(index), text.encode()) for index, text in enumerate(pieces)]
    )


def named(index: int) -> Path:
    return Path(f"/etc/tlsproxy/conf.d/{index}.yaml")


def problems(*pieces: str, main: str = MAIN) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(*pieces, main=main)
    return [str(problem).removeprefix("/etc/tlsproxy/") for problem in caught.value.problems]


def test_sections_merge_by_key_and_lists_are_joined_in_order() -> None:
    loaded = load(
        ROLES + RULES + "tls: {crl: [a.crl]}\nlimits:\n",
        "roles: {admin: {access: m}}\nidentities: [{name: admins, match: {ou: admin}, role: admin}]\n"
        "tls: {crl: [b.crl]}\nlimits: {connections: 7}\n",
        main=MAIN + "identities: [{name: first, match: {cn: first}, role: admin}]\n",
    )
    assert [rule.name for rule in loaded.config.identities] == ["first", "searchers", "admins"]
    assert list(loaded.config.roles) == ["search", "admin"]
    assert loaded.config.limits.connections == 7
    assert loaded.files == (str(named(0)), str(named(1)))
    assert loaded.warnings == ()


def test_relative_paths_are_relative_to_the_file_that_has_them() -> None:
    config = load(
        ROLES + RULES + "tls: {crl: [a.crl, /b.crl]}\n",
        "jwt_issuers: [{name: a, issuer: i, audience: q, algorithm: ES256, pem: a.pem}]\n",
        main=MAIN + "jwt_issuers: [{name: b, issuer: j, audience: q, algorithm: ES256, pem: b.pem}]\n",
        QDRANT__SERVICE__API_KEY_FILE="key",
    ).config
    base = Path("/etc/tlsproxy")
    assert (config.tls.cert, config.tls.crl) == (base / "server.pem", (base / "conf.d/a.crl", Path("/b.crl")))
    assert [issuer.pem for issuer in config.jwt_issuers] == [base / "b.pem", base / "conf.d/a.pem"]
    assert config.service.api_key_file == base / "key"
    assert config.audit.dir == base / "audit"
    assert load("audit: {log_api: false}\n", ROLES + RULES).config.audit.dir == base / "audit"


def test_a_list_of_the_environment_is_relative_to_the_main_file() -> None:
    config = load(ROLES + RULES + "tls: {crl: [a.crl]}\n", QDRANT__TLS__CRL="[b.crl, c.crl]").config
    assert config.tls.crl == (Path("/etc/tlsproxy/b.crl"), Path("/etc/tlsproxy/c.crl"))


@rows(
    ("pieces", "expected"),
    [
        ([ROLES, ROLES + RULES], "conf.d/1.yaml:2:3 roles.search: set twice: the first is in {0}:2:3"),
        (["tls: {cert: b.pem}", ROLES], "conf.d/0.yaml:1:7 tls.cert: set twice: the first is in {main}:2:7"),
        (["workers: 2", "workers: 2"], "conf.d/1.yaml:1:1 workers: set twice: the first is in {0}:1:1"),
        (["roles: []", ROLES], "conf.d/1.yaml:1:1 roles: set twice: the first is in {0}:1:1"),
        (
            ["include: x.yaml"],
            "conf.d/0.yaml:1:1 include: a piece includes no other: name all of them in the main file",
        ),
        (["roles: &a {search: {access: r}}", "keys: *a"], "conf.d/1.yaml:1:7 not YAML: found undefined alias"),
        (["- a"], "conf.d/0.yaml:1:1 the file must be a mapping of sections"),
        ([ROLES, "\nrolls: {}"], "conf.d/1.yaml:2:1 rolls: unknown key (did you mean 'roles'?)"),
        (
            [RULES, "identities:\n  - {name: x, match: {cn: a}, role: y}"],
            "conf.d/1.yaml:2:31 identities[1].role: no role is called 'y'",
        ),
        (["service: {api_key_file: 'http://x'}"], "conf.d/0.yaml:1:11 service.api_key_file: a URL is not fetched"),
    ],
)
def test_a_problem_has_the_position_in_its_own_file(pieces: list[str], expected: str) -> None:
    told = problems(*pieces)
    wanted = expected.format(named(0), main=FILE)
    assert any(problem.startswith(wanted) for problem in told), told


def test_problems_of_all_files_are_told_in_their_order() -> None:
    told = problems("rolls: {}", "rolls: {}\nx: 1", main=MAIN + "y: 1\n")
    assert [problem.split()[0] for problem in told][:4] == [
        "tlsproxy.yaml:1:1",
        "tlsproxy.yaml:3:1",
        "conf.d/0.yaml:1:1",
        "conf.d/1.yaml:2:1",
    ]


@rows(
    "entry", ['""', "conf.*/a.yaml", "https://a/b.yaml", "[a.yaml, '**/b.yaml']", "7", "[7]", "{a: b}", "..", "[['a']]"]
)
def test_an_entry_that_cannot_be_used_is_told_with_its_position(entry: str) -> None:
    told = problems(main=MAIN.replace("conf.d/*.yaml", entry))
    assert any(problem.startswith("tlsproxy.yaml:1:") for problem in told), told


def test_null_sets_nothing_that_is_set() -> None:
    assert load(ROLES + RULES, "roles:\nlimits:\nworkers: null\n", main=MAIN + "workers: 3\n").config.workers == 3


def test_a_section_whose_name_is_escaped_counts() -> None:
    (pattern,) = patterns(MAIN.replace("include", '"incl\\x75de"').encode(), FILE)
    assert pattern.path == FILE.parent / "conf.d/*.yaml"
    escaped = b'"b\\u0075ndle": {url: "https://h/b", public_key: b.pub}'
    assert bundle_settings(escaped, FILE, {}) is not None


def test_no_environment_variable_includes() -> None:
    (warning,) = load(ROLES + RULES, QDRANT__INCLUDE="x.yaml").warnings
    assert "include cannot be set in the environment" in str(warning)


def test_values_of_all_files_are_bounded_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces_of_configurations, "MAX_VALUES", 100)
    piece = "revoked: [" + ", ".join(["1"] * 60) + "]"
    assert problems(piece, piece) == ["conf.d/1.yaml:1:1 too many values, all files together"]


@given(st.binary(), st.lists(st.tuples(st.binary(min_size=1).filter(lambda name: b"\0" not in name), st.binary())))
def test_packed_files_are_unpacked(main: bytes, files: list[tuple[bytes, bytes]]) -> None:
    pieces = tuple(Piece(Path("/" + os.fsdecode(name).strip("/")), data) for name, data in files)
    assert unpacked(packed(main, pieces)) == (main, pieces)


@given(st.dictionaries(st.sampled_from("abcdefgh"), st.integers(0, 3), min_size=1))
def test_roles_of_any_distribution_over_files_are_those_of_one_file(places: dict[str, int]) -> None:
    def text(where: int | None) -> str:
        chosen = [name for name, place in places.items() if where in (None, place)]
        rules = "".join(f"- {{name: {name}, match: {{cn: {name}}}, role: {name}}}\n" for name in chosen)
        roles = "".join(f"  {name}: {{access: r}}\n" for name in chosen)
        return f"roles:\n{roles}identities:\n{rules}" if chosen else "roles:\n"

    whole, parts = load(text(None)).config, load(*map(text, range(4))).config
    assert parts.roles == whole.roles
    assert sorted(rule.name for rule in parts.identities) == sorted(rule.name for rule in whole.identities)


# Files


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A directory with conf.d/, and a configuration that includes its files."""
    made = site(tmp_path)
    made.config.write_text("include: conf.d/*.yaml\n" + made.config.read_text())
    (tmp_path / "conf.d").mkdir()
    return tmp_path


def read(place: Path) -> Loaded:
    return read_configuration(place / "tlsproxy.yaml", {})


def names(loaded: Loaded) -> list[str]:
    return [Path(file).name for file in loaded.files]


def failure(place: Path) -> str:
    with pytest.raises((ConfigError, MaterialError)) as caught:
        read(place)
    return str(caught.value)


def test_matching_files_are_read_by_name_and_no_hidden_or_other_ones(place: Path) -> None:
    assert read(place).files == ()
    for name in ("b.yaml", "B.yaml", "10.yaml", "9.yaml", ".hidden.yaml", "b.yaml~", "c.yml", "ä.yaml"):
        (place / "conf.d" / name).touch()
    (place / "conf.d/directory.yaml").mkdir()
    assert names(read(place)) == ["10.yaml", "9.yaml", "B.yaml", "b.yaml", "ä.yaml"]


def test_a_layout_of_kubernetes_is_read_through_its_links(place: Path) -> None:
    (place / "conf.d/..1").mkdir()
    (place / "conf.d/..1/a.yaml").write_text("workers: 2")
    (place / "conf.d/..data").symlink_to("..1")
    (place / "conf.d/a.yaml").symlink_to("..data/a.yaml")
    assert read(place).config.workers == 2


@pytest.mark.parametrize(
    ("name", "make", "text"),
    [
        ("a.yaml", lambda path: path.symlink_to("nowhere"), "does not exist"),
        ("a.yaml", lambda path: path.symlink_to("a.yaml"), "leads back to itself"),
        ("a.yaml", os.mkfifo, "is a named pipe"),
        ("a.yaml", lambda path: path.write_bytes(b"#" * (1 << 20) + b"\n"), "at most 1048576 are read"),
        ("a.yaml", lambda path: path.write_bytes(b"\xff"), "not UTF-8"),
    ],
)
def test_a_file_that_cannot_be_used_is_named(place: Path, name: str, make: Callable[[Path], object], text: str) -> None:
    make(place / "conf.d" / name)
    told = failure(place)
    assert f"conf.d/{name}" in told
    assert text in told


@pytest.mark.parametrize(
    ("entry", "text"),
    [
        ("conf.e/*.yaml", "there is no directory"),
        ("server.pem/*.yaml", "there is no directory"),
        ("gone.yaml", "gone.yaml: does not exist"),
        ("conf.d", "is a directory"),
        ("'*.yaml'", "is this file itself"),
    ],
)
def test_an_entry_that_leads_nowhere_is_an_error_with_its_position(place: Path, entry: str, text: str) -> None:
    config = place / "tlsproxy.yaml"
    config.write_text(config.read_text().replace("conf.d/*.yaml", entry))
    told = failure(place)
    assert text in told
    assert "tlsproxy.yaml:1:1" in told or entry == "conf.d"


def test_files_are_bounded_in_number_and_together(place: Path) -> None:
    for index in range(5):
        (place / f"conf.d/{index}.yaml").write_bytes(b"#" * ((1 << 20) - 1) + b"\n")
    assert "more than 4 MiB together" in failure(place)
    for index in range(MAX_FILES + 1):
        (place / f"conf.d/{index}.yaml").write_bytes(b"")
    assert f"more than {MAX_FILES} files are included" in failure(place)


@pytest.mark.usefixtures("hasty")
def test_a_broken_file_leaves_the_former_configuration_whole(place: Path) -> None:
    config, piece = place / "tlsproxy.yaml", place / "conf.d/a.yaml"
    piece.write_text("workers: 2")
    first = read_inputs(config, {})
    breaks: list[Callable[[], object]] = [
        lambda: piece.write_text("workers: two"),
        lambda: piece.chmod(0),
        lambda: (place / "conf.d").rename(place / "x"),
    ]
    for break_it in breaks:
        break_it()
        broken = read_inputs(config, {}, earlier=first)
        assert broken.loaded.config == first.loaded.config
        if os.geteuid() or not (place / "conf.d").exists():
            assert config in broken.failures
        with contextlib.suppress(OSError):
            (place / "x").rename(place / "conf.d")
        piece.chmod(0o600)
        piece.write_text("workers: 2")
    assert read_inputs(config, {}, earlier=first).digest == first.digest


@pytest.mark.usefixtures("hasty")
def test_a_file_that_comes_changes_or_goes_is_a_change_by_name(tmp_path: Path, place: Path) -> None:
    made = site(tmp_path)
    made.config.write_text("include: conf.d/*.yaml\n" + made.config.read_text())
    piece = place / "conf.d/a.yaml"
    first = made.build()
    told = []
    edits: list[Callable[[], object]] = [
        lambda: piece.write_text("log_level: WARN"),
        lambda: piece.write_text("log_level: ERROR"),
        piece.unlink,
    ]
    for change in edits:
        change()
        second = made.build(first)
        assert second.config_sha256 != first.config_sha256
        told += [(each.what, Path(each.name).name, each.how) for each in changes_between(first, second)]
        first = second
    assert told == [
        ("setting", "log_level", "changed"),
        ("file", "a.yaml", "added"),
        ("setting", "log_level", "changed"),
        ("file", "a.yaml", "changed"),
        ("setting", "log_level", "changed"),
        ("file", "a.yaml", "removed"),
    ]


# A bundle that is not there


@pytest.mark.parametrize(
    ("url", "key", "text"),
    [
        ("http://127.0.0.1:9/b", "gone.pub", "gone.pub: does not exist"),
        ("unix:/b", "server.pem", "tlsproxy.yaml:1:10 bundle.url: https://host/path is expected"),
        ("http://10.0.0.1/b", "server.pem", "tlsproxy.yaml:1:10 bundle.url: keys over plain http"),
        ("http://127.0.0.1:9/b", "server.pem", "configuration.bundle: there is no bundle that was fetched"),
    ],
)
def test_a_bundle_that_cannot_be_had_is_told(place: Path, url: str, key: str, text: str) -> None:
    config = place / "tlsproxy.yaml"
    config.write_text(f"bundle: {{url: '{url}', public_key: {key}}}\n" + config.read_text())
    assert text in failure(place)
