"""Authentication and authorization: identities, roles, keys, tokens, decisions. Pure: no I/O, clock or randomness."""
