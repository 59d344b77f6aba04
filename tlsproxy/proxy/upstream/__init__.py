"""Upstream connections over HTTP/1.1, and requests of our own on them."""
