"""The REST protocol: a client connection and its exchanges."""
