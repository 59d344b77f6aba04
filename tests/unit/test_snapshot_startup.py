"""The first generation: faults that end a start for good, those that end it for now, and those that it does without."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from snapshot_site import OTHER, ROOT, SERVER, SnapshotSite, hour, site

from tlsproxy.errors import FailureKind, MaterialError
from tlsproxy.snapshot.files import read_inputs
from tlsproxy.snapshot.startup import CannotStart, FirstGeneration, awaited_generation, first_generation

pytestmark = pytest.mark.usefixtures("hasty")


def start(made: SnapshotSite) -> FirstGeneration:
    return first_generation(made.config, {}, read_inputs(made.config, {}), {})


@pytest.mark.parametrize(
    ("name", "data", "text"),
    [
        ("server.key", b"", "server.key: is empty"),
        ("ca.pem", b"no PEM", "ca.pem: holds no PEM block"),
        ("a.crl", b"no PEM", "a.crl: holds no PEM block"),
        ("api", b"two\nlines", "api: a key must be printable ASCII"),
        ("api", None, "api: does not exist"),
    ],
)
def test_a_wrong_input_waits_for_a_person(tmp_path: Path, name: str, data: bytes | None, text: str) -> None:
    made = site(tmp_path, tls={"crl": ["a.crl"]}, service={"api_key_file": "api"})
    made.write("a.crl", ROOT.crl_pem())
    made.write("api", b"a-key\n")
    if data is None:
        (tmp_path / name).unlink()
    else:
        made.write(name, data)
    # Two that are wrong are told together, and what time would mend is not.
    made.serve(ROOT.issue(dns=["x"], server=True, not_before=datetime.now(UTC) + hour(1)) if name == "api" else SERVER)
    if name == "server.key":
        made.write(name, b"")
    with pytest.raises(CannotStart) as caught:
        start(made)
    assert caught.value.kind is FailureKind.INPUT
    assert text in str(caught.value)
    assert "is not valid before" not in str(caught.value)


@pytest.mark.parametrize("name", ["server.pem", "ca.pem", "a.crl", "api"])
def test_a_file_that_cannot_be_read_now_is_tried_again(tmp_path: Path, name: str) -> None:
    made = site(tmp_path, tls={"crl": ["a.crl"]}, service={"api_key_file": "api"})
    made.write("a.crl", ROOT.crl_pem())
    made.write("api", b"a-key\n")
    inputs, path = read_inputs(made.config, {}), tmp_path / name
    failure = MaterialError(str(path), "cannot be read: Input/output error", FailureKind.ENVIRONMENT)
    rest = {one: data for one, data in inputs.files.items() if one != path}
    with pytest.raises(CannotStart, match="a start will be tried again") as caught:
        first_generation(made.config, {}, replace(inputs, files=rest, failures={path: failure}), {})
    assert caught.value.kind is FailureKind.ENVIRONMENT


def test_a_crl_of_a_ca_that_has_gone_keeps_nothing_from_starting(tmp_path: Path) -> None:
    made = site(tmp_path, tls={"crl": ["a.crl", "b.crl"]})
    made.write("a.crl", ROOT.crl_pem())
    made.write("b.crl", OTHER.crl_pem())
    first = start(made)
    assert first.faults == {}
    assert any("is not used: no CA of" in warning for warning in first.generation.material.warnings(0))


def test_a_pair_that_does_not_match_yet_is_waited_for(tmp_path: Path) -> None:
    made, other = site(tmp_path), ROOT.issue(dns=["localhost"], server=True)
    made.write("server.pem", other.chain_pem)
    reasons: list[str] = []

    def announce(reason: str) -> None:
        reasons.append(reason)
        made.write("server.key", other.key_pem)

    first = awaited_generation(made.config, {}, lambda _: {}, announce)
    assert first.generation.material.leaf.serial == f"{other.serial:x}"
    (reason,) = reasons
    assert "does not belong to the first certificate" in reason
    assert reason.endswith(": waiting for it for 5 s")


@pytest.mark.parametrize(("patience", "data", "waits"), [(0.01, None, True), (0, None, False), (5, b"no PEM", False)])
def test_a_pair_that_stays_wrong_waits_for_a_person(
    tmp_path: Path, patience: float, data: bytes | None, *, waits: bool
) -> None:
    """A pair that is wrong in another way is not waited for."""
    made = site(tmp_path, tls={"settle_time": patience})
    made.write("server.key", ROOT.issue(dns=["localhost"], server=True).key_pem if data is None else data)
    reasons: list[str] = []
    with pytest.raises(CannotStart) as caught:
        awaited_generation(made.config, {}, lambda _: {}, reasons.append)
    assert caught.value.kind is FailureKind.INPUT
    assert bool(reasons) is waits
