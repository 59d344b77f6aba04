"""Wire formats, bytes in and values out: HTTP/1, HTTP/2, HPACK, gRPC, protobuf, JSON. Pure."""
