"""The TCP relay."""
