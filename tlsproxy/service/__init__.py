"""The running service: composition, signals and reload."""
