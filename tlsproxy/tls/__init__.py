"""Certificates, keys and CRLs, and the TLS contexts made of them."""
