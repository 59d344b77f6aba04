"""Client mode, `tlsproxy connect`: plaintext on this machine in, verified TLS with a client certificate out."""
