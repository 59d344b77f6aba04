"""Fixtures of the tests that read a site's files."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from snapshot_site import SnapshotSite, site

from tlsproxy.snapshot import files

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files whose readings disagree are read again without a pause."""
    monkeypatch.setattr(files, "PAUSE", 0.0)


@pytest.fixture
def made(tmp_path: Path) -> SnapshotSite:
    return site(tmp_path)
