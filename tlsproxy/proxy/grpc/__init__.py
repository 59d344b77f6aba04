"""The gRPC protocol: a frame relay between a client connection and its upstream connection."""
