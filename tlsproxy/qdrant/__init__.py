"""What a Qdrant request means. Pure."""
