"""Certificates, contexts and generations: what is read from files, checked, built and published as one."""
