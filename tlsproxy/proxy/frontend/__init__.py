"""Accepting: listeners, connection limits and handshakes."""
