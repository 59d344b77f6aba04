"""Wheels of distributions that are installed beside the tests: pip installs them elsewhere without an index."""

from __future__ import annotations

import zipfile
from importlib.metadata import Distribution, distributions
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

_OF_AN_INSTALLATION = {"RECORD", "INSTALLER", "REQUESTED", "direct_url.json"}


def wheelhouse(directory: Path, *requirements: str) -> bool:
    """Fill a directory with these and what they need, for this version of Python. False where one is not installed."""
    waiting, packed = list(map(Requirement, requirements)), set[str]()
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        if name in packed or (requirement.marker is not None and not requirement.marker.evaluate({"extra": ""})):
            continue
        packed.add(name)
        found = max(distributions(name=name), key=lambda each: Version(each.version), default=None)
        if found is None or found.version not in requirement.specifier:
            return False
        _pack(found, name, directory)
        waiting += map(Requirement, found.requires or ())
    return True


def _pack(distribution: Distribution, name: str, directory: Path) -> None:
    tag = next(line.split()[1] for line in (distribution.read_text("WHEEL") or "").splitlines() if "Tag: " in line)
    wheel = directory / f"{name.replace('-', '_')}-{distribution.version}-{tag}.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for file in distribution.files or ():
            if ".." in file.parts or file.suffix == ".pyc":  # programs and bytecode, which pip makes anew
                continue
            if len(file.parts) != 2 or file.name not in _OF_AN_INSTALLATION:
                archive.write(str(file.locate()), str(file))
        record = str(next(file for file in distribution.files or () if file.match("*.dist-info/RECORD")))
        archive.writestr(record, "".join(f"{each},,\n" for each in [*archive.namelist(), record]))
