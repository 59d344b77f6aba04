"""Qdrant's API: operations, routing, decisions, listings, and the confinement of tenants. Pure."""
