"""What an edge reports of each request, in values that no client chooses."""

from collections.abc import Callable
from time import perf_counter
from typing import Any

from edge.http.streams import Receive, Send

# Method, route, status (0: there was no response), seconds.
Observe = Callable[[str, str, int, float], None]
App = Callable[[Any, Receive, Send], Any]
OTHER = "_OTHER"
METHODS = frozenset(  # of RFC 9110 and RFC 5789
    ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT")
)


async def observe_page(
    observe: Observe, app: App, scope: Any, receive: Receive, send: Send
) -> None:
    """Serve a page to GET or HEAD, and report the request; its route is its path."""
    started, status = perf_counter(), 0

    async def send_observed(message: Any) -> None:
        nonlocal status
        if message["type"] == "http.response.start":
            status = message["status"]
        await send(message)

    try:
        await app(scope, receive, send_observed)
    finally:
        seconds = perf_counter() - started
        observe(scope["method"], scope["path"], status, seconds)
