"""Counters, their Prometheus exposition, and the decisions and refusals of the last minutes."""
