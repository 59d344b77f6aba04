"""Configuration snapshots: what a reload reads, validates, assembles and publishes as one generation."""
