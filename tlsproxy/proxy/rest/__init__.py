"""A client's REST connection, and its exchanges with the upstream, one at a time."""
