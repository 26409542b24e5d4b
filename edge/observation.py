"""What an edge reports of each request, in values that no client chooses."""

from collections.abc import Callable
from time import perf_counter
from typing import Any

from edge.http.streams import Receive, Send

# Method, route, status (0: there was no response), seconds.
Observe = Callable[[str, str, int, float], None]
App = Callable[[Any, Receive, Send], Any]
OTHER = "_OTHER"
METHODS = frozenset(
    ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT")
)


def known_method(method: str) -> str:
    """Return the method if it is one of RFC 9110 or RFC 5789."""
    return method if method in METHODS else OTHER


async def observe_page(
    observe: Observe, app: App, scope: Any, receive: Receive, send: Send
) -> None:
    """Serve a page, whose route is its path, and report the request."""
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
        observe(known_method(scope["method"]), scope["path"], status, seconds)
