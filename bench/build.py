"""The load generator and the upstream: small C programs, built where they run."""

from __future__ import annotations

import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from hpack.huffman_constants import REQUEST_CODES, REQUEST_CODES_LENGTH

from bench.errors import CannotBuildError

_SOURCES = Path(__file__).parent / "native"
_FLAGS = ("-O2", "-std=gnu11", "-Wall", "-Wextra", "-Werror")
_LOAD = ("load.c", "http1.c", "grpc.c", "hpack.c", "meter.c")
_UPSTREAM = ("upstream.c", "upstream_h2.c", "hpack.c")
NEEDED = "the benchmark needs a C compiler and OpenSSL's headers: apt-get install gcc libc6-dev libssl-dev"


@dataclass(frozen=True, slots=True)
class Programs:
    load: Path
    upstream: Path


def missing() -> str | None:
    """What to install, if anything is."""
    with tempfile.TemporaryDirectory() as directory:
        source = Path(directory, "probe.c")
        source.write_text("#include <openssl/ssl.h>\nint main(void) { return !TLS_client_method(); }\n")
        try:
            _compile(Path(directory, "probe"), [source], "-lssl", "-lcrypto")
        except CannotBuildError:
            return NEEDED
    return None


def build(directory: Path) -> Programs:
    """Unless they are there, and newer than what they are made of. Raises CannotBuildError."""
    programs = Programs(directory / "load", directory / "upstream")
    if not _is_built(programs):
        _build(directory, programs)
    return programs


def _is_built(programs: Programs) -> bool:
    changed = max(source.stat().st_mtime for source in (*_SOURCES.iterdir(), Path(__file__)))
    return all(each.exists() and each.stat().st_mtime > changed for each in (programs.load, programs.upstream))


def _build(directory: Path, programs: Programs) -> None:
    if (lacking := missing()) is not None:
        raise CannotBuildError(lacking)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "huffman.h").write_text(_huffman())
    _compile(programs.load, [_SOURCES / name for name in _LOAD], f"-I{directory}", "-lssl", "-lcrypto")
    _compile(programs.upstream, [_SOURCES / name for name in _UPSTREAM], f"-I{directory}")


def _compile(program: Path, sources: list[Path], *more: str) -> None:
    command = ["cc", *_FLAGS, "-o", str(program), *map(str, sources), *more]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise CannotBuildError(NEEDED) from None
    if done.returncode:
        raise CannotBuildError(done.stderr)


def _huffman() -> str:
    """HPACK's code (RFC 7541 appendix B), from the library that tlsproxy has it from."""
    codes, lengths = (", ".join(map(str, numbers)) for numbers in (REQUEST_CODES, REQUEST_CODES_LENGTH))
    return (
        f"static const unsigned huffman_codes[] = {{{codes}}};\n"
        f"static const unsigned char huffman_lengths[] = {{{lengths}}};\n"
    )
