"""Our own gRPC server, of control planes and nodes: HTTP/2 on the event loop, so that a request costs microseconds.

frames, headers <- stream <- connection (no sockets, no clock) <- messages, call <- server (sockets, TLS). See ADR 14.
"""
