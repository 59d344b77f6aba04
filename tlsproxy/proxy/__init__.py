"""The data path: the only place that moves a client's bytes."""
