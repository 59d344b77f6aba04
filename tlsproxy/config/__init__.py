"""The configuration: its model, its loader, and errors that say where."""
