"""The wall clock of a gateway and its workers, as a test sets it; the monotonic one, and OpenSSL's, go on."""

from __future__ import annotations

import struct
from pathlib import Path


class WallClock:
    """``environ`` is for the gateway. ``ahead`` of the system's clock by so many seconds, 0 at first."""

    def __init__(self, directory: Path) -> None:
        self._file = directory / "wall"
        self.ahead = 0.0

    @property
    def environ(self) -> dict[str, str]:
        return {"TLSPROXY_TEST_WALL": str(self._file), "PYTHONPATH": str(Path(__file__).parent / "wallclock")}

    @property
    def ahead(self) -> float:
        return self._ahead

    @ahead.setter
    def ahead(self, seconds: float) -> None:
        self._ahead = seconds
        if not self._file.exists():
            self._file.write_bytes(bytes(8))
        with self._file.open("r+b") as file:  # in place: it is mapped
            file.write(struct.pack("d", seconds))
