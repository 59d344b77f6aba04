"""Worker processes: supervisor, control channel, publication to all of them, and their merged status and metrics."""
