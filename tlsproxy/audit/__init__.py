"""The audit log: a record as one line, its files, and questions about them."""
