"""Sockets and servers that listen: gRPC, HTTP and metrics."""
