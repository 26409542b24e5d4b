"""The last stage of a unary call: one reply, one response."""

from protobuf import Message

from edge.config import EdgeSettings
from edge.exchange import Exchange
from edge.http.cookies import TokenCookies
from edge.http.etags import digest, entity_tag, is_unchanged, version_tag
from edge.http.negotiation import JSON, coding_for, compress
from edge.http.response_headers import ResponseHeaders
from edge.http.streams import WATCH_INTERVAL, DisconnectGuard
from edge.port import CallPort
from edge.responses.reply import NOT_STORED, Replies, Response
from edge.routing.bindings import Binding
from edge.stepping import Waiting, start
from edge.timers import SharedTimer

_NOT_MODIFIED = 304
_SAFE_METHODS = ("GET", "HEAD")
_VARY_CODING = (b"vary", b"Accept-Encoding")


class UnaryCalls:
    """Makes the unary calls of one application."""

    def __init__(
        self,
        port: CallPort,
        settings: EdgeSettings,
        response_headers: ResponseHeaders,
        cookies: TokenCookies,
    ) -> None:
        self._port = port
        self._response_headers = response_headers
        self._cookies = cookies
        self._compress_from = settings.compress_from_bytes
        self._timer = SharedTimer(WATCH_INTERVAL)

    async def make(
        self, exchange: Exchange, binding: Binding, replies: Replies, request: bytes
    ) -> None:
        """Make a call and send its response."""
        metadata, timeout = exchange.metadata, exchange.timeout
        reply = start(
            self._port.unary(
                binding.method, request, metadata=metadata, timeout=timeout
            )
        )
        if isinstance(reply, Waiting):
            with DisconnectGuard(self._timer, exchange.receive, timeout):
                reply = await reply
        if exchange.cookie_mode:
            message = binding.reply.type.from_binary(reply.message)
            response = self._with_cookies(exchange, binding, replies, message)
        else:
            response = replies.response(reply.message, exchange.media_type)
        response.headers += replies.clearing
        if reply.headers:
            response.headers += self._response_headers.from_metadata(reply.headers)
        await self._encode(exchange, replies, response)
        common = self._response_headers.common(exchange.head)
        await exchange.send(response, common)

    def _with_cookies(
        self, exchange: Exchange, binding: Binding, replies: Replies, message: Message
    ) -> Response:
        """Return the response with its tokens in cookies instead of the body."""
        cookies = [*self._cookies.extract(binding, message, exchange.scope)]
        response = replies.render(message, exchange.media_type)
        if exchange.media_type == JSON and response.body and binding.resource:
            response.body = self._cookies.without(binding, response.body)
        response.headers[: len(replies.cache_headers)] = NOT_STORED
        response.headers += cookies
        return response

    async def _encode(
        self, exchange: Exchange, replies: Replies, response: Response
    ) -> None:
        """Add the entity tag, and compress the body or leave it out."""
        headers, coding = exchange.head.headers, ""
        small = len(response.body) < self._compress_from
        # Secrets are not compressed beside what a client chooses (BREACH).
        if not (small or exchange.cookie_mode or replies.has_tokens):
            response.headers.append(_VARY_CODING)
            coding = coding_for(headers.get(b"accept-encoding"))
        safe = exchange.method in _SAFE_METHODS
        tag = version_tag(response.version)
        if safe and replies.status != 204:
            tag = entity_tag(response.digest or digest(response.body), tag, coding)
        if tag:
            response.headers.append((b"etag", tag))
        if_none_match = headers.get(b"if-none-match") if safe else None
        if if_none_match is not None and is_unchanged(if_none_match, response.headers):
            response.status, response.body = _NOT_MODIFIED, b""
        elif coding:
            response.body = await compress(response.body, coding)
            response.headers.append((b"content-encoding", coding.encode()))
