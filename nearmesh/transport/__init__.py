"""The agent's own gRPC server: HTTP/2 read and written on the event loop, so that a request costs microseconds.

frames, headers <- stream <- connection (no sockets, no clock) <- messages, call <- server (sockets, TLS). See ADR 14.
"""
