"""One HTTP request and its response."""

from typing import Any

from edge.errors import Header
from edge.http.request_headers import RequestHead
from edge.http.streams import Receive, Send
from edge.observation import OTHER
from edge.port import Metadata
from edge.responses.reply import Response

_BODILESS = (204, 304)


class Exchange:
    """A request on its way through the stages of the edge, and its response."""

    __slots__ = (
        "_send",
        "cookie_mode",
        "head",
        "media_type",
        "metadata",
        "method",
        "receive",
        "route",
        "scope",
        "started",
        "status",
        "timeout",
    )

    def __init__(
        self, scope: Any, receive: Receive, send: Send, head: RequestHead
    ) -> None:
        self.scope = scope
        self.method: str = scope["method"]
        self.receive = receive
        self.head = head
        self.metadata: Metadata = ()
        self.cookie_mode = False  # tokens travel in cookies
        self.timeout: float | None = None
        self.media_type = ""  # of the response
        self.route = OTHER  # the path template of the binding
        self.started = False  # the status is sent
        self.status = 0  # once it is sent
        self._send = send

    async def start(self, response: Response, common: list[Header]) -> None:
        """Send a response's status and headers."""
        self.started, self.status = True, response.status
        headers = [*response.headers, *common]
        start = "http.response.start"
        await self._send({"type": start, "status": response.status, "headers": headers})

    async def send(self, response: Response, common: list[Header]) -> None:
        """Send a whole response."""
        if response.status not in _BODILESS:
            length = b"%d" % len(response.body)
            response.headers.append((b"content-length", length))
        await self.start(response, common)
        body = b"" if self.method == "HEAD" else response.body
        await self._send({"type": "http.response.body", "body": body})

    async def send_part(self, body: bytes, *, last: bool = False) -> None:
        """Send a part of a stream's body."""
        body = b"" if self.method == "HEAD" else body
        if body or last:
            kind = "http.response.body"
            await self._send({"type": kind, "body": body, "more_body": not last})
