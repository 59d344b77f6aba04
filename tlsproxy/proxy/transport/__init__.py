"""Byte streams: sockets, TLS and dialling, with deadlines and bounded buffers."""
