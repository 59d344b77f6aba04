"""Files that the commands make: never overwritten without `--force`, and never half-written."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

import click

from tlsproxy.errors import MaterialError

SECRET: Final = 0o600
PUBLIC: Final = 0o644


def write_all(files: list[tuple[Path, bytes, int]], *, force: bool) -> None:
    """Write these files (path, content, mode), or none where one is there already and ``force`` is not given."""
    for path, _, _ in files:
        if not force and os.path.lexists(path):
            raise MaterialError(str(path), "exists; --force overwrites it")
    try:
        for path, data, mode in files:
            path.parent.mkdir(parents=True, exist_ok=True)
            _write(path, data, mode, force=force)
            click.echo(f"wrote {path}")
    except OSError as error:
        raise MaterialError(str(error.filename or files[0][0]), f"cannot be written: {error.strerror}") from None


def _write(path: Path, data: bytes, mode: int, *, force: bool) -> None:
    """Write whole or not at all. With O_EXCL the mode is right from the first moment, and no link is followed."""
    scratch = path.with_name(f".{path.name}.new")
    scratch.unlink(missing_ok=True)
    with os.fdopen(os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
        file.write(data)
    try:
        if force:
            scratch.replace(path)
        else:
            path.hardlink_to(scratch)  # unlike a rename, it fails where the name is taken
    finally:
        scratch.unlink(missing_ok=True)
