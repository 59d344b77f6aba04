"""The bench's programs are built when they have to be."""

from __future__ import annotations

import os
from pathlib import Path
from unittest.mock import MagicMock

import pytest

from bench import build


@pytest.fixture
def compiler(monkeypatch: pytest.MonkeyPatch) -> MagicMock:
    told = MagicMock(side_effect=lambda program, _sources, *_more: program.touch())
    monkeypatch.setattr(build, "_compile", told)
    return told


def test_programs_that_are_newer_than_their_sources_are_kept(tmp_path: Path, compiler: MagicMock) -> None:
    programs = build.build(tmp_path)
    compiler.reset_mock()
    assert build.build(tmp_path) == programs
    compiler.assert_not_called()
    os.utime(programs.load, (0, 0))
    build.build(tmp_path)
    assert compiler.called
    compiler.reset_mock()
    programs.upstream.unlink()
    build.build(tmp_path)
    assert compiler.called
