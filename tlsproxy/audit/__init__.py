"""The audit log: lines, the writer, the files, and queries."""
