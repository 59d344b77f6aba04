"""What a JSON text takes to be read is no more than is asked for before, whatever it is made of."""

from __future__ import annotations

import subprocess
import sys

from tlsproxy.wire.cooperative import at_once
from tlsproxy.wire.strict_json import counting, memory_of

SHAPES = {
    "arrays": b"[],",
    "objects": b"{},",
    "nested arrays": b"[" * 100 + b"]" * 100 + b",",
    "nested objects": b'{"a":' * 100 + b"1" + b"}" * 100 + b",",
    "objects of one": b'{"a":{}},',
    "objects of six": b'{"a":1,"b":1,"c":1,"d":1,"e":1,"f":1},',
    "short strings": b'"ab",',
    "wide strings": '"a😀",'.encode(),
    "numbers": b"1.5,",
    "small numbers": b"-9,",
    "long numbers": b"0.12345678,",
}
MEASURED = """
import sys
from pathlib import Path
from tlsproxy.service import runtime
from tlsproxy.wire.strict_json import reading_json

def resident(line):
    return int(Path("/proc/self/status").read_text().split(line + ":")[1].split()[0]) << 10

runtime.tune_allocator()
for unit in map(bytes.fromhex, sys.argv[1:]):
    text = b"[%b0]" % (unit * (1_000_000 // len(unit)))
    before, asked = resident("VmRSS"), 0
    Path("/proc/self/clear_refs").write_text("5")
    for wanted in reading_json(text):
        asked = max(asked, wanted or 0)
    print(asked, resident("VmHWM") - before)
"""


def test_no_more_is_taken_than_is_asked_for() -> None:
    command = [sys.executable, "-c", MEASURED, *(unit.hex() for unit in SHAPES.values())]
    told = subprocess.run(command, capture_output=True, text=True, check=True, timeout=50).stdout
    for shape, line in zip(SHAPES, told.splitlines(), strict=True):
        asked, taken = map(int, line.split())
        assert taken <= asked * 1.1 + (2 << 20), f"{shape}: a tenth, and what Python and malloc keep"


def test_the_largest_body_of_vectors_fits_by_default() -> None:
    """`service.max_request_size_mb` of them, read and written anew under `limits.inspection_memory_mb`."""
    vector = b",".join([b"0.1234567"] * 1000)
    point = b'{"id":1,"vector":[%b],"payload":{"a":"b"}},' % vector
    text = b'{"points":[%b{"id":2}]}' % (point * ((31 << 20) // len(point)))
    assert len(text) + memory_of(text, at_once(counting(text))) <= 256 << 20
