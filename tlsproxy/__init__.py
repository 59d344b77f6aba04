"""tlsproxy: a security gateway for Qdrant."""

__version__ = "0.1.0"
