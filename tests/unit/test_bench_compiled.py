"""The bench's compiled form of tlsproxy is that of the present sources, or none. Nothing is compiled here."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from bench import compiled
from bench.errors import AbsentError
from bench.peers import OURS, PEERS, PLAIN


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = tmp_path / "checkout"
    (root / "tlsproxy").mkdir(parents=True)
    for name in (*compiled._FILES, "tlsproxy/cli.py"):
        (root / name).write_text("1")
    monkeypatch.setattr(compiled, "_ROOT", root)
    return root


def test_the_forms_are_told_apart(checkout: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    assert " plain " in PEERS[OURS].locate(data / "venv").version
    with pytest.raises(AbsentError, match="itself is plain here: it is not compiled: python -m bench compile"):
        PEERS[PLAIN].locate(data / "venv")

    (data / "compiled.sources").write_text(compiled._digest(checkout))
    ours, plain = (PEERS[name].locate(data / "venv") for name in (OURS, PLAIN))
    assert (ours.path, plain.path) == (str(data / "compiled/bin/python"), sys.executable)
    assert (" compiled " in ours.version, " plain " in plain.version) == (True, True)

    (checkout / "tlsproxy/cli.py").write_text("2")
    with pytest.raises(AbsentError, match="of other sources"):
        compiled.interpreter(data)
    assert PEERS[OURS].locate(data / "venv").path == sys.executable


def test_what_cannot_be_compiled_leaves_nothing_that_would_pass_for_it(
    checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def pip(_python: Path, *arguments: str) -> None:
        assert {path.name for path in Path(arguments[-1]).rglob("*.*")} >= {"setup.py", "cli.py"}
        assert not list(Path(arguments[-1]).rglob("*.so"))
        raise AbsentError("no compiler")

    monkeypatch.setattr(compiled, "_pip", pip)
    (checkout / "tlsproxy/left.so").write_text("of another build")
    (tmp_path / "compiled.sources").write_text("other sources")
    said: list[str] = []
    with pytest.raises(AbsentError, match="no compiler"):
        compiled.compile_form(tmp_path, said.append)
    assert len(said) == 1
    with pytest.raises(AbsentError, match="not compiled"):
        compiled.interpreter(tmp_path)
