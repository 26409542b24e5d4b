"""The last stage of a server stream: many messages, one response."""

from collections.abc import Callable
from contextlib import aclosing

from edge.config import EdgeSettings
from edge.exchange import Exchange
from edge.http.response_headers import ResponseHeaders
from edge.http.streams import (
    RAW,
    WATCH_INTERVAL,
    Disconnected,
    DisconnectGuard,
    Framing,
    with_idle_markers,
)
from edge.port import CallPort, StreamReply
from edge.responses.reply import NOT_STORED, Replies, Response
from edge.routing.bindings import Binding
from edge.timers import SharedTimer

_UNBUFFERED = (b"x-accel-buffering", b"no")  # nginx passes each message on at once
RenderError = Callable[[Exchange, Exception], Response]


class StreamCalls:
    """Makes the streaming calls of one application."""

    def __init__(
        self,
        port: CallPort,
        settings: EdgeSettings,
        response_headers: ResponseHeaders,
        render_error: RenderError,
    ) -> None:
        self._port = port
        self._response_headers = response_headers
        self._render_error = render_error
        self._heartbeat = settings.heartbeat
        self._timer = SharedTimer(WATCH_INTERVAL)

    async def make(
        self, exchange: Exchange, binding: Binding, replies: Replies, request: bytes
    ) -> None:
        """Send a stream; its status is sent with its first message."""
        framing = replies.framing(exchange.media_type)
        metadata, timeout = exchange.metadata, exchange.timeout
        reply = self._port.server_stream(
            binding.method, request, metadata=metadata, timeout=timeout
        )
        try:
            with DisconnectGuard(self._timer, exchange.receive, timeout):
                await self._send_messages(exchange, binding, replies, reply)
            last = framing.end
        except Disconnected:
            raise
        except Exception as error:
            if not exchange.started:
                raise
            last = framing.last(self._render_error(exchange, error).body)
            if framing is RAW:  # its only way to report an error is to break off
                raise Disconnected from None
        await exchange.send_part(last, last=True)

    async def _send_messages(
        self, exchange: Exchange, binding: Binding, replies: Replies, reply: StreamReply
    ) -> None:
        """Send the messages; HEAD ends with the first one."""
        framing: Framing = replies.framing(exchange.media_type)
        idle = self._heartbeat if framing.heartbeat else None
        async with aclosing(with_idle_markers(aiter(reply), idle)) as messages:
            async for message in messages:
                if message is None:
                    heartbeat = framing.heartbeat if exchange.started else b""
                    await exchange.send_part(heartbeat)
                    continue
                text, token, kind = replies.item(message)
                frame = framing.frame(text, token, first=not exchange.started)
                if not exchange.started:
                    kind = kind if binding.raw_reply else exchange.media_type
                    await self._start(exchange, replies, reply, kind)
                await exchange.send_part(frame)
                if exchange.method == "HEAD":
                    return
        if not exchange.started:
            await self._start(exchange, replies, reply, exchange.media_type)
            await exchange.send_part(framing.start)

    async def _start(
        self, exchange: Exchange, replies: Replies, reply: StreamReply, kind: str
    ) -> None:
        caching = NOT_STORED if exchange.cookie_mode else replies.cache_headers
        headers = [*caching, (b"content-type", kind.encode())]
        headers += self._response_headers.from_metadata(reply.headers)
        headers.append(_UNBUFFERED)
        common = self._response_headers.common(exchange.head)
        await exchange.start(Response(200, headers, b""), common)
