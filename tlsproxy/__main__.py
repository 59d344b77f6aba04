"""`python -m tlsproxy` is the command `tlsproxy`."""

from __future__ import annotations

from tlsproxy.cli import main

main(prog_name="tlsproxy")
