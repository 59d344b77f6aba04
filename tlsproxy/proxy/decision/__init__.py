"""Request and call plans: everything that is decided before the first byte of a body."""
