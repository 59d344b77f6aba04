"""systemd: readiness, watchdog and inherited sockets."""
