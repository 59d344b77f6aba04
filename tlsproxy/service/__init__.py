"""The running service: composition, reload, audit writer, metrics and the admin server."""
