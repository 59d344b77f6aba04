"""The state that all connections of a process share."""
