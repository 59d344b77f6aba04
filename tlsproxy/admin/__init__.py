"""The operators' server: page, health, metrics, status and reload on demand."""
