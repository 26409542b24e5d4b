"""How many connections this process accepts, by how many files it may open."""

from __future__ import annotations

import resource
from functools import cache

from edge.connections import MAX_CONNECTIONS, ConnectionLimits
from edge.http.trusted_proxies import TrustedProxies
from edge.listener import DeadlinedProtocol, limited_protocol
from edge.observation import Observe
from server.config import Settings

MAX_OPEN_FILES = 65_536  # more are not asked for
# One third of them for connections of HTTP, one for those of gRPC, and one for the
# rest: without one the listener could not even accept and refuse a connection.
_SHARE_OF_FILES = 3


@cache
def max_open_files() -> int:
    """Raise the limit of open files as far as this process may; return it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_OPEN_FILES
    if hard != resource.RLIM_INFINITY:
        wanted = min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        return wanted
    return MAX_OPEN_FILES if soft == resource.RLIM_INFINITY else soft


def max_connections() -> int:
    """Return how many connections each listener of this process accepts."""
    return min(MAX_CONNECTIONS, max_open_files() // _SHARE_OF_FILES)


def http_protocol(
    settings: Settings, observe: Observe | None = None
) -> type[DeadlinedProtocol]:
    """Return the protocol of the HTTP listener, with its limits of connections."""
    proxies = TrustedProxies(settings.trusted_proxies)
    return limited_protocol(ConnectionLimits(proxies, max_connections()), observe)
