"""Counters, their Prometheus exposition, and the last minutes."""
