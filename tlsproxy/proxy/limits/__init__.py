"""Rates, concurrency and fair shares."""
