"""Build of the compiled form: mypyc translates the modules that pyproject.toml lists, where a build asks for it.

`TLSPROXY_COMPILED` in the environment: `yes` compiles them, `auto` does where there is a C compiler with Python's
headers, and unset or `no` leaves plain Python. Editable installations are always plain.
"""

from __future__ import annotations

import os
import shlex
import shutil
import sys
import sysconfig
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from setuptools import Extension

ROOT: Final = Path(__file__).parent
CHOICES: Final = ("auto", "yes", "no")


def is_compiled() -> bool:
    """Whether the compiled form is to be built. Raises SystemExit for a value that is none."""
    choice = os.environ.get("TLSPROXY_COMPILED") or "no"
    if choice not in CHOICES:
        raise SystemExit(f"error: TLSPROXY_COMPILED={choice} is none of {', '.join(CHOICES)}")
    return choice == "yes" or (choice == "auto" and _has_compiler())


def _has_compiler() -> bool:
    compiler = shlex.split(os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc")[0]
    return shutil.which(compiler) is not None and Path(sysconfig.get_path("include"), "Python.h").exists()


def modules(patterns: list[str]) -> list[str]:
    """Paths of the compiled modules, relative to the root. Raises SystemExit for an entry without a file."""
    found = [sorted(path.relative_to(ROOT) for path in ROOT.glob(pattern)) for pattern in patterns]
    if not all(found):
        raise SystemExit("error: pyproject.toml: an entry of tool.tlsproxy.compiled.modules has no file")
    return [str(path) for paths in found for path in paths if path.name != "__init__.py"]


OWN: Final = ("-fvisibility=hidden", "-fno-semantic-interposition")
"""No function of ours is replaced by a library's of its name, so calls among them may be direct or inlined."""


def extensions(patterns: list[str]) -> list[Extension]:
    from mypyc.build import mypycify  # noqa: PLC0415 - a requirement of this form alone

    options = ["--config-file=", "--cache-dir=build/mypy", "--ignore-missing-imports", "--follow-imports=silent"]
    made = mypycify(
        options + modules(patterns),
        opt_level=os.environ.get("MYPYC_OPT_LEVEL", "2"),
        debug_level="0",
        multi_file=True,  # a single C file of all takes gigabytes
        group_name="tlsproxy",
    )
    for extension in made:
        extension.extra_compile_args = [*extension.extra_compile_args, *OWN]  # a list that all of them share
    return made


if __name__ == "__main__":
    from setuptools import setup

    compiled = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["tlsproxy"]["compiled"]
    building = is_compiled() and not {"bdist_wheel", "build_ext"}.isdisjoint(sys.argv)
    setup(
        setup_requires=[compiled["compiler"]] if is_compiled() else [],
        ext_modules=extensions(compiled["modules"]) if building else [],
    )
