"""The first generation: faults that end a start for good, those that end it for now, and those that it does without."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from snapshot_site import OTHER, ROOT, SERVER, SnapshotSite, hour, site

from tlsproxy.errors import FailureKind, MaterialError
from tlsproxy.snapshot import files
from tlsproxy.snapshot.files import read_inputs
from tlsproxy.snapshot.startup import CannotStart, FirstGeneration, first_generation


@pytest.fixture(autouse=True)
def _hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "PAUSE", 0.0)


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
