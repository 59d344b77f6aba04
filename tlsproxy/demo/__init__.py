"""The embedded upstream and the one-command demo. Nothing but the CLI imports it."""
