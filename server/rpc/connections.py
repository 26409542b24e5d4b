"""Counts the gRPC connections that make calls.

gRPC reports neither connections nor failed handshakes. The number of handshakes that
began, less the number of connections that made a call, is the number of clients that
were refused by TLS, that speak no TLS, or that connect without a call.
"""

from __future__ import annotations

MAX_REMEMBERED = 10_000  # connections; one beyond is counted again at its next call


class ConnectionCounter:
    """`used` is the number of connections that have made a call."""

    def __init__(self) -> None:
        self.used = 0
        self._peers: dict[str, None] = {}  # in the order of their first calls

    def add(self, peer: str) -> None:
        """Count the connection of a call, by gRPC's name of it, once."""
        if peer in self._peers:
            return
        if len(self._peers) >= MAX_REMEMBERED:
            del self._peers[next(iter(self._peers))]
        self._peers[peer] = None
        self.used += 1
