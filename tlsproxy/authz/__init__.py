"""Identity, roles, keys and tokens, and the decision. Pure: no socket, file, clock, randomness or log."""
