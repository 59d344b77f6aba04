"""Bytes in, values out: HTTP/1 heads, targets and framing. Pure."""
